//go:build linux

package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// startPerf records each program into PREFIX-ROLE.perf until stop is called. Without perf
// on the machine it does nothing and says so.
func startPerf(t *testing.T, prefix string, pids map[string]int) (stop func()) {
	t.Helper()
	perf, err := exec.LookPath("perf")
	if err != nil {
		t.Log("no profiles: perf is not installed")
		return func() {}
	}
	var running []*exec.Cmd
	for role, pid := range pids {
		cmd := exec.CommandContext(context.Background(), perf, "record", "-q", "-e", "cpu-clock", "-F", "499", "-g",
			"-o", prefix+"-"+role+".perf", "-p", fmt.Sprint(pid))
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Logf("no profile of the %s: %v", role, err)
			continue
		}
		running = append(running, cmd)
	}
	return func() {
		for _, cmd := range running {
			_ = cmd.Process.Signal(unix.SIGINT) // perf writes its file and ends
			_ = cmd.Wait()                      // by that signal
		}
	}
}
