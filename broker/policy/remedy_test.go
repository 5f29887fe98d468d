package policy_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/broker/trust"
)

func TestRemedies(t *testing.T) {
	type sets = [][]policy.RemedyCode
	for name, c := range map[string]struct {
		rule func(*policy.Rule)
		in   func(*policy.Input)
		want sets
	}{
		"allowed":       {nil, nil, nil},
		"firewall":      {func(r *policy.Rule) { r.Conditions.Facts = []trust.FactName{trust.Firewall} }, func(in *policy.Input) { in.Device.Facts = in.Device.Facts[:2] }, sets{{policy.RemedyFirewall}}},
		"two facts":     {func(r *policy.Rule) { r.Conditions.Facts = []trust.FactName{trust.DiskEncrypted, trust.ScreenLock} }, nil, sets{{policy.RemedyScreenLock, policy.RemedyEncryptDisk}}},
		"level managed": {func(r *policy.Rule) { r.Conditions.MinLevel = 2 }, nil, sets{{policy.RemedyEncryptDisk, policy.RemedyEnrolMDM}}},
		"client too old": {nil, func(in *policy.Input) { in.Device.Facts = pass(trust.OSSupported) },
			sets{{policy.RemedyUpdateClient}}},
		"level compliant needs five": {func(r *policy.Rule) { r.Conditions.MinLevel = 3 }, nil, nil},
		"second factor":              {func(r *policy.Rule) { r.Conditions.MFAMaxAge = policy.Duration(time.Hour) }, nil, sets{{policy.RemedyMFA}, {policy.RemedyStrongKey}}},
		"security key":               {func(r *policy.Rule) { r.Conditions.AuthMethods = []string{"hwk"} }, nil, sets{{policy.RemedyStrongKey}}},
		"session age":                {func(r *policy.Rule) { r.Conditions.SessionMaxAge = policy.Duration(30 * time.Second) }, nil, sets{{policy.RemedySignIn}}},
		"factor and firewall": {func(r *policy.Rule) {
			r.Conditions.MFAMaxAge, r.Conditions.Facts = policy.Duration(time.Hour), []trust.FactName{trust.DiskEncrypted}
		}, nil, sets{{policy.RemedyMFA, policy.RemedyEncryptDisk}}},
		"closed": {func(r *policy.Rule) { r.Conditions.Schedule = "office" }, func(in *policy.Input) {
			in.Time = noon.Add(-5 * time.Hour)
			in.Device.Facts = nil
			in.App.Class = policy.Public
			in.Identity.SignedInAt = in.Time
		}, sets{{policy.RemedyWait}}},
		"no rule":  {nil, func(in *policy.Input) { in.App.ID = "app_pay" }, nil},
		"user off": {nil, func(in *policy.Input) { in.Identity.Disabled = true }, nil},
		"cedar's own": {func(r *policy.Rule) {
			*r = policy.Rule{ID: r.ID, Name: "raw", Cedar: `permit(principal, action, resource) when { context.mfa_within["1h0m0s"] && context.facts.disk_encrypted.state == "pass" };`}
		}, nil, sets{{policy.RemedyMFA, policy.RemedyEncryptDisk}}},
	} {
		t.Run(name, func(t *testing.T) {
			rule, in := allow(1), input()
			if c.rule != nil {
				c.rule(&rule)
			}
			if c.in != nil {
				c.in(&in)
			}
			rev := compile(t, rule)
			d, got := rev.Decide(in), rev.Remedies(in)
			checkSets(t, got, c.want)
			authentication := len(got) > 0 && !slices.ContainsFunc(got[0].Changes, func(r policy.RemedyCode) bool { return !r.Authentication() })
			if (d.Verdict == policy.VerdictStepUp) != authentication {
				t.Errorf("verdict %v with remedies %v: step_up if and only if authentication alone", d.Verdict, got)
			}
			if authentication && !slices.Equal(d.StepUp, got[0].Changes) {
				t.Errorf("step-up %v, remedies %v", d.StepUp, got)
			}
		})
	}
}

func checkSets(t *testing.T, got []policy.Remedy, want [][]policy.RemedyCode) {
	t.Helper()
	var have [][]policy.RemedyCode
	for _, r := range got {
		have = append(have, r.Changes)
		if !r.Verdict.Grants() {
			t.Errorf("remedy %v leads to %v", r.Changes, r.Verdict)
		}
	}
	if !slices.EqualFunc(have, want, slices.Equal[[]policy.RemedyCode]) {
		t.Errorf("remedies %v, want %v", have, want)
	}
}

func TestWaitSaysUntilWhen(t *testing.T) {
	r := allow(1)
	r.Conditions.Schedule = "office"
	in := input()
	in.Time = noon.Add(6 * time.Hour)
	in.App.Class, in.Identity.SignedInAt = policy.Public, in.Time
	got := compile(t, r).Remedies(in)
	want := time.Date(2026, 11, 19, 8, 0, 0, 0, time.UTC)
	if len(got) != 1 || !got[0].At.Equal(want) {
		t.Fatalf("remedies %+v, want to wait until %v", got, want)
	}
	if text := got[0].Text(policy.German); text != "versuchen Sie es wieder um 2026-11-19 08:00 UTC" {
		t.Errorf("text %q", text)
	}
}

func TestEmployeeText(t *testing.T) {
	r := allow(1)
	r.Conditions.Facts = []trust.FactName{trust.MDMEnrolled, trust.Firewall}
	in := input()
	in.Device.Facts = in.Device.Facts[:2]
	rev := compile(t, r)
	d := rev.Decide(in)
	for lang, want := range map[policy.Language]string{
		policy.English: "A check of this device does not pass: firewall on. A check of this device does not pass: managed by the organisation. To get in: turn the firewall on, and have this device enrolled in management. If that does not help, ask Olga.",
		policy.German:  "Eine Prüfung dieses Geräts ist nicht erfüllt: Firewall an. Eine Prüfung dieses Geräts ist nicht erfüllt: von der Organisation verwaltet. So kommen Sie hinein: schalten Sie die Firewall ein, und lassen Sie dieses Gerät in die Verwaltung aufnehmen. Sonst fragen Sie Olga.",
	} {
		if got := policy.EmployeeText(lang, d, rev.Remedies(in), in.App.Owner); got != want {
			t.Errorf("%s: %s", lang, got)
		}
	}
}

// Without a remedy there is no "that" which may not help.
func TestEmployeeTextWithoutRemedy(t *testing.T) {
	d := policy.Decision{Verdict: policy.VerdictDeny, Reasons: []policy.Reason{{Code: policy.CodeNoRule}}}
	for lang, want := range map[policy.Language]string{policy.English: " Ask Olga.", policy.German: " Fragen Sie Olga."} {
		if got := policy.EmployeeText(lang, d, nil, "Olga"); !strings.HasSuffix(got, "."+want) {
			t.Errorf("%s: %s", lang, got)
		}
	}
}

// TestCatalogueIsComplete: every code has its own sentence in both languages.
func TestCatalogueIsComplete(t *testing.T) {
	fallback := policy.Reason{Code: "no_such_code"}
	for _, l := range []policy.Language{policy.English, policy.German} {
		seen := map[string]policy.Code{}
		for _, c := range policy.Codes() {
			s := policy.Reason{Code: c}.Text(l)
			if c != policy.CodeEvaluationError && s == fallback.Text(l) {
				t.Errorf("%s has no sentence in %s", c, l)
			}
			if other, twice := seen[s]; twice || !strings.HasSuffix(s, ".") {
				t.Errorf("%s in %s: %q (also %s)", c, l, s, other)
			}
			seen[s] = c
		}
	}
	if (policy.Reason{Code: policy.CodeNoRule}).Text("xx") != (policy.Reason{Code: policy.CodeNoRule}).Text(policy.English) {
		t.Error("an unknown language is not English")
	}
}
