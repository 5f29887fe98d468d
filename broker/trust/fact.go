package trust

import "time"

// maxData bounds the data kept with a fact, in bytes: a version string, not a report.
const maxData = 256

// maxSkew is how far in the future an observation may lie before it is refused.
const maxSkew = 5 * time.Minute

// Report is one observation of one fact as it arrives.
type Report struct {
	Name       FactName
	State      State // pass, fail or unknown; pass_in_grace is refused: only the broker grants grace
	Data       string
	ObservedAt time.Time
	TTL        time.Duration // 0 or more than the check's own: the check's own
	Source     Source
}

// Fact is one signal with its history as far as damping needs it. Sessions keep it, the
// store keeps it as JSON. Read it through View, never by its State alone.
//
//	        report pass          report fail                  grace over
//	unknown ------------> pass -------------> pass_in_grace -------------> fail
//	   ^                   ^ report pass (a flapping check: after a hold)    |
//	   |                   +------------------------------------------------+
//	   +--- expiry, or a report of unknown, from any state
type Fact struct {
	Name       FactName  `json:"name"`
	State      State     `json:"state"` // as reported, before damping
	Data       string    `json:"data,omitempty"`
	ObservedAt time.Time `json:"observed_at"`
	ExpiresAt  time.Time `json:"expires_at"`
	Source     Source    `json:"source"`

	// LastPass is when it last passed; a fact that never did has no grace.
	LastPass time.Time `json:"last_pass,omitzero"`
	// FailedAt is when the present failure began; zero while it passes.
	FailedAt time.Time `json:"failed_at,omitzero"`
	// HoldUntil delays a recovery of a flapping check.
	HoldUntil time.Time `json:"hold_until,omitzero"`
	// Flaps counts failures since FlapsFrom.
	Flaps     int       `json:"flaps,omitempty"`
	FlapsFrom time.Time `json:"flaps_from,omitzero"`
}

// View is what a fact amounts to at one moment: the form in which it enters a decision.
type View struct {
	Name       FactName  `json:"name"`
	State      State     `json:"state"`
	Data       string    `json:"data,omitempty"`
	ObservedAt time.Time `json:"observed_at,omitzero"`
	ExpiresAt  time.Time `json:"expires_at,omitzero"`  // then it becomes unknown; zero: it does not expire
	GraceUntil time.Time `json:"grace_until,omitzero"` // set when the state is pass_in_grace
	Source     Source    `json:"source,omitempty"`
}

// At returns the view as it reads at now: an expired or graceless pass is unknown or fail.
// A view only ever gets worse with time.
func (v View) At(now time.Time) View {
	switch {
	case v.State == StatePassInGrace && !now.Before(v.GraceUntil):
		v.State = StateFail
	case v.State == StatePass && !v.ExpiresAt.IsZero() && !now.Before(v.ExpiresAt):
		v.State = StateUnknown
	case v.State > StateFail:
		v.State = StateUnknown
	}
	return v
}

// ChangesAt returns when At would give another state, zero for never.
func (v View) ChangesAt() time.Time {
	switch v.State {
	case StatePass:
		return v.ExpiresAt
	case StatePassInGrace:
		return v.GraceUntil
	default:
		return time.Time{}
	}
}

// Observe takes a report into the fact and returns the new fact and when its view must be
// looked at again (zero: never). prev is the zero Fact when there is none. A report that is
// stale, from the future, or from a source that may not speak for this fact changes nothing
// but is answered with ok false.
func (s Settings) Observe(prev Fact, r Report, now time.Time) (f Fact, reEvaluateAt time.Time, ok bool) {
	c := s.check(r.Name)
	if !c.accepts(r.Source) || r.State == StatePassInGrace || r.State > StateFail ||
		r.ObservedAt.After(now.Add(maxSkew)) || r.ObservedAt.Before(prev.ObservedAt) {
		_, at := s.View(prev, now)
		return prev, at, false
	}
	f = prev
	f.Name, f.State, f.Source = r.Name, r.State, r.Source
	f.Data = r.Data[:min(len(r.Data), maxData)]
	f.ObservedAt = earlier(r.ObservedAt, now)
	f.ExpiresAt = f.ObservedAt.Add(ttl(r.TTL, c.TTL))
	f = c.damp(f, prev, now)
	_, reEvaluateAt = s.View(f, now)
	return f, reEvaluateAt, true
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func ttl(wanted, limit time.Duration) time.Duration {
	if wanted <= 0 || wanted > limit {
		return limit
	}
	return wanted
}

// damp moves the history: when did it last count, when did it fail, does it flap.
func (c Check) damp(f, prev Fact, now time.Time) Fact {
	if f.State == StatePass {
		if prev.State != StatePass && f.Flaps >= c.FlapLimit && c.FlapLimit > 0 {
			f.HoldUntil = now.Add(c.FlapHold)
		}
		f.FailedAt, f.LastPass = time.Time{}, now
		return f
	}
	if f.State == StateFail && f.FailedAt.IsZero() {
		f.FailedAt = now
		f = c.countFlap(f, prev, now)
	}
	return f
}

func (c Check) countFlap(f, prev Fact, now time.Time) Fact {
	if prev.State != StatePass {
		return f
	}
	if f.FlapsFrom.IsZero() || now.Sub(f.FlapsFrom) > c.FlapWindow {
		f.Flaps, f.FlapsFrom = 0, now
	}
	f.Flaps++
	return f
}

// View returns what the fact counts as at now and when that may change (zero: never).
func (s Settings) View(f Fact, now time.Time) (View, time.Time) {
	c := s.check(f.Name)
	v := View{Name: f.Name, Data: f.Data, ObservedAt: f.ObservedAt, ExpiresAt: f.ExpiresAt, Source: f.Source}
	switch {
	case !now.Before(f.ExpiresAt) || f.State == StateUnknown:
		return v, time.Time{} // silence has no grace
	case f.State == StatePass && now.Before(f.HoldUntil):
		v.State = StateFail
		return v, earlier(f.HoldUntil, f.ExpiresAt)
	case f.State == StatePass:
		v.State = StatePass
		return v, f.ExpiresAt
	default:
		return c.failing(f, v, now)
	}
}

// failing gives fail, or pass_in_grace while the check's grace runs. Only a fact that has
// counted before and does not flap has grace.
func (c Check) failing(f Fact, v View, now time.Time) (View, time.Time) {
	v.State = StateFail
	until := f.FailedAt.Add(c.Grace)
	flapping := c.FlapLimit > 0 && f.Flaps >= c.FlapLimit
	if f.LastPass.IsZero() || flapping || !now.Before(until) {
		return v, f.ExpiresAt
	}
	v.State, v.GraceUntil = StatePassInGrace, earlier(until, f.ExpiresAt)
	return v, v.GraceUntil
}
