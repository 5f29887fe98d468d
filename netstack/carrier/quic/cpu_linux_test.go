package quic_test

import (
	"syscall"
	"testing"
	"time"
)

// cpuPerGB reports the process's CPU seconds per 10^9 bytes since start: on a busy
// machine the steadier figure.
func cpuPerGB(b *testing.B, start time.Duration, bytes int64) {
	b.ReportMetric((cpuTime(b)-start).Seconds()/(float64(bytes)/1e9), "cpu-s/GB")
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
