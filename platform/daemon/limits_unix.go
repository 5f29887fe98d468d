//go:build linux || darwin

package daemon

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// RaiseFileLimit raises the limit on open files towards want, as far as the
// process may, and returns the limit that now holds. It never lowers it.
func RaiseFileLimit(want uint64) (uint64, error) {
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
		return 0, fmt.Errorf("read limit on open files: %w", err)
	}
	if now.Cur >= want {
		return now.Cur, nil
	}
	// First with a higher hard limit, which needs privilege; then within it.
	for _, hard := range []uint64{max(now.Max, want), now.Max} {
		next := unix.Rlimit{Cur: min(want, hard), Max: hard}
		if unix.Setrlimit(unix.RLIMIT_NOFILE, &next) == nil {
			return next.Cur, nil
		}
	}
	return now.Cur, nil
}
