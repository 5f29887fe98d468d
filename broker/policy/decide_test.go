package policy_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/broker/trust"
	"github.com/postern-zt/postern/proto/ids"
)

func TestEmptyPolicyDenies(t *testing.T) {
	d := compile(t).Decide(input())
	if d.Verdict != policy.VerdictDeny || !has(d, policy.CodeNoRule) {
		t.Errorf("empty policy: %v %v, want deny no_rule", d.Verdict, d.Reasons)
	}
	var none *policy.Revision
	if d := none.Decide(input()); d.Verdict != policy.VerdictDeny || !has(d, policy.CodeNoPolicy) {
		t.Errorf("no revision: %v %v, want deny no_policy", d.Verdict, d.Reasons)
	}
	if d := (policy.Decision{}); d.Verdict.Grants() || d.Verdict.String() != "deny" || policy.Verdict(99).Grants() || policy.Verdict(99).String() != "deny" {
		t.Error("the zero or an unknown verdict grants")
	}
}

// TestStagesDeny has one case per way in which a request that is otherwise allowed must fail.
func TestStagesDeny(t *testing.T) {
	rev := compile(t, allow(1))
	if d := rev.Decide(input()); d.Verdict != policy.VerdictAllow || !has(d, policy.CodeAllowed) {
		t.Fatalf("the base request: %v %v, want allow", d.Verdict, d.Reasons)
	}
	for name, c := range map[string]struct {
		change func(*policy.Input)
		want   policy.Code
		stage  policy.Stage
	}{
		"no user":             {func(in *policy.Input) { in.Identity.User = "" }, policy.CodeIdentityUnverified, policy.StageIdentity},
		"no session":          {func(in *policy.Input) { in.Identity.Session = "" }, policy.CodeIdentityUnverified, policy.StageIdentity},
		"disabled":            {func(in *policy.Input) { in.Identity.Disabled = true }, policy.CodeUserDisabled, policy.StageIdentity},
		"revoked":             {func(in *policy.Input) { in.Identity.SessionRevoked = true }, policy.CodeSessionRevoked, policy.StageIdentity},
		"no device":           {func(in *policy.Input) { in.Device.ID = "" }, policy.CodeDeviceUnregistered, policy.StageDevice},
		"blocked device":      {func(in *policy.Input) { in.Device.Blocked = true }, policy.CodeDeviceBlocked, policy.StageDevice},
		"facts missing":       {func(in *policy.Input) { in.Device.Facts = nil }, policy.CodeDeviceLevel, policy.StageDevice},
		"facts expired":       {func(in *policy.Input) { in.Time = in.Time.Add(5 * time.Minute) }, policy.CodeDeviceLevel, policy.StageDevice},
		"app off":             {func(in *policy.Input) { in.App.Disabled = true }, policy.CodeAppDisabled, policy.StagePolicy},
		"other app":           {func(in *policy.Input) { in.App.ID = "app_pay" }, policy.CodeNoRule, policy.StagePolicy},
		"app wants level 3":   {func(in *policy.Input) { in.App.MinLevel = 3 }, policy.CodeDeviceLevel, policy.StageDevice},
		"app wants a score":   {func(in *policy.Input) { in.App.MinScore = 75 }, policy.CodeDeviceScore, policy.StageDevice},
		"verb not known":      {func(in *policy.Input) { in.Verbs = []policy.Verb{policy.HTTPWrite} }, policy.CodeVerbUnknown, policy.StagePolicy},
		"verb of no language": {func(in *policy.Input) { in.Verbs = []policy.Verb{"delete"} }, policy.CodeInvalidInput, policy.StagePolicy},
		"class unknown":       {func(in *policy.Input) { in.App.Class = "secret" }, policy.CodeInvalidInput, policy.StagePolicy},
		"class missing":       {func(in *policy.Input) { in.App.Class = "" }, policy.CodeInvalidInput, policy.StagePolicy},
		"risk below zero":     {func(in *policy.Input) { in.Risk.Score = -1 }, policy.CodeInvalidInput, policy.StagePolicy},
		"risk above hundred":  {func(in *policy.Input) { in.Risk.Score = 101 }, policy.CodeInvalidInput, policy.StagePolicy},
		"critical risk":       {func(in *policy.Input) { in.Risk.Score = 90 }, policy.CodeRiskCritical, policy.StageRisk},
		"version unknown":     {func(in *policy.Input) { in.Version = 2 }, policy.CodeInvalidInput, policy.StagePolicy},
		"no time":             {func(in *policy.Input) { in.Time = time.Time{} }, policy.CodeInvalidInput, policy.StagePolicy},
		"limited unknown":     {func(in *policy.Input) { in.App.Limited = "some" }, policy.CodeInvalidInput, policy.StagePolicy},
		"a fact twice":        {func(in *policy.Input) { in.Device.Facts = append(known(), known()...) }, policy.CodeInvalidInput, policy.StagePolicy},
		"too many groups":     {func(in *policy.Input) { in.Identity.Groups = make([]ids.GroupID, 5000) }, policy.CodeInvalidInput, policy.StagePolicy},
		"stale too long":      {func(in *policy.Input) { in.Identity.IdentityStale = noon.Add(-15 * time.Minute) }, policy.CodeIdentityStale, policy.StageIdentity},
		"sign-in from ahead":  {func(in *policy.Input) { in.Identity.SignedInAt = noon.Add(time.Hour) }, policy.CodeSessionAge, policy.StageIdentity},
		"old session":         {func(in *policy.Input) { in.Identity.SignedInAt = noon.Add(-24 * time.Hour) }, policy.CodeSessionAge, policy.StageIdentity},
	} {
		t.Run(name, func(t *testing.T) {
			in := input()
			in.Device.Facts = known()
			c.change(&in)
			d := rev.Decide(in)
			if d.Verdict.Grants() || !has(d, c.want) || len(d.Verbs) != 0 || d.Terms != (policy.Terms{}) {
				t.Errorf("%v %v, want a refusal with %s and nothing granted", d.Verdict, d.Reasons, c.want)
			}
			for _, step := range d.Steps {
				if step.Stage == c.stage && step.OK {
					t.Errorf("stage %s is ok, want it to show %s", c.stage, c.want)
				}
			}
			if d.ReEvaluateAt.IsZero() && !in.Time.IsZero() {
				t.Error("no time for re-evaluation")
			}
		})
	}
}

func TestStepsAreInOrder(t *testing.T) {
	t.Run("I9/order", func(t *testing.T) {
		var got []policy.Stage
		for _, s := range compile(t, allow(1)).Decide(input()).Steps {
			got = append(got, s.Stage)
		}
		want := []policy.Stage{"identity", "device", "context", "risk", "policy"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("steps, -want +got:\n%s", diff)
		}
	})
}

// TestForbidThatFailsDenies: Cedar skips a forbid that does not evaluate; we deny.
func TestForbidThatFailsDenies(t *testing.T) {
	for name, text := range map[string]string{
		"forbid": `forbid(principal, action, resource) when { 9223372036854775807 + context.risk > 5 };`,
		"permit": `permit(principal, action, resource) when { 9223372036854775807 + context.risk > 5 };`,
	} {
		t.Run(name, func(t *testing.T) {
			rev := compile(t, allow(1), policy.Rule{ID: rid(2), Name: "overflow", Cedar: text})
			in := input()
			if d := rev.Decide(in); has(d, policy.CodeEvaluationError) || d.Verdict.Grants() != (name == "permit") {
				t.Fatalf("without the overflow: %v %v", d.Verdict, d.Reasons)
			}
			in.Risk.Score = 1 // one more than the largest number
			d := rev.Decide(in)
			if d.Verdict != policy.VerdictDeny || !has(d, policy.CodeEvaluationError) {
				t.Errorf("%v %v, want deny evaluation_error", d.Verdict, d.Reasons)
			}
			if rev.Remedies(in) != nil {
				t.Error("an evaluation error has a remedy")
			}
		})
	}
}

func TestForbidWinsWhateverTheOrder(t *testing.T) {
	deny := allow(2)
	deny.Effect = policy.Deny
	for _, rules := range [][]policy.Rule{{allow(1), deny}, {deny, allow(1)}} {
		d := compile(t, rules...).Decide(input())
		if d.Verdict != policy.VerdictDeny || !has(d, policy.CodeForbiddenByRule) || !slices.Equal(d.Determining, []string{string(rid(2))}) {
			t.Errorf("%v %v by %v, want deny forbidden_by_rule by rule 2", d.Verdict, d.Reasons, d.Determining)
		}
	}
}

func TestDenyRuleAppliesUnlessFactPasses(t *testing.T) {
	deny := allow(2)
	deny.Effect, deny.Conditions.Facts = policy.Deny, []trust.FactName{trust.DiskEncrypted}
	rev := compile(t, allow(1), deny)
	for name, c := range map[string]struct {
		facts []trust.View
		want  policy.Verdict
	}{
		"pass":    {append(known(), pass(trust.DiskEncrypted)...), policy.VerdictAllow},
		"missing": {known(), policy.VerdictDeny},
		"unknown": {append(known(), trust.View{Name: trust.DiskEncrypted}), policy.VerdictDeny},
		"fail":    {append(known(), trust.View{Name: trust.DiskEncrypted, State: trust.StateFail}), policy.VerdictDeny},
		"strange": {append(known(), trust.View{Name: trust.DiskEncrypted, State: 77}), policy.VerdictDeny},
		"grace": {append(known(), trust.View{Name: trust.DiskEncrypted, State: trust.StatePassInGrace, GraceUntil: noon.Add(time.Minute)}),
			policy.VerdictAllow},
		"grace over": {append(known(), trust.View{Name: trust.DiskEncrypted, State: trust.StatePassInGrace, GraceUntil: noon}), policy.VerdictDeny},
	} {
		t.Run(name, func(t *testing.T) {
			in := input()
			in.Device.Facts = c.facts
			d := rev.Decide(in)
			if d.Verdict != c.want {
				t.Errorf("%v %v, want %v", d.Verdict, d.Reasons, c.want)
			}
			if name == "grace" && !d.ReEvaluateAt.Equal(noon.Add(time.Minute)) {
				t.Errorf("re-evaluate at %v, want the end of the grace", d.ReEvaluateAt)
			}
		})
	}
}

// TestUnregisteredIsAskedToRegister covers requirements I10 and I11.
func TestUnregisteredIsAskedToRegister(t *testing.T) {
	rev := compile(t, allow(1))
	t.Run("I10/unmanaged device steps up", func(t *testing.T) {
		in := input()
		in.Device.Registered = false
		d := rev.Decide(in)
		if d.Verdict != policy.VerdictStepUp || !slices.Equal(d.StepUp, []policy.RemedyCode{policy.RemedyRegisterDevice}) || d.Level != 0 || d.Score != 0 {
			t.Errorf("%v %v level %d score %d", d.Verdict, d.StepUp, d.Level, d.Score)
		}
	})
	t.Run("I11/non-compliant device is denied with its checks", func(t *testing.T) {
		rule := allow(1)
		rule.Conditions.Facts = []trust.FactName{trust.DiskEncrypted, trust.ScreenLock}
		d := compile(t, rule).Decide(input())
		if d.Verdict != policy.VerdictDeny || !has(d, policy.CodeDeviceFact) || len(d.Reasons) != 2 {
			t.Errorf("%v %v, want deny naming both checks", d.Verdict, d.Reasons)
		}
	})
}

func TestGroupsIncomplete(t *testing.T) {
	deny := allow(2)
	deny.Effect, deny.Who = policy.Deny, policy.Who{Groups: []ids.GroupID{"grp_contractors"}}
	raw := policy.Rule{ID: rid(2), Name: "raw", Cedar: `forbid(principal in Group::"grp_contractors", action, resource == App::"app_wiki");`}
	for name, rule := range map[string]policy.Rule{"form": deny, "cedar": raw} {
		t.Run(name, func(t *testing.T) {
			rev := compile(t, allow(1), rule)
			in := input()
			if d := rev.Decide(in); d.Verdict != policy.VerdictAllow {
				t.Errorf("not a contractor: %v %v, want allow", d.Verdict, d.Reasons)
			}
			in.Identity.GroupsIncomplete = true
			if d := rev.Decide(in); d.Verdict != policy.VerdictDeny || !has(d, policy.CodeGroupsIncomplete) {
				t.Errorf("perhaps a contractor: %v %v, want deny groups_incomplete", d.Verdict, d.Reasons)
			}
			in.Identity.Groups, in.Identity.GroupsIncomplete = []ids.GroupID{"grp_contractors"}, false
			if d := rev.Decide(in); d.Verdict != policy.VerdictDeny || !has(d, policy.CodeForbiddenByRule) {
				t.Errorf("a contractor: %v %v, want deny forbidden_by_rule", d.Verdict, d.Reasons)
			}
		})
	}
}

func TestNoRuleWeakensTheBaseline(t *testing.T) {
	raw := policy.Rule{ID: rid(2), Name: "everything", Cedar: `permit(principal, action, resource);`}
	rev := compile(t, allow(1), raw)
	for class, facts := range map[policy.Class][]trust.View{policy.Internal: nil, policy.Confidential: known(), policy.Restricted: managed()} {
		in := input()
		in.App.Class, in.Device.Facts, in.Identity.AMR = class, facts, []string{"mfa"}
		if d := rev.Decide(in); d.Verdict.Grants() || !has(d, policy.CodeDeviceLevel) {
			t.Errorf("%s below its level: %v %v", class, d.Verdict, d.Reasons)
		}
	}
	in := input()
	in.App.Class, in.Device.Facts, in.Identity.AMR = policy.Restricted, compliant(), []string{"pwd", "mfa"}
	if d := rev.Decide(in); d.Verdict != policy.VerdictAllow {
		t.Errorf("restricted with everything it asks for: %v %v", d.Verdict, d.Reasons)
	}
	in.Identity.AMR = []string{"pwd"}
	if d := rev.Decide(in); d.Verdict != policy.VerdictStepUp || !slices.Equal(d.StepUp, []policy.RemedyCode{policy.RemedyMFA}) {
		t.Errorf("restricted without a second factor: %v %v %v, want step_up mfa", d.Verdict, d.StepUp, d.Reasons)
	}
}

func TestLimitedVerbs(t *testing.T) {
	t.Run("I24/deny overrides permit", func(t *testing.T) {
		read := allow(1)
		deny := allow(2)
		deny.Effect, deny.Verbs = policy.Deny, []policy.Verb{policy.HTTPWrite}
		deny.Conditions.Attributes = []policy.AttributeTest{{Of: policy.OfUser, Attribute: "clearance", Operator: policy.LessThan, Value: policy.Text("level3")}}
		rev := compile(t, read, deny)
		in := input()
		in.App.Verbs = []policy.Verb{policy.HTTPRead, policy.HTTPWrite}
		for clearance, want := range map[string]policy.Verdict{"level1": policy.VerdictLimited, "level2": policy.VerdictLimited,
			"level3": policy.VerdictAllow, "nonsense": policy.VerdictLimited, "": policy.VerdictLimited} {
			in.Identity.Attributes = map[string]policy.Value{"clearance": policy.Text(clearance)}
			if clearance == "" {
				in.Identity.Attributes = nil
			}
			d := rev.Decide(in)
			if d.Verdict != want {
				t.Errorf("clearance %q: %v %v, want %v", clearance, d.Verdict, d.Reasons, want)
			}
			if want == policy.VerdictLimited && !slices.Equal(d.Verbs, []policy.Verb{policy.HTTPRead}) {
				t.Errorf("clearance %q: verbs %v, want read alone", clearance, d.Verbs)
			}
		}
	})
}

func TestRiskReducesStepsUpTerminates(t *testing.T) {
	rev := compile(t, allow(1))
	for name, c := range map[string]struct {
		risk    int
		amr     string
		limited policy.LimitedMode
		verbs   []policy.Verb
		want    policy.Verdict
	}{
		"C7/reduced to the least verb":      {50, "pwd", "", []policy.Verb{policy.HTTPRead, policy.HTTPWrite}, policy.VerdictLimited},
		"C7/raw with a rate":                {50, "pwd", policy.LimitedRate, nil, policy.VerdictLimited},
		"C7/raw asks for a step-up":         {50, "pwd", "", nil, policy.VerdictStepUp},
		"C7/below the limit":                {49, "pwd", "", nil, policy.VerdictAllow},
		"C6/high asks for a step-up":        {70, "pwd", policy.LimitedRate, nil, policy.VerdictStepUp},
		"C6/high with a fresh factor":       {70, "mfa", "", nil, policy.VerdictAllow},
		"C5/critical ends it":               {90, "mfa", policy.LimitedRate, nil, policy.VerdictDeny},
		"C5/critical, whatever the factors": {100, "hwk", "", nil, policy.VerdictDeny},
	} {
		t.Run(name, func(t *testing.T) {
			in := input()
			in.Risk.Score, in.Identity.AMR, in.App.Limited, in.App.Verbs = c.risk, []string{c.amr}, c.limited, c.verbs
			d := rev.Decide(in)
			if d.Verdict != c.want {
				t.Errorf("%v %v, want %v", d.Verdict, d.Reasons, c.want)
			}
			if d.Verdict == policy.VerdictLimited && c.verbs == nil && d.Terms.RateKbps == 0 {
				t.Error("limited without a rate")
			}
		})
	}
}

func TestObligationsStrictestWins(t *testing.T) {
	a, b := allow(1), allow(2)
	a.Obligations = policy.Obligations{MaxFlows: 10, HardEnd: policy.Duration(time.Hour)}
	b.Obligations = policy.Obligations{MaxFlows: 20, RateKbps: 500, Idle: policy.Duration(time.Minute)}
	raw := policy.Rule{ID: rid(3), Name: "raw", Cedar: `@re_verify("30s") @max_flows("7") permit(principal, action, resource);`}
	d := compile(t, a, b, raw).Decide(input())
	got := d.Terms
	if got.MaxFlows != 7 || got.RateKbps != 500 || got.Idle != policy.Duration(time.Minute) || !got.HardEnd.Equal(noon.Add(time.Hour)) ||
		got.ReVerify != policy.Duration(30*time.Second) || got.Lease != policy.Duration(time.Minute) || got.Outage != policy.OutageContinue {
		t.Errorf("terms = %+v", got)
	}
	if !d.ReEvaluateAt.Equal(noon.Add(30 * time.Second)) {
		t.Errorf("re-evaluate at %v, want after the re-verify interval", d.ReEvaluateAt)
	}
}

func TestRuleExpires(t *testing.T) {
	r := allow(1)
	r.ExpiresAt = noon.Add(time.Minute)
	rev := compile(t, r)
	d := rev.Decide(input())
	if d.Verdict != policy.VerdictAllow || !d.ReEvaluateAt.Equal(r.ExpiresAt) {
		t.Errorf("before: %v, again at %v, want allow until %v", d.Verdict, d.ReEvaluateAt, r.ExpiresAt)
	}
	in := input()
	in.Time = r.ExpiresAt
	if d := rev.Decide(in); d.Verdict != policy.VerdictDeny || !has(d, policy.CodeNoRule) {
		t.Errorf("at its end: %v %v, want deny", d.Verdict, d.Reasons)
	}
}

func TestStepUpIneffective(t *testing.T) {
	r := allow(1)
	r.Conditions.MFAMaxAge = policy.Duration(time.Hour)
	rev := compile(t, r)
	in := input()
	d := rev.Decide(in)
	if d.Verdict != policy.VerdictStepUp || !slices.Equal(d.StepUp, []policy.RemedyCode{policy.RemedyMFA}) {
		t.Fatalf("%v %v, want step_up mfa", d.Verdict, d.StepUp)
	}
	in.StepUpTried = d.StepUp // the issuer did not say that there was a second factor
	d = rev.Decide(in)
	if d.Verdict != policy.VerdictDeny || !has(d, policy.CodeStepUpIneffective) || !has(d, policy.CodeMFARequired) {
		t.Errorf("after a step-up without effect: %v %v", d.Verdict, d.Reasons)
	}
	in.Identity.AMR = []string{"pwd", "otp", "mfa"}
	if d := rev.Decide(in); d.Verdict != policy.VerdictAllow {
		t.Errorf("after a step-up with effect: %v %v", d.Verdict, d.Reasons)
	}
}

func TestEndOfAgeLimits(t *testing.T) {
	t.Run("C1/session max age", func(t *testing.T) {
		r := allow(1)
		r.Conditions.SessionMaxAge = policy.Duration(3 * time.Minute)
		rev := compile(t, r)
		in := input()
		d := rev.Decide(in)
		if want := in.Identity.SignedInAt.Add(3 * time.Minute); d.Verdict != policy.VerdictAllow || !d.ReEvaluateAt.Equal(want) {
			t.Errorf("%v, again at %v, want allow until %v", d.Verdict, d.ReEvaluateAt, want)
		}
		in.Time = d.ReEvaluateAt
		if d := rev.Decide(in); d.Verdict.Grants() || !has(d, policy.CodeSessionAge) {
			t.Errorf("at the limit: %v %v, want session_age", d.Verdict, d.Reasons)
		}
	})
	t.Run("C4/re-verify is a ceiling", func(t *testing.T) {
		in := input()
		in.Device.Facts = nil
		in.App.Class = policy.Public
		d := compile(t, allow(1)).Decide(in)
		if d.Verdict != policy.VerdictAllow || d.ReEvaluateAt.After(noon.Add(5*time.Minute)) {
			t.Errorf("%v %v, again at %v, want within 5 min", d.Verdict, d.Reasons, d.ReEvaluateAt)
		}
	})
}
