package policy

import (
	"slices"
	"strings"
	"time"

	cedar "github.com/cedar-policy/cedar-go"

	"github.com/postern-zt/postern/broker/trust"
)

// outcome is what Cedar said about one verb.
type outcome struct {
	verb    Verb
	allowed bool
	matched []*compiled // permits when allowed; forbids when forbidden; else none
	failed  bool        // a policy did not evaluate
}

// Decide answers a request. It never fails: what it cannot decide it denies, with the reason.
func (r *Revision) Decide(in Input) Decision {
	if r == nil {
		return refuse(in.Time, Reason{Code: CodeNoPolicy})
	}
	if err := in.Validate(); err != nil {
		return refuse(in.Time, Reason{Code: CodeInvalidInput, Detail: map[string]string{"error": err.Error()}})
	}
	in = in.normal()
	s := r.newState(&in)
	d := s.evaluate()
	if d.Verdict == VerdictDeny {
		d = s.offerStepUp(d)
	}
	return d
}

// refuse is the answer where there is nothing to evaluate.
func refuse(now time.Time, why ...Reason) Decision {
	d := Decision{ReEvaluateAt: now.Add(time.Minute)}
	d.explain(why)
	return d
}

// evaluate runs the stages: what stops a request by itself, then Cedar, then risk.
func (s *state) evaluate() Decision {
	d := Decision{Level: s.trust.Level, Score: s.trust.Score, Facts: s.countedFacts(), ReEvaluateAt: s.reEvaluateAt()}
	if stops := s.hardStops(); len(stops) > 0 {
		d.explain(stops)
		return d
	}
	outcomes, err := s.authorize()
	if err != nil {
		d.explain([]Reason{{Code: CodeEvaluationError, Detail: map[string]string{"error": err.Error()}}})
		return d
	}
	if why := failures(outcomes); why != nil {
		d.explain(why)
		return d
	}
	s.settle(&d, outcomes)
	return d
}

// countedFacts lists the facts as they read at the time of the decision.
func (s *state) countedFacts() []trust.View {
	out := make([]trust.View, len(s.in.Device.Facts))
	for i, f := range s.in.Device.Facts {
		out[i] = f.At(s.in.Time)
	}
	return out
}

// reEvaluateAt is the first moment at which time alone may change the answer.
func (s *state) reEvaluateAt() time.Time {
	if !s.end.After(s.in.Time) {
		return s.in.Time.Add(time.Second)
	}
	return s.end
}

// hardStops are the reasons that need no policy.
func (s *state) hardStops() []Reason {
	var out []Reason
	stop := func(is bool, c Code) {
		if is {
			out = append(out, Reason{Code: c})
		}
	}
	in := s.in
	stop(in.Identity.User == "" || in.Identity.Session == "", CodeIdentityUnverified)
	stop(in.Identity.Disabled, CodeUserDisabled)
	stop(in.Identity.SessionRevoked, CodeSessionRevoked)
	stop(in.Device.ID == "", CodeDeviceUnregistered)
	stop(in.Device.Blocked, CodeDeviceBlocked)
	stop(in.App.Disabled, CodeAppDisabled)
	for _, v := range in.Verbs {
		stop(!slices.Contains(in.App.verbs(), v), CodeVerbUnknown)
	}
	return out
}

// verbs is what the app knows.
func (a *App) verbs() []Verb {
	if len(a.Verbs) == 0 {
		return []Verb{Connect}
	}
	return a.Verbs
}

// asked is what the request wants, least verb first.
func (s *state) asked() []Verb {
	want := s.in.Verbs
	if len(want) == 0 {
		want = s.in.App.verbs()
	}
	var out []Verb
	for _, v := range Verbs() {
		if slices.Contains(want, v) {
			out = append(out, v)
		}
	}
	return out
}

// authorize asks Cedar about each verb.
func (s *state) authorize() ([]outcome, error) {
	entities, err := s.entities()
	if err != nil {
		return nil, err
	}
	req := cedar.Request{Principal: uid(typeUser, s.in.Identity.User), Resource: uid(typeApp, s.in.App.ID), Context: s.context()}
	var out []outcome
	for _, v := range s.asked() {
		req.Action = uid(typeAction, v)
		if len(out) == 0 { // the verbs share one context type: once is enough
			if err := s.rev.validator.Request(req); err != nil {
				return nil, err
			}
		}
		ok, diag := cedar.Authorize(forVerb{s.cands, verbMask([]Verb{v})}, entities, req)
		out = append(out, s.outcome(v, ok == cedar.Allow, diag))
	}
	return out, nil
}

func (s *state) outcome(v Verb, allowed bool, diag cedar.Diagnostic) outcome {
	o := outcome{verb: v, allowed: allowed && len(diag.Errors) == 0, failed: len(diag.Errors) > 0}
	hit := make(map[string]bool, len(diag.Reasons)+len(diag.Errors))
	for _, reason := range diag.Reasons {
		hit[string(reason.PolicyID)] = true
	}
	if o.failed {
		clear(hit)
		for _, e := range diag.Errors {
			hit[string(e.PolicyID)] = true
		}
	}
	for _, c := range s.cands {
		if hit[c.id] {
			o.matched = append(o.matched, c)
		}
	}
	return o
}

// failures: Cedar skips a forbid that does not evaluate, so any error denies everything.
func failures(outcomes []outcome) []Reason {
	var out []Reason
	for _, o := range outcomes {
		if !o.failed {
			continue
		}
		for _, c := range o.matched {
			out = append(out, Reason{Code: CodeEvaluationError, Detail: map[string]string{"rule": c.id}})
		}
		if len(o.matched) == 0 {
			out = append(out, Reason{Code: CodeEvaluationError})
		}
	}
	return out
}

// settle turns the outcomes into the verdict.
func (s *state) settle(d *Decision, outcomes []outcome) {
	var why []Reason
	var matched []*compiled
	for _, o := range outcomes {
		if o.allowed {
			d.Verbs = append(d.Verbs, o.verb)
			matched = append(matched, o.matched...)
		} else if !s.quiet {
			why = append(why, s.whyNot(o)...)
		}
	}
	if len(d.Verbs) == 0 {
		for _, o := range outcomes {
			matched = append(matched, o.matched...)
		}
	}
	d.Determining = names(matched)
	rate := 0
	if len(d.Verbs) > 0 {
		why, rate = s.reduce(d, why)
	}
	d.Verdict = verdict(len(d.Verbs), len(outcomes), rate)
	if d.Verdict.Grants() {
		d.Terms = s.terms(matched, rate)
		d.ReEvaluateAt = trust.First(d.ReEvaluateAt, d.Terms.HardEnd)
		d.ReEvaluateAt = trust.First(d.ReEvaluateAt, s.in.Time.Add(time.Duration(d.Terms.ReVerify)))
	}
	d.explain(why)
}

func verdict(granted, asked, rate int) Verdict {
	switch {
	case granted == 0:
		return VerdictDeny
	case granted < asked || rate > 0:
		return VerdictLimited
	default:
		return VerdictAllow
	}
}

// limitedRateKbps is what an app with one verb gets under raised risk when it says "rate".
const limitedRateKbps = 1000

// reduce answers a raised risk that no fresh second factor answers: the app's least verb
// only; an app with one verb gives a rate or asks for a step-up, as it says.
func (s *state) reduce(d *Decision, why []Reason) ([]Reason, int) {
	if s.in.Risk.Score < s.row.RiskReduce || s.mfaWithin(riskStepUpMFA) {
		return why, 0
	}
	why = append(why, Reason{Code: CodeRiskReduced})
	known := s.in.App.verbs()
	switch {
	case len(known) == 1 && s.in.App.Limited == LimitedRate:
		return why, limitedRateKbps
	case len(known) == 1:
		d.Verbs = nil
	default:
		least := leastVerb(known)
		d.Verbs = slices.DeleteFunc(d.Verbs, func(v Verb) bool { return v != least })
	}
	return why, 0
}

func leastVerb(known []Verb) Verb {
	for _, v := range Verbs() {
		if slices.Contains(known, v) {
			return v
		}
	}
	return Connect
}

// terms joins the class's row with the obligations of everything that permitted: the
// strictest of each.
func (s *state) terms(matched []*compiled, rate int) Terms {
	row := s.row
	t := Terms{Lease: row.Lease, Outage: row.Outage, OutageFor: row.OutageFor, Idle: row.Idle, ReVerify: row.ReVerify,
		MaxFlows: row.MaxFlows, OpenRate: row.OpenRate, RateKbps: rate, BrowserDoor: row.BrowserDoor, PlainWireGuard: row.PlainWireGuard}
	end := row.HardEnd
	for _, c := range matched {
		o := c.obliges
		end, t.Idle, t.ReVerify, t.Lease = strict2(end, o.HardEnd), strict2(t.Idle, o.Idle), strict2(t.ReVerify, o.ReVerify), strict2(t.Lease, o.Lease)
		t.MaxFlows, t.OpenRate, t.RateKbps = strict2(t.MaxFlows, o.MaxFlows), strict2(t.OpenRate, o.OpenRate), strict2(t.RateKbps, o.RateKbps)
	}
	t.HardEnd = s.hardEnd(end)
	return t
}

// strict2 returns the smaller of two limits where zero means no limit.
func strict2[N ~int | ~int64](a, b N) N {
	if a == 0 || (b != 0 && b < a) {
		return b
	}
	return a
}

// hardEnd ends a grant no later than the session's age limit.
func (s *state) hardEnd(after Duration) time.Time {
	end := s.in.Time.Add(time.Duration(after))
	session := s.in.Identity.SignedInAt.Add(time.Duration(s.row.SessionMaxAge))
	return trust.First(end, session)
}

func names(list []*compiled) []string {
	var out []string
	for _, c := range list {
		out = append(out, c.id)
	}
	return sorted(out)
}

// explain files the reasons under their stages, in a fixed order.
func (d *Decision) explain(why []Reason) {
	slices.SortFunc(why, compareReasons)
	why = slices.CompactFunc(why, func(a, b Reason) bool { return compareReasons(a, b) == 0 })
	for _, stage := range Stages() {
		step := Step{Stage: stage, OK: true}
		for _, w := range why {
			if stageOf(w.Code) == stage {
				step.OK, step.Reasons = false, append(step.Reasons, w)
			}
		}
		d.Steps = append(d.Steps, step)
	}
	if len(why) == 0 && d.Verdict == VerdictAllow {
		why = []Reason{{Code: CodeAllowed}}
	}
	d.Reasons = why
}

func compareReasons(a, b Reason) int {
	x, y := slices.Index(Stages(), stageOf(a.Code)), slices.Index(Stages(), stageOf(b.Code))
	if x != y {
		return x - y
	}
	if c := strings.Compare(string(a.Code), string(b.Code)); c != 0 {
		return c
	}
	return strings.Compare(detailText(a.Detail), detailText(b.Detail))
}
