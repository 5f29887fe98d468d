package policy

import (
	"slices"
	"strconv"
	"time"

	"github.com/postern-zt/postern/broker/trust"
)

const (
	maxChanges     = 3  // of one remedy: more is no advice
	maxEvaluations = 24 // of one search
)

func itoa(n int) string { return strconv.Itoa(n) }

// remedyFacts says which fact a remedy makes pass.
func remedyFacts(r RemedyCode) []trust.FactName {
	switch r {
	case RemedyUpdateClient:
		return []trust.FactName{trust.ClientVersion}
	case RemedyFirewall:
		return []trust.FactName{trust.Firewall}
	case RemedyScreenLock:
		return []trust.FactName{trust.ScreenLock}
	case RemedyAntivirus:
		return []trust.FactName{trust.Antivirus}
	case RemedyPatch:
		return []trust.FactName{trust.PatchLevel}
	case RemedyUpgradeOS:
		return []trust.FactName{trust.OSVersion, trust.OSSupported}
	case RemedyEncryptDisk:
		return []trust.FactName{trust.DiskEncrypted}
	case RemedyEnrolMDM:
		return []trust.FactName{trust.MDMEnrolled}
	case RemedyHardwareDevice:
		return []trust.FactName{trust.KeyInHardware}
	default:
		return nil
	}
}

// with returns the input with one remedy done. The receiver's maps and slices are not written to.
func (in Input) with(r RemedyCode) Input {
	id := &in.Identity
	switch r {
	case RemedyMFA:
		id.AuthTime, id.AMR = in.Time, sorted(append(slices.Clone(id.AMR), "mfa"))
	case RemedyStrongKey:
		id.AuthTime, id.AMR = in.Time, sorted(append(slices.Clone(id.AMR), "hwk", "mfa"))
	case RemedySignIn:
		id.AuthTime, id.SignedInAt, id.VerifiedAt, id.IdentityStale = in.Time, in.Time, in.Time, time.Time{}
	case RemedyRegisterDevice:
		in.Device.Registered = true
	}
	for _, f := range remedyFacts(r) {
		in.Device.Facts = passing(in.Device.Facts, f, in.Time)
	}
	return in
}

// passing returns the facts with one of them just seen to pass.
func passing(facts []trust.View, n trust.FactName, now time.Time) []trust.View {
	v := trust.View{Name: n, State: trust.StatePass, ObservedAt: now, ExpiresAt: now.Add(time.Hour), Source: trust.SourceBroker}
	out := slices.DeleteFunc(slices.Clone(facts), func(f trust.View) bool { return f.Name == n })
	return append(out, v)
}

// shifted moves the input, with all its ages, to another time.
func (in Input) shifted(to time.Time) Input {
	d := to.Sub(in.Time)
	in.Device.Facts = slices.Clone(in.Device.Facts)
	in.eachTime(func(t *time.Time) {
		if !t.IsZero() {
			*t = t.Add(d)
		}
	})
	return in
}

// search asks the revision again with facts changed, within a budget.
type search struct {
	rev    *Revision
	in     Input
	wait   time.Time // when the next schedule changes; zero: none is in play
	budget int
}

// verdict answers what the decision would be with the changes done.
func (q *search) verdict(changes []RemedyCode) Verdict {
	if q.budget == 0 {
		return VerdictDeny
	}
	q.budget--
	in := q.in
	for _, c := range changes {
		if c == RemedyWait {
			in = in.shifted(q.wait)
		}
	}
	for _, c := range changes {
		in = in.with(c)
	}
	s := q.rev.newState(&in)
	s.quiet = true
	return s.evaluate().Verdict
}

// minimal drops changes, the hardest first, as long as the rest still flips the decision.
func (q *search) minimal(changes []RemedyCode) []RemedyCode {
	for i := len(changes) - 1; i >= 0; i-- {
		fewer := slices.Delete(slices.Clone(changes), i, i+1)
		if q.verdict(fewer).Grants() {
			changes = fewer
		}
	}
	return changes
}

// offerStepUp turns deny into step_up when authentication alone flips it, or into deny with
// step_up_ineffective when that authentication has just been tried.
func (s *state) offerStepUp(d Decision) Decision {
	if !s.authMayHelp(d) {
		return d
	}
	q := search{rev: s.rev, in: *s.in, budget: maxEvaluations}
	set := q.undone(RemedyCode.Authentication)
	if len(set) == 0 || !q.verdict(set).Grants() {
		return s.ineffective(d)
	}
	set = q.minimal(set)
	if slices.ContainsFunc(set, func(r RemedyCode) bool { return slices.Contains(s.in.StepUpTried, r) }) {
		return s.ineffective(d)
	}
	d.Verdict, d.StepUp = VerdictStepUp, set
	return d
}

// ineffective adds the reason when a step-up was tried and the request is still refused.
func (s *state) ineffective(d Decision) Decision {
	if len(s.in.StepUpTried) == 0 {
		return d
	}
	why := append(slices.Clone(d.Reasons), Reason{Code: CodeStepUpIneffective})
	d.Steps = nil
	d.explain(why)
	return d
}

// authMayHelp spares the search where some reason cannot be answered by authentication.
func (s *state) authMayHelp(d Decision) bool {
	if len(s.asked()) > 1 {
		return true // one verb may be a step-up away while another has no rule
	}
	for _, r := range d.Reasons {
		switch r.Code {
		case CodeMFARequired, CodeSessionAge, CodeAuthMethod, CodeIdentityStale, CodeRiskHigh, CodeRiskReduced,
			CodeRuleCondition, CodeForbiddenByRule, CodeDeviceLevel, CodeDeviceScore, CodeDeviceFact:
		default:
			return false
		}
		if stageOf(r.Code) == StageDevice && s.in.Device.Registered {
			return false
		}
		if r.Code == CodeForbiddenByRule && !s.opaqueForbid(r.Detail["rule"]) {
			return false
		}
	}
	return len(d.Reasons) > 0
}

func (s *state) opaqueForbid(id string) bool {
	return slices.ContainsFunc(s.cands, func(c *compiled) bool { return c.id == id && c.opaque })
}

// undone lists the remedies of the fixed list that are wanted and would change the input.
func (q *search) undone(want func(RemedyCode) bool) []RemedyCode {
	s := q.rev.newState(&q.in)
	var out []RemedyCode
	for _, r := range remedyCodes() {
		if want(r) && s.undone(r, q.wait) {
			out = append(out, r)
		}
	}
	return out
}

// justNow is how young an authentication is that doing it again would not change.
const justNow = Duration(time.Second)

func (s *state) undone(r RemedyCode, wait time.Time) bool {
	amr := s.in.Identity.AMR
	switch r {
	case RemedyMFA:
		return !slices.Contains(amr, "mfa") || !s.mfaWithin(justNow)
	case RemedySignIn:
		return !s.sessionWithin(justNow)
	case RemedyStrongKey:
		return !slices.Contains(amr, "hwk") || !s.mfaWithin(justNow)
	case RemedyRegisterDevice:
		return !s.in.Device.Registered
	case RemedyWait:
		return !wait.IsZero()
	}
	return slices.ContainsFunc(remedyFacts(r), func(f trust.FactName) bool { return !s.passes(f) })
}

// Remedies finds minimal sets of changes that would flip a refused decision, the easiest
// first. It costs up to 24 evaluations: call it after the answer is out. It returns nil when
// the request is granted, or when no set of at most three changes flips it.
func (r *Revision) Remedies(in Input) []Remedy {
	if r == nil || in.Validate() != nil {
		return nil
	}
	in = in.normal()
	s := r.newState(&in)
	if s.evaluate().Verdict.Grants() {
		return nil
	}
	q := search{rev: r, in: in, wait: s.nextSchedule(), budget: maxEvaluations}
	var sets [][]RemedyCode
	for _, want := range []func(RemedyCode) bool{RemedyCode.Authentication, notWaiting, anyRemedy} {
		set := q.undone(want)
		if len(set) == 0 || q.budget < len(set)+1 || !q.verdict(set).Grants() {
			continue
		}
		sets = append(sets, q.minimal(set))
		break
	}
	sets = append(sets, q.alternatives(sets)...)
	return q.remedies(sets)
}

func notWaiting(r RemedyCode) bool { return r != RemedyWait }
func anyRemedy(RemedyCode) bool    { return true }

// alternatives tries single changes outside the set already found.
func (q *search) alternatives(found [][]RemedyCode) [][]RemedyCode {
	if len(found) == 0 {
		return nil
	}
	var out [][]RemedyCode
	for _, r := range q.undone(anyRemedy) {
		if slices.Contains(found[0], r) || q.budget <= len(found)+len(out)+1 {
			continue
		}
		if q.verdict([]RemedyCode{r}).Grants() {
			out = append(out, []RemedyCode{r})
		}
	}
	return out
}

func (q *search) remedies(sets [][]RemedyCode) []Remedy {
	var out []Remedy
	for _, set := range sets {
		if len(set) == 0 || len(set) > maxChanges {
			continue
		}
		m := Remedy{Changes: set, Verdict: q.verdict(set)}
		if !m.Verdict.Grants() {
			continue
		}
		if slices.Contains(set, RemedyWait) {
			m.At = q.wait
		}
		if slices.ContainsFunc(set, needsHelp) {
			m.Ask = q.in.App.Owner
		}
		out = append(out, m)
	}
	return out
}

// needsHelp reports whether an employee cannot do it alone.
func needsHelp(r RemedyCode) bool { return r == RemedyEnrolMDM || r == RemedyHardwareDevice }

// nextSchedule is when the first of the schedules in play changes.
func (s *state) nextSchedule() time.Time {
	var at time.Time
	for i, sch := range s.rev.schedules {
		if s.used&(1<<i) != 0 {
			_, until := sch.at(s.in.Time)
			at = trust.First(at, until)
		}
	}
	return at
}
