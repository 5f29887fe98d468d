package policy_test

import (
	"slices"
	"testing"

	"github.com/postern-zt/postern/broker/policy"
)

// TestWhatCountsAsTwoFactors: one method, however strong, is one factor; the remedies still
// lead to a grant.
func TestWhatCountsAsTwoFactors(t *testing.T) {
	for _, c := range []struct {
		amr  []string
		want bool
	}{
		{nil, false},
		{[]string{"pwd"}, false},
		{[]string{"otp"}, false},
		{[]string{"hwk"}, false},
		{[]string{"swk"}, false},
		{[]string{"sc"}, false},
		{[]string{"fpt"}, false},
		{[]string{"pwd", "pin"}, false},
		{[]string{"otp", "hwk", "sc"}, false},
		{[]string{"pwd", "rba", "wia"}, false},
		{[]string{"pwd", "unheard of"}, false},
		{[]string{"mfa"}, true},
		{[]string{"pwd", "otp"}, true},
		{[]string{"hwk", "pin"}, true},
		{[]string{"face", "swk"}, true},
		{[]string{"pwd", "fpt"}, true},
	} {
		in := input()
		in.App.Class, in.Device.Facts, in.Identity.AMR = policy.Restricted, compliant(), c.amr
		rev := compile(t, allow(1))
		d := rev.Decide(in)
		if got := d.Verdict.Grants(); got != c.want {
			t.Errorf("amr %v: %v, want grant %v", c.amr, d.Verdict, c.want)
		}
		if !c.want && (d.Verdict != policy.VerdictStepUp || !slices.Equal(d.StepUp, []policy.RemedyCode{policy.RemedyMFA})) {
			t.Errorf("amr %v: %v %v, want step_up by mfa", c.amr, d.Verdict, d.StepUp)
		}
	}
}

func TestAStrongKeyIsASecondFactor(t *testing.T) {
	rule := allow(1)
	rule.Conditions.AuthMethods = []string{"hwk"}
	in := input()
	in.App.Class, in.Device.Facts = policy.Restricted, compliant()
	d := compile(t, rule).Decide(in)
	if d.Verdict != policy.VerdictStepUp || !slices.Equal(d.StepUp, []policy.RemedyCode{policy.RemedyStrongKey}) {
		t.Errorf("%v %v %v, want step_up by a security key", d.Verdict, d.StepUp, d.Reasons)
	}
}
