package relay

import (
	"sync/atomic"
	"time"
)

// paceBurst is how far ahead of its rate a link may run: what a congestion controller
// needs to see a rate instead of single drops.
const paceBurst = 100 * time.Millisecond

// pace bounds bytes per second without a lock: the theoretical time at which everything
// sent so far would have been sent at the rate. The zero value is ready.
type pace struct{ due atomic.Int64 }

// allow takes n bytes at time now (Unix nanoseconds), or nothing when the link is ahead
// of bytesPerSecond; zero is no limit.
func (p *pace) allow(n int, bytesPerSecond uint64, now int64) bool {
	if bytesPerSecond == 0 {
		return true
	}
	cost := int64(float64(n) / float64(bytesPerSecond) * float64(time.Second))
	for {
		due := p.due.Load()
		if due-now > int64(paceBurst) {
			return false
		}
		if p.due.CompareAndSwap(due, max(due, now)+cost) {
			return true
		}
	}
}
