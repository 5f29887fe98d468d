//go:build !linux

package clock

import "time"

// started anchors the fallback; the wall deadline covers suspended time there.
var started = time.Now() //nolint:gochecknoglobals // constant after start

// boot falls back to the runtime's monotonic clock.
func boot() time.Duration { return time.Since(started) }
