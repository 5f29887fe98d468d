package policy_test

import (
	"encoding/json"
	"testing"

	"github.com/postern-zt/postern/broker/policy"
)

// FuzzCedarText: no text makes Compile or Decide panic, and what compiles never grants to a
// user who is disabled.
func FuzzCedarText(f *testing.F) {
	for _, s := range []string{
		`permit(principal, action, resource);`,
		`@max_flows("3") forbid(principal in Group::"g", action, resource) unless { context.facts.firewall.state == "pass" };`,
		`permit(principal, action, resource) when { [1, {a: 2}].contains(context.risk) };`,
		`permit(principal, action, resource) when { if context has source then context.source == ip("::1") else 9223372036854775807 + 1 > 2 };`,
		`permit(principal == ?principal, action, resource);`, `permit`, "((((", `"\u{110000}"`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		doc := policy.NewDocument()
		doc.Rules = []policy.Rule{{ID: rid(1), Name: "fuzz", Cedar: text}}
		rev, err := policy.Compile(policy.Meta{}, doc)
		if err != nil || text == "" {
			return
		}
		in := input()
		rev.Decide(in)
		rev.Remedies(in)
		in.Identity.Disabled = true
		if rev.Decide(in).Verdict.Grants() {
			t.Error("a disabled user gets in")
		}
	})
}

// FuzzRuleJSON: no rule makes Compile or Decide panic; what decodes encodes and decodes again.
func FuzzRuleJSON(f *testing.F) {
	r := allow(1)
	r.Conditions.Attributes = test("user", "a", policy.In, policy.List("x"))
	seed, err := json.Marshal(r)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte(`{"id":"rul_00000000000000000000000001","name":"x","cedar":"permit(principal, action, resource);"}`))
	f.Add([]byte(`{"conditions":{"mfa_max_age":"1h","attributes":[{"of":"user","operator":"contains","value":[1]}]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := policy.DecodeRule(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatalf("encode: %v", err)
		}
		if _, err := policy.DecodeRule(again); err != nil {
			t.Fatalf("decode again: %v", err)
		}
		doc := policy.NewDocument()
		doc.Rules = []policy.Rule{r}
		if rev, err := policy.Compile(policy.Meta{}, doc); err == nil {
			rev.Decide(input())
		}
	})
}

// FuzzInput: what decodes has a canonical form that decodes to itself and to the same decision.
func FuzzInput(f *testing.F) {
	seed, err := input().Canonical()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte(`{"version":1,"time":"2026-11-18T12:00:00Z"}`))
	f.Add([]byte(`{"version":1,"identity":{"attributes":{"a":[]}}}`))
	rev := compile(f, allow(1))
	f.Fuzz(func(t *testing.T, b []byte) {
		in, err := policy.DecodeInput(b)
		if err != nil {
			return
		}
		canonical, err := in.Canonical()
		if err != nil {
			t.Fatalf("no canonical form: %v", err)
		}
		again, err := policy.DecodeInput(canonical)
		if err != nil {
			t.Fatalf("canonical form does not decode: %v\n%s", err, canonical)
		}
		twice, err := again.Canonical()
		if err != nil || string(twice) != string(canonical) {
			t.Errorf("canonical form is not stable: %v\n%s\n%s", err, canonical, twice)
		}
		if a, b := rev.Decide(in), rev.Decide(again); !a.Equal(b) {
			t.Errorf("decided %v, then %v", a, b)
		}
	})
}
