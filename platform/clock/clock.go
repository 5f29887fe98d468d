// Package clock reads the two clocks that leases need: the wall clock, which people and
// certificates use and which may jump, and the boot clock, which only moves forward and
// goes on while the machine sleeps. A lease ends when either says so, so that a suspended
// laptop does not extend it (decisions rule 10). The package imports nothing of ours; all
// functions are safe for concurrent use.
package clock

import "time"

// Time is one reading of both clocks.
type Time struct {
	// Wall is the system's time of day.
	Wall time.Time
	// Boot is the time since the machine started, suspended time included where the
	// system can tell.
	Boot time.Duration
}

// Now reads both clocks.
func Now() Time { return Time{Wall: time.Now(), Boot: boot()} }

// Add returns the reading d later, as if both clocks had run evenly.
func (t Time) Add(d time.Duration) Time { return Time{Wall: t.Wall.Add(d), Boot: t.Boot + d} }

// Deadline is a point that has passed as soon as one of the two clocks has reached it.
type Deadline struct {
	wall time.Time
	boot time.Duration
}

// DeadlineAfter returns the deadline d after t.
func (t Time) DeadlineAfter(d time.Duration) Deadline {
	return Deadline{wall: t.Wall.Add(d), boot: t.Boot + d}
}

// Passed reports whether the deadline is over; the zero Deadline always is.
func (d Deadline) Passed(t Time) bool {
	return d.IsZero() || t.Boot >= d.boot || !t.Wall.Before(d.wall)
}

// IsZero reports whether no deadline was ever set.
func (d Deadline) IsZero() bool { return d.wall.IsZero() }

// Add moves the deadline by a duration; a zero one stays zero.
func (d Deadline) Add(by time.Duration) Deadline {
	if d.IsZero() {
		return d
	}
	return Deadline{wall: d.wall.Add(by), boot: d.boot + by}
}

// Until returns how long it is to the deadline by the clock that reaches it first.
func (d Deadline) Until(t Time) time.Duration {
	if d.IsZero() {
		return 0
	}
	return max(0, min(d.boot-t.Boot, d.wall.Sub(t.Wall.Round(0))))
}
