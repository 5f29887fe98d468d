package policy

import (
	"time"

	"github.com/postern-zt/postern/broker/trust"
)

// state is one input looked at under one revision. It lives for one decision.
type state struct {
	rev   *Revision
	in    *Input
	trust trust.Assessment
	row   ClassDefaults
	cands []*compiled
	used  uint64 // schedules that candidates name
	open  uint64 // of those, the open ones
	fresh bool   // the identity is fresh enough for the class
	end   time.Time
	quiet bool // the verdict is all that is wanted: explain nothing
}

// newState assesses the device, collects the candidates and evaluates the schedules they use.
func (r *Revision) newState(in *Input) *state {
	s := &state{rev: r, in: in, row: r.doc.Baseline[in.App.Class]}
	s.trust = r.doc.Trust.Assess(in.Device.Registered, in.Device.Facts, in.Time)
	s.end = trust.First(in.Time.Add(time.Duration(s.row.ReVerify)), s.trust.ReEvaluateAt)
	s.cands, s.end = r.index.candidates(in, s.end)
	for _, c := range s.cands {
		s.used |= c.schedules
	}
	for i, sch := range r.schedules {
		if s.used&(1<<i) == 0 {
			continue
		}
		open, until := sch.at(in.Time)
		if open {
			s.open |= 1 << i
		}
		s.end = trust.First(s.end, until)
	}
	s.fresh = s.identityFresh()
	s.agesEnd()
	return s
}

func (s *state) passes(f trust.FactName) bool {
	return s.in.Device.Registered && s.trust.Checks[string(f)]
}

// within reports whether since lies at most age ago. Zero and future times are not known.
func (s *state) within(since time.Time, age Duration) bool {
	if since.IsZero() || since.After(s.in.Time.Add(clockSkew)) {
		return false
	}
	return s.in.Time.Sub(since) < time.Duration(age)
}

func (s *state) mfaWithin(age Duration) bool {
	return multiFactor(s.in.Identity.AMR) && s.within(s.in.Identity.AuthTime, age)
}

func (s *state) sessionWithin(age Duration) bool { return s.within(s.in.Identity.SignedInAt, age) }

// factor is what kind of proof a method is.
type factor uint8

const (
	factorNone factor = iota // not a proof by the person, or not known
	factorKnowledge
	factorPossession
	factorInherence
)

// factorOf reads one method (RFC 8176 section 2). A key may be unlocked by a PIN or may not
// be: alone it proves possession and nothing else.
func factorOf(method string) factor {
	switch method {
	case "pwd", "pin", "kba":
		return factorKnowledge
	case "otp", "hwk", "swk", "sc", "sms", "tel":
		return factorPossession
	case "face", "fpt", "iris", "retina", "vbm":
		return factorInherence
	default:
		return factorNone
	}
}

// multiFactor reads amr: the issuer's own word for it, or two methods of different kinds.
func multiFactor(amr []string) bool {
	first := factorNone
	for _, m := range amr {
		f := factorOf(m)
		switch {
		case m == "mfa":
			return true
		case f == factorNone:
		case first == factorNone:
			first = f
		case f != first:
			return true
		}
	}
	return false
}

// identityFresh: while the issuer is out of reach, the class's outage mode says how long
// new decisions may rest on what it said before.
func (s *state) identityFresh() bool {
	since := s.in.Identity.IdentityStale
	if since.IsZero() {
		return true
	}
	if s.row.Outage != OutageContinue && s.row.Outage != OutageHold {
		return false
	}
	until := since.Add(time.Duration(s.row.OutageFor))
	if !s.in.Time.Before(until) {
		return false
	}
	s.end = trust.First(s.end, until)
	return true
}

// agesEnd moves the end to the first age limit that will be crossed.
func (s *state) agesEnd() {
	for _, a := range s.rev.mfaAges {
		if s.mfaWithin(a) {
			s.end = trust.First(s.end, s.in.Identity.AuthTime.Add(time.Duration(a)))
			break // ages are sorted: this one is crossed first
		}
	}
	for _, a := range s.rev.sessionAges {
		if s.sessionWithin(a) {
			s.end = trust.First(s.end, s.in.Identity.SignedInAt.Add(time.Duration(a)))
			break
		}
	}
}
