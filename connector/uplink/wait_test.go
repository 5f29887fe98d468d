package uplink

import (
	"testing"
	"time"

	controlv1 "github.com/postern-zt/postern/proto/control/v1"
)

// TestReconnectInIsBounded: whatever the broker asks for, a connector comes back.
func TestReconnectInIsBounded(t *testing.T) {
	for _, c := range []struct {
		r      *controlv1.Reconnect
		lo, hi time.Duration
	}{
		{&controlv1.Reconnect{}, time.Millisecond, 2 * time.Millisecond},
		{&controlv1.Reconnect{AfterMs: -5, SpreadMs: -5}, time.Millisecond, 2 * time.Millisecond},
		{&controlv1.Reconnect{AfterMs: 200, SpreadMs: 500}, 200 * time.Millisecond, 701 * time.Millisecond},
		{&controlv1.Reconnect{AfterMs: 1 << 62, SpreadMs: 1 << 62}, 10 * time.Minute, 20*time.Minute + time.Millisecond},
	} {
		for range 100 {
			if d := reconnectIn(c.r); d < c.lo || d > c.hi {
				t.Fatalf("reconnectIn(%v) = %s, want %s to %s", c.r, d, c.lo, c.hi)
			}
		}
	}
}
