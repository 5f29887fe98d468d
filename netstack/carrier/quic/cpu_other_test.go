//go:build !linux

package quic_test

import (
	"testing"
	"time"
)

func cpuPerGB(*testing.B, time.Duration, int64) {}

func cpuTime(*testing.B) time.Duration { return 0 }
