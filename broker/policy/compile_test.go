package policy_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/broker/trust"
	"github.com/postern-zt/postern/proto/ids"
)

func TestCedarTextIsRefused(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"misspelt attribute":     {`forbid(principal, action, resource) when { context.device.rooted };`, "schema"},
		"unknown type":           {`permit(principal is Robot, action, resource);`, "schema"},
		"unknown verb":           {`permit(principal, action == Action::"delete", resource);`, "schema"},
		"unguarded attribute":    {`permit(principal, action, resource) when { context.source.isLoopback() };`, "schema"},
		"not boolean":            {`permit(principal, action, resource) when { context.risk };`, "schema"},
		"two policies":           {`permit(principal, action, resource); permit(principal, action, resource);`, "exactly one"},
		"none":                   {`// nothing`, "exactly one"},
		"no cedar":               {`allow everything`, "parse cedar"},
		"fail tested":            {`forbid(principal, action, resource) when { context.facts.firewall.state == "fail" };`, "only as"},
		"unknown tested":         {`permit(principal, action, resource) when { context.facts.firewall.state == "unknown" };`, "only as"},
		"not pass opens":         {`permit(principal, action, resource) when { context.facts.firewall.state != "pass" };`, "may not open"},
		"not pass opens, not":    {`permit(principal, action, resource) when { !(context.facts.firewall.state == "pass") };`, "may not open"},
		"permit unless pass":     {`permit(principal, action, resource) unless { context.facts.firewall.state == "pass" };`, "may not open"},
		"forbid when pass":       {`forbid(principal, action, resource) when { context.facts.firewall.state == "pass" };`, "may not open"},
		"forbid unless not pass": {`forbid(principal, action, resource) unless { context.facts.firewall.state != "pass" };`, "may not open"},
		"by pattern":             {`permit(principal, action, resource) when { context.facts.firewall.state like "p*" };`, "only as"},
		"hidden in a compare":    {`permit(principal, action, resource) when { (context.facts.firewall.state == "pass") == false };`, "only as"},
		"hidden in an if":        {`permit(principal, action, resource) when { if context.facts.firewall.state == "pass" then false else true };`, "only as"},
		"turned round":           {`forbid(principal, action, resource) when { "fail" == context.facts.firewall.state };`, "only as"},
		"age tested":             {`permit(principal, action, resource) when { context.facts.firewall.age_s < 5 };`, "only as"},
		"whole facts":            {`permit(principal, action, resource) when { context.facts == context.facts };`, "only"},
		"whole context":          {`permit(principal, action, resource) when { context == context };`, "field by field"},
		"whole schedules":        {`permit(principal, action, resource) when { context.schedules == context.schedules };`, "field by field"},
		"group in a condition":   {`forbid(principal, action, resource) when { principal in Group::"g" };`, "in its scope"},
		"groups in a condition":  {`forbid(principal, action, resource) when { principal.groups.contains(Group::"g") };`, "in its scope"},
		"unknown annotation":     {`@max_flow("3") permit(principal, action, resource);`, "not known"},
		"annotation no number":   {`@max_flows("-3") permit(principal, action, resource);`, "positive"},
		"annotation no duration": {`@idle("soon") permit(principal, action, resource);`, "positive"},
		"too long":               {`permit(principal, action, resource);` + strings.Repeat(" ", 20_000), "longer"},
		"nested":                 {`permit(principal, action, resource) when { ` + strings.Repeat("(", 5000) + `true` + strings.Repeat(")", 5000) + ` };`, "nests"},
	} {
		t.Run(name, func(t *testing.T) {
			doc := policy.NewDocument()
			doc.Rules = []policy.Rule{{ID: rid(1), Name: "raw", Cedar: c.text}}
			doc.Schedules = map[string]policy.Schedule{"office": office()}
			_, err := policy.Compile(policy.Meta{}, doc)
			var ce *policy.CompileError
			if !errors.As(err, &ce) || len(ce.Problems) != 1 || ce.Problems[0].Rule != string(rid(1)) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Compile = %v, want a problem of the rule with %q", err, c.want)
			}
		})
	}
}

func TestCedarTextIsAccepted(t *testing.T) {
	for _, text := range []string{
		`forbid(principal, action, resource) unless { context.facts.firewall.state == "pass" };`,
		`forbid(principal, action, resource) when { context.facts.firewall.state != "pass" };`,
		`permit(principal in Group::"g", action == Action::"http:read", resource in Tag::"docs") when { context.schedules.office || context.risk < 10 };`,
		`permit(principal, action, resource) when { context has source && context.source.isInRange(ip("10.0.0.0/8")) };`,
		`permit(principal, action, resource) when { principal.attrs has clearance && principal.attrs.clearance > 1 };`,
		`permit(principal, action, resource) when { principal in Group::"g" && context.session_within["5m0s"] };`,
	} {
		compile(t, policy.Rule{ID: rid(1), Name: "raw", Cedar: text})
	}
}

func TestDocumentIsRefused(t *testing.T) {
	base := allow(1)
	rule := func(change func(*policy.Rule)) func(*policy.Document) {
		return func(d *policy.Document) {
			r := base
			change(&r)
			d.Rules = []policy.Rule{r}
		}
	}
	for name, change := range map[string]func(*policy.Document){
		"version":        func(d *policy.Document) { d.Version = 9 },
		"class missing":  func(d *policy.Document) { delete(d.Baseline, policy.Restricted) },
		"class invented": func(d *policy.Document) { d.Baseline["secret"] = d.Baseline[policy.Public] },
		"risk limits fall": func(d *policy.Document) {
			r := d.Baseline[policy.Public]
			r.RiskStepUp = 1
			d.Baseline[policy.Public] = r
		},
		"outage unknown": func(d *policy.Document) {
			r := d.Baseline[policy.Public]
			r.Outage = "x"
			d.Baseline[policy.Public] = r
		},
		"trust table":     func(d *policy.Document) { d.Trust.Levels[0] = nil },
		"schedule's name": func(d *policy.Document) { d.Schedules = map[string]policy.Schedule{`a"b`: office()} },
		"attribute's name": func(d *policy.Document) {
			d.Attributes = []policy.AttributeDecl{{Of: "user", Name: `a"b`, Type: "string"}}
		},
		"attribute's order": func(d *policy.Document) {
			d.Attributes = []policy.AttributeDecl{{Of: "user", Name: `a`, Type: "ordered"}}
		},
		"same id twice":       func(d *policy.Document) { d.Rules = []policy.Rule{base, base} },
		"malformed id":        rule(func(r *policy.Rule) { r.ID = "1" }),
		"no name":             rule(func(r *policy.Rule) { r.Name = "" }),
		"no effect":           rule(func(r *policy.Rule) { r.Effect = "" }),
		"unknown effect":      rule(func(r *policy.Rule) { r.Effect = "permit" }),
		"nobody":              rule(func(r *policy.Rule) { r.Who = policy.Who{} }),
		"no app":              rule(func(r *policy.Rule) { r.Apps = policy.Apps{} }),
		"any and one":         rule(func(r *policy.Rule) { r.Apps.Any = true }),
		"empty group":         rule(func(r *policy.Rule) { r.Who = policy.Who{Groups: []ids.GroupID{""}} }),
		"unknown class":       rule(func(r *policy.Rule) { r.Apps = policy.Apps{Classes: []policy.Class{"secret"}} }),
		"unknown verb":        rule(func(r *policy.Rule) { r.Verbs = []policy.Verb{"delete"} }),
		"unknown fact":        rule(func(r *policy.Rule) { r.Conditions.Facts = []trust.FactName{"nice"} }),
		"level 4":             rule(func(r *policy.Rule) { r.Conditions.MinLevel = 4 }),
		"score 101":           rule(func(r *policy.Rule) { r.Conditions.MinScore = 101 }),
		"negative age":        rule(func(r *policy.Rule) { r.Conditions.MFAMaxAge = -1 }),
		"unknown schedule":    rule(func(r *policy.Rule) { r.Conditions.Schedule = "never" }),
		"no CIDR":             rule(func(r *policy.Rule) { r.Conditions.Networks = []string{"10.0.0.1"} }),
		"unknown operator":    rule(func(r *policy.Rule) { r.Conditions.Attributes = test("user", "a", "like", policy.Text("x")) }),
		"operator without":    rule(func(r *policy.Rule) { r.Conditions.Attributes = test("user", "a", policy.Equals, policy.Value{}) }),
		"exists with value":   rule(func(r *policy.Rule) { r.Conditions.Attributes = test("user", "a", policy.Exists, policy.Text("x")) }),
		"order of a text":     rule(func(r *policy.Rule) { r.Conditions.Attributes = test("user", "a", policy.LessThan, policy.Text("x")) }),
		"subject":             rule(func(r *policy.Rule) { r.Conditions.Attributes = test("dog", "a", policy.Equals, policy.Text("x")) }),
		"form and cedar":      rule(func(r *policy.Rule) { r.Cedar = `permit(principal, action, resource);` }),
		"negative obligation": rule(func(r *policy.Rule) { r.Obligations.MaxFlows = -1 }),
		"text and number mixed": rule(func(r *policy.Rule) {
			r.Conditions.Attributes = append(test("user", "a", policy.Equals, policy.Text("x")), test("user", "a", policy.Equals, policy.Number(1))...)
		}),
	} {
		t.Run(name, func(t *testing.T) {
			doc := policy.NewDocument()
			doc.Rules = []policy.Rule{base}
			change(&doc)
			if _, err := policy.Compile(policy.Meta{}, doc); err == nil {
				t.Error("it compiles")
			}
		})
	}
}

func test(of policy.Subject, name string, op policy.Operator, v policy.Value) []policy.AttributeTest {
	return []policy.AttributeTest{{Of: of, Attribute: name, Operator: op, Value: v}}
}

// TestOperators has each operator with a value that holds, one that does not, one of another
// type, and none: what is missing satisfies no allow and escapes no deny.
func TestOperators(t *testing.T) {
	for name, c := range map[string]struct {
		test     policy.AttributeTest
		yes, not policy.Value
	}{
		"I21/equals":      {test("user", "a", policy.Equals, policy.Text("x"))[0], policy.Text("x"), policy.Text("y")},
		"I21/notEquals":   {test("user", "a", policy.NotEquals, policy.Text("x"))[0], policy.Text("y"), policy.Text("x")},
		"I21/in":          {test("user", "a", policy.In, policy.List("x", "y"))[0], policy.Text("y"), policy.Text("z")},
		"contains":        {test("user", "a", policy.Contains, policy.Text("x"))[0], policy.List("x", "y"), policy.List("y")},
		"I21/lessThan":    {test("user", "a", policy.LessThan, policy.Number(3))[0], policy.Number(2), policy.Number(3)},
		"I21/greaterThan": {test("user", "a", policy.GreaterThan, policy.Number(3))[0], policy.Number(4), policy.Number(3)},
		"at most":         {test("user", "a", policy.AtMost, policy.Number(3))[0], policy.Number(3), policy.Number(4)},
		"at least":        {test("user", "a", policy.AtLeast, policy.Number(3))[0], policy.Number(3), policy.Number(2)},
		"I21/matches":     {test("user", "a", policy.Matches, policy.Text("x*z"))[0], policy.Text("xyz"), policy.Text("xy")},
		"boolean":         {test("user", "a", policy.Equals, policy.Bool(true))[0], policy.Bool(true), policy.Bool(false)},
		"I22/app":         {test("app", "type", policy.Equals, policy.Text("document"))[0], policy.Text("document"), policy.Text("other")},
	} {
		t.Run(name, func(t *testing.T) {
			give, take := allow(1), allow(2)
			give.Conditions.Attributes, take.Conditions.Attributes = []policy.AttributeTest{c.test}, []policy.AttributeTest{c.test}
			take.Effect = policy.Deny
			gives, takes := compile(t, give), compile(t, allow(1), take)
			for _, v := range []struct {
				value       policy.Value
				give, taken bool
			}{{c.yes, true, true}, {c.not, false, false}, {policy.Value{}, false, true}, {policy.List("other", "type"), false, true}} {
				if name == "contains" && v.value.String() == "[other type]" {
					continue // it is of the right type there
				}
				in := input()
				attrs := map[string]policy.Value{c.test.Attribute: v.value}
				in.Identity.Attributes, in.App.Attributes = attrs, attrs
				if got := gives.Decide(in); got.Verdict.Grants() != v.give {
					t.Errorf("allow with %v: %v %v", v.value, got.Verdict, got.Reasons)
				}
				if got := takes.Decide(in); got.Verdict.Grants() == v.taken {
					t.Errorf("deny with %v: %v %v", v.value, got.Verdict, got.Reasons)
				}
			}
		})
	}
}

// TestValueOutsideTheOrderIsMissing: a rank that does not exist is not the lowest rank.
func TestValueOutsideTheOrderIsMissing(t *testing.T) {
	r := allow(1)
	r.Conditions.Attributes = test("user", "clearance", policy.LessThan, policy.Text("level2"))
	in := input()
	in.Identity.Attributes = map[string]policy.Value{"clearance": policy.Text("nonsense")}
	if d := compile(t, r).Decide(in); d.Verdict.Grants() {
		t.Errorf("%v, want deny", d.Verdict)
	}
}

func TestExists(t *testing.T) {
	for op, want := range map[policy.Operator]bool{policy.Exists: true, policy.NotExists: false} {
		r := allow(1)
		r.Conditions.Attributes = test("user", "a", op, policy.Value{})
		rev := compile(t, r)
		in := input()
		in.Identity.Attributes = map[string]policy.Value{"a": policy.Text("x")}
		if got := rev.Decide(in).Verdict.Grants(); got != want {
			t.Errorf("%s with the attribute: %v", op, got)
		}
		in.Identity.Attributes = nil
		if got := rev.Decide(in).Verdict.Grants(); got == want {
			t.Errorf("%s without the attribute: %v", op, got)
		}
	}
}

func TestWarnings(t *testing.T) {
	all, two, old := allow(1), allow(2), allow(3)
	all.Effect, all.Apps = policy.Deny, policy.Apps{Any: true}
	two.Conditions.Attributes = append(test("user", "a", policy.Equals, policy.Text("x")), test("user", "a", policy.Equals, policy.Text("y"))...)
	old.ExpiresAt = time.Unix(1, 0)
	if w := compile(t, all, two, old).Warnings(); len(w) != 3 {
		t.Errorf("warnings %v, want one per rule", w)
	}
	if w := compile(t, allow(1)).Warnings(); len(w) != 0 {
		t.Errorf("warnings %v of a plain rule", w)
	}
}

func TestRevisionIsImmutable(t *testing.T) {
	doc := policy.NewDocument()
	doc.Rules = []policy.Rule{allow(1)}
	rev := mustCompile(t, doc)
	doc.Rules[0].Apps.IDs[0] = "app_pay"
	doc.Baseline[policy.Internal] = doc.Baseline[policy.Public]
	rev.Document().Rules[0].Disabled = true
	if d := rev.Decide(input()); d.Verdict != policy.VerdictAllow {
		t.Errorf("after writing to the document: %v %v", d.Verdict, d.Reasons)
	}
	again := mustCompile(t, rev.Document())
	if again.Hash != rev.Hash || mustCompile(t, doc).Hash == rev.Hash {
		t.Error("the hash does not follow the content")
	}
	doc.Rules[0].Disabled = true
	if d := mustCompile(t, doc).Decide(input()); d.Verdict.Grants() {
		t.Error("a disabled rule gives access")
	}
}
