package posture

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/postern-zt/postern/platform/posture"
)

// Times of the schedule. The broker's view of a fact is never older than Interval
// and the time a report takes; three missed reports let the facts expire.
const (
	// Interval is the time between two looks, and between two full reports.
	Interval = 60 * time.Second
	// TTL is how long a reported fact counts.
	TTL = 3*Interval + 30*time.Second
	// Settle is how long a change to the better, or to unknown, must hold before it
	// is reported. A loss is reported at once: it is exposure now.
	Settle = 5 * time.Second
	// MinGap is the least time between two looks that events cause.
	MinGap = time.Second
	// RetryFirst and RetryMax bound the wait after a report that did not arrive.
	RetryFirst = time.Second
	RetryMax   = 30 * time.Second
)

// Core is the schedule and the damping. It has one owner.
//
//	look ---> observed ---(loss, or unchanged)-------------------> reported
//	              |                                                    ^
//	              +--(better or unknown)--> pending ---(Settle)--------+
//	                                          |
//	                                          +--(back again)--> dropped
type Core struct {
	version  string
	facts    map[string]posture.Fact
	pending  map[string]posture.Fact // observed, not yet believed; by name
	nextLook time.Time
	lastLook time.Time
	nextSend time.Time
	retry    time.Duration
	sequence uint64
}

// NewCore gives a core whose first look and report are due at once.
func NewCore(version string) *Core {
	return &Core{version: version, facts: map[string]posture.Fact{}, pending: map[string]posture.Fact{}}
}

// LookDue tells whether it is time to collect.
func (c *Core) LookDue(now time.Time) bool { return !now.Before(c.nextLook) }

// Next gives the time at which something is due.
func (c *Core) Next() time.Time {
	if c.nextSend.Before(c.nextLook) {
		return c.nextSend
	}
	return c.nextLook
}

// Hurry brings the next look forward, because something happened.
func (c *Core) Hurry(now time.Time) {
	earliest := now
	if gap := c.lastLook.Add(MinGap); !c.lastLook.IsZero() && gap.After(now) {
		earliest = gap
	}
	if earliest.Before(c.nextLook) {
		c.nextLook = earliest
	}
}

// Force makes a look and a full report due now.
func (c *Core) Force(now time.Time) {
	c.nextLook, c.nextSend = now, now
	c.retry = 0
}

// Observe takes what was collected at now and gives the facts whose state is
// believed to have changed.
func (c *Core) Observe(now time.Time, seen []posture.Fact) []posture.Fact {
	c.lastLook, c.nextLook = now, now.Add(Interval)
	seen = append(slices.Clone(seen), posture.Fact{
		Name: ClientVersion, State: posture.Pass, Data: c.version, Evidence: "the client's own word", Observed: now,
	})
	var changed []posture.Fact
	for _, f := range seen {
		if c.take(now, f) {
			changed = append(changed, f)
		}
	}
	changed = append(changed, c.missing(now, seen)...)
	if len(changed) > 0 {
		c.nextSend = now
	}
	if len(c.pending) > 0 && now.Add(Settle).Before(c.nextLook) {
		c.nextLook = now.Add(Settle)
	}
	return changed
}

// take records one observation and tells whether it changes what is believed.
func (c *Core) take(now time.Time, f posture.Fact) bool {
	old, known := c.facts[f.Name]
	if known && old.State == f.State && old.Data == f.Data {
		c.facts[f.Name] = f // the same, seen anew
		delete(c.pending, f.Name)
		return false
	}
	isLoss := f.State == posture.Fail && (!known || old.State != posture.Fail)
	if known && !isLoss && !c.settled(now, f) {
		return false
	}
	c.facts[f.Name] = f
	delete(c.pending, f.Name)
	return true
}

// settled tells whether f has been seen unchanged for Settle. Until then the old
// fact stays with its old time, so it expires as if nobody had looked.
func (c *Core) settled(now time.Time, f posture.Fact) bool {
	p, waiting := c.pending[f.Name]
	if !waiting || p.State != f.State || p.Data != f.Data {
		f.Observed = now
		c.pending[f.Name] = f
		return false
	}
	return now.Sub(p.Observed) >= Settle
}

// missing makes facts unknown that a look no longer gives.
func (c *Core) missing(now time.Time, seen []posture.Fact) []posture.Fact {
	var gone []posture.Fact
	for name, old := range c.facts {
		here := slices.ContainsFunc(seen, func(f posture.Fact) bool { return f.Name == name })
		if here || old.State == posture.Unknown {
			continue
		}
		f := posture.Fact{Name: name, State: posture.Unknown, Evidence: "no longer collected", Observed: now}
		c.facts[name] = f
		delete(c.pending, name)
		gone = append(gone, f)
	}
	return gone
}

// Facts gives what is believed, sorted by name.
func (c *Core) Facts() []posture.Fact {
	return slices.SortedFunc(maps.Values(c.facts), func(a, b posture.Fact) int { return strings.Compare(a.Name, b.Name) })
}

// Report gives the report that is due, with the next sequence number.
func (c *Core) Report(now time.Time) (Report, bool) {
	if len(c.facts) == 0 || now.Before(c.nextSend) {
		return Report{}, false
	}
	// The clock makes numbers rise over restarts; when it was set back the number
	// still rises within this run.
	c.sequence = max(c.sequence+1, uint64(max(0, now.UnixMilli())))
	return Report{Sequence: c.sequence, Time: now, ClientVersion: c.version, TTL: TTL, Facts: c.Facts()}, true
}

// Sent records whether the last report arrived.
func (c *Core) Sent(now time.Time, arrived bool) {
	if arrived {
		c.retry = 0
		c.nextSend = now.Add(Interval)
		return
	}
	c.retry = min(max(RetryFirst, 2*c.retry), RetryMax)
	c.nextSend = now.Add(c.retry)
}
