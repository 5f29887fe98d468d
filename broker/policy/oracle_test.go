package policy_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/broker/trust"
	"github.com/postern-zt/postern/proto/ids"
)

// The oracle is a plain interpreter of forms: it shares no code with the compiler, the index
// or the explanations, and knows nothing of Cedar.

// oracleVerbs says which verbs the rules give.
func oracleVerbs(rules []policy.Rule, in policy.Input) []policy.Verb {
	if !oracleBaseline(in) {
		return nil
	}
	asked := in.App.Verbs
	if len(asked) == 0 {
		asked = []policy.Verb{policy.Connect}
	}
	var out []policy.Verb
	for _, v := range asked {
		allowed, denied := false, false
		for _, r := range rules {
			speaks := oracleSpeaks(r, in, v)
			switch {
			case r.Effect == policy.Allow && speaks && oracleSelects(r, in, false) && oracleRequires(r, in):
				allowed = true
			case r.Effect == policy.Deny && speaks && oracleSelects(r, in, true) && !(oracleHasRequirements(r) && oracleRequires(r, in)):
				denied = true
			}
		}
		if allowed && !denied {
			out = append(out, v)
		}
	}
	return out
}

func oracleSpeaks(r policy.Rule, in policy.Input, v policy.Verb) bool {
	if !r.ExpiresAt.IsZero() && !in.Time.Before(r.ExpiresAt) {
		return false
	}
	who := r.Who.SignedIn || slices.Contains(r.Who.Users, in.Identity.User)
	for _, g := range r.Who.Groups {
		who = who || slices.Contains(in.Identity.Groups, g) || (r.Effect == policy.Deny && in.Identity.GroupsIncomplete)
	}
	app := r.Apps.Any || slices.Contains(r.Apps.IDs, in.App.ID) || slices.Contains(r.Apps.Classes, in.App.Class)
	for _, t := range r.Apps.Tags {
		app = app || slices.Contains(in.App.Tags, t)
	}
	return who && app && (len(r.Verbs) == 0 || slices.Contains(r.Verbs, v))
}

// oracleSelects: what is missing selects a deny and not an allow.
func oracleSelects(r policy.Rule, in policy.Input, deny bool) bool {
	c := r.Conditions
	if c.Schedule != "" && !oracleOffice(in.Time) {
		return false
	}
	if len(c.Networks) > 0 {
		inside := !in.Context.Source.IsValid() && deny
		for _, n := range c.Networks {
			inside = inside || netip.MustParsePrefix(n).Contains(in.Context.Source)
		}
		if !inside {
			return false
		}
	}
	for _, a := range c.Attributes {
		v, ok := in.Identity.Attributes[a.Attribute]
		if !ok && !deny {
			return false
		}
		if ok && !oracleCompare(a, v) {
			return false
		}
	}
	return true
}

func oracleCompare(a policy.AttributeTest, v policy.Value) bool {
	order := []string{"level1", "level2", "level3"}
	x, y := slices.Index(order, v.String()), slices.Index(order, a.Value.String())
	switch a.Operator {
	case policy.Equals:
		return v.String() == a.Value.String()
	case policy.NotEquals:
		return v.String() != a.Value.String()
	case policy.LessThan:
		return x < y
	case policy.AtLeast:
		return x >= y
	case policy.Matches:
		return strings.HasPrefix(v.String(), strings.TrimSuffix(a.Value.String(), "*"))
	default:
		panic("the oracle does not know " + string(a.Operator))
	}
}

// oracleOffice is nine to five on working days in Berlin, by the clock on the wall there.
func oracleOffice(t time.Time) bool {
	loc, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		panic(err)
	}
	w := t.In(loc)
	return w.Weekday() != time.Saturday && w.Weekday() != time.Sunday && w.Hour() >= 9 && w.Hour() < 17
}

func oracleHasRequirements(r policy.Rule) bool {
	c := r.Conditions
	return len(c.Facts)+len(c.AuthMethods)+int(c.MinLevel)+c.MinScore+int(c.MFAMaxAge)+int(c.SessionMaxAge) > 0
}

func oracleRequires(r policy.Rule, in policy.Input) bool {
	c := r.Conditions
	ok := oracleLevel(in) >= int(c.MinLevel) && oracleScore(in) >= c.MinScore
	for _, f := range c.Facts {
		ok = ok && oraclePasses(in, f)
	}
	for _, m := range c.AuthMethods {
		ok = ok && slices.Contains(in.Identity.AMR, m)
	}
	if c.MFAMaxAge > 0 {
		ok = ok && oracleMFA(in, time.Duration(c.MFAMaxAge))
	}
	if c.SessionMaxAge > 0 {
		ok = ok && in.Time.Sub(in.Identity.SignedInAt) < time.Duration(c.SessionMaxAge)
	}
	return ok
}

func oracleMFA(in policy.Input, age time.Duration) bool {
	two := slices.Contains(in.Identity.AMR, "mfa") || slices.Contains(in.Identity.AMR, "hwk") && slices.Contains(in.Identity.AMR, "pwd")
	return two && in.Time.Sub(in.Identity.AuthTime) < age
}

func oraclePasses(in policy.Input, name trust.FactName) bool {
	for _, f := range in.Device.Facts {
		if f.Name == name {
			return in.Device.Registered && (f.State == trust.StatePass && in.Time.Before(f.ExpiresAt) ||
				f.State == trust.StatePassInGrace && in.Time.Before(f.GraceUntil))
		}
	}
	return false
}

func oracleLevel(in policy.Input) int {
	p := func(n trust.FactName) bool { return oraclePasses(in, n) }
	switch {
	case !p("client_version") || !p("os_supported"):
		return 0
	case !p("mdm_enrolled") || !p("disk_encrypted"):
		return 1
	case !p("patch_level") || !p("antivirus") || !p("key_in_hardware"):
		return 2
	default:
		return 3
	}
}

func oracleScore(in policy.Input) int {
	n := 0
	for _, f := range []trust.FactName{"os_supported", "disk_encrypted", "mdm_enrolled", "screen_lock"} {
		if oraclePasses(in, f) {
			n += 25
		}
	}
	return n
}

// oracleBaseline repeats the table of rule 27 in its own words.
func oracleBaseline(in policy.Input) bool {
	level, score, mfa, session, stepUp, stop := 0, 0, time.Duration(0), 7*24*time.Hour, 80, 95
	switch in.App.Class {
	case policy.Internal:
		level, session, stepUp, stop = 1, 24*time.Hour, 70, 90
	case policy.Confidential:
		level, score, mfa, session, stepUp, stop = 2, 50, 12*time.Hour, 12*time.Hour, 50, 80
	case policy.Restricted:
		level, score, mfa, session, stepUp, stop = 3, 75, 4*time.Hour, 8*time.Hour, 40, 60
	}
	ok := oracleLevel(in) >= level && oracleScore(in) >= score && in.Time.Sub(in.Identity.SignedInAt) < session
	ok = ok && (mfa == 0 || oracleMFA(in, mfa))
	return ok && in.Risk.Score < stop && (in.Risk.Score < stepUp || oracleMFA(in, 5*time.Minute))
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

func randomRule(r *rand.Rand, n int) policy.Rule {
	rule := policy.Rule{ID: rid(n), Name: fmt.Sprint("rule ", n), Effect: pick(r, policy.Allow, policy.Allow, policy.Allow, policy.Deny)}
	rule.Who = pick(r, policy.Who{SignedIn: true}, policy.Who{Groups: []ids.GroupID{"grp_eng"}}, policy.Who{Groups: []ids.GroupID{"grp_ops", "grp_hr"}},
		policy.Who{Users: []ids.UserID{"usr_ann"}}, policy.Who{Users: []ids.UserID{"usr_bob"}, Groups: []ids.GroupID{"grp_eng"}})
	rule.Apps = pick(r, policy.Apps{Any: true}, policy.Apps{IDs: []ids.AppID{"app_wiki"}}, policy.Apps{IDs: []ids.AppID{"app_wiki", "app_pay"}},
		policy.Apps{Tags: []string{"docs"}}, policy.Apps{Tags: []string{"docs", "money"}}, policy.Apps{Classes: []policy.Class{policy.Restricted}},
		policy.Apps{Classes: []policy.Class{policy.Internal, policy.Public}, IDs: []ids.AppID{"app_pay"}})
	rule.Verbs = pick(r, nil, nil, []policy.Verb{policy.HTTPRead}, []policy.Verb{policy.HTTPRead, policy.Connect}, []policy.Verb{policy.HTTPWrite})
	rule.ExpiresAt = pick(r, time.Time{}, time.Time{}, time.Time{}, noon.Add(-time.Hour), noon.Add(48*time.Hour))
	for range r.IntN(4) {
		randomCondition(r, &rule.Conditions)
	}
	return rule
}

func randomCondition(r *rand.Rand, c *policy.Conditions) {
	switch r.IntN(9) {
	case 0:
		c.Facts = append(c.Facts, pick(r, trust.Firewall, trust.DiskEncrypted, trust.ScreenLock))
	case 1:
		c.MinLevel = trust.Level(r.IntN(4))
	case 2:
		c.MinScore = 25 * r.IntN(5)
	case 3:
		c.MFAMaxAge = pick(r, policy.Duration(time.Hour), policy.Duration(10*time.Minute))
	case 4:
		c.AuthMethods = pick(r, []string{"hwk"}, []string{"mfa"}, []string{"pwd"})
	case 5:
		c.SessionMaxAge = pick(r, policy.Duration(time.Hour), policy.Duration(10*time.Minute))
	case 6:
		c.Schedule = "office"
	case 7:
		c.Networks = pick(r, []string{"10.0.0.0/8"}, []string{"203.0.113.0/24", "2001:db8::/32"})
	case 8:
		c.Attributes = append(c.Attributes, pick(r,
			policy.AttributeTest{Of: policy.OfUser, Attribute: "department", Operator: pick(r, policy.Equals, policy.NotEquals), Value: policy.Text("eng")},
			policy.AttributeTest{Of: policy.OfUser, Attribute: "department", Operator: policy.Matches, Value: policy.Text("en*")},
			policy.AttributeTest{Of: policy.OfUser, Attribute: "clearance", Operator: pick(r, policy.LessThan, policy.AtLeast), Value: policy.Text("level2")}))
	}
}

func randomInput(r *rand.Rand) policy.Input {
	in := input()
	in.Time = pick(r, noon, noon, noon.Add(9*time.Hour), time.Date(2026, 3, 30, 7, 30, 0, 0, time.UTC), time.Date(2026, 10, 25, 0, 30, 0, 0, time.UTC))
	in.Identity.User = pick(r, ids.UserID("usr_ann"), "usr_bob", "usr_eve")
	in.Identity.Groups = pick(r, nil, []ids.GroupID{"grp_eng"}, []ids.GroupID{"grp_ops", "grp_eng"}, []ids.GroupID{"grp_hr"})
	in.Identity.GroupsIncomplete = r.IntN(8) == 0
	in.Identity.AMR = pick(r, []string{"pwd"}, []string{"pwd", "mfa"}, []string{"hwk"}, []string{"hwk", "pwd"})
	in.Identity.SignedInAt = in.Time.Add(-pick(r, time.Minute, 30*time.Minute, 9*time.Hour, 30*time.Hour))
	in.Identity.AuthTime = in.Time.Add(-pick(r, time.Minute, 30*time.Minute, 5*time.Hour))
	in.Identity.Attributes = map[string]policy.Value{}
	if r.IntN(2) == 0 {
		in.Identity.Attributes["department"] = policy.Text(pick(r, "eng", "ops"))
	}
	if r.IntN(2) == 0 {
		in.Identity.Attributes["clearance"] = policy.Text(pick(r, "level1", "level2", "level3"))
	}
	in.Device.Registered, in.Device.Facts = r.IntN(12) > 0, randomFacts(r, in.Time)
	in.Context.Source = pick(r, netip.Addr{}, netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8::5"))
	in.Risk.Score = pick(r, 0, 0, 0, 10, 19, 65, 85, 97)
	in.App.ID = pick(r, ids.AppID("app_wiki"), "app_pay", "app_git")
	in.App.Class = pick(r, policy.Public, policy.Internal, policy.Internal, policy.Confidential, policy.Restricted)
	in.App.Tags = pick(r, nil, []string{"docs"}, []string{"money", "docs"})
	in.App.Verbs = pick(r, nil, []policy.Verb{policy.HTTPRead, policy.HTTPWrite})
	return in
}

func randomFacts(r *rand.Rand, now time.Time) []trust.View {
	var out []trust.View
	good := r.IntN(100)
	for _, n := range trust.FactNames() {
		v := trust.View{Name: n, State: trust.StatePass, ObservedAt: now.Add(-time.Minute), ExpiresAt: now.Add(time.Minute)}
		switch x := r.IntN(100); {
		case x < good:
		case x%5 == 0:
			continue
		case x%5 == 1:
			v.State = trust.StateFail
		case x%5 == 2:
			v.ExpiresAt = now
		case x%5 == 3:
			v.State, v.GraceUntil = trust.StatePassInGrace, now.Add(time.Second)
		default:
			v.State, v.GraceUntil = trust.StatePassInGrace, now.Add(-time.Second)
		}
		out = append(out, v)
	}
	return out
}

// TestOracle compares decisions with the interpreter, checks that the order of rules does
// not show, that each decision replays, and that explanations agree with Cedar.
func TestOracle(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	cases, granted, limited := 0, 0, 0
	for range 150 {
		var rules []policy.Rule
		for n := range 1 + r.IntN(8) {
			rules = append(rules, randomRule(r, n))
		}
		rev := compile(t, rules...)
		shuffled := slices.Clone(rules)
		r.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		other := compile(t, shuffled...)
		for range 40 {
			in := randomInput(r)
			d := rev.Decide(in)
			cases++
			if d.Verdict.Grants() {
				granted++
			}
			if d.Verdict == policy.VerdictLimited {
				limited++
			}
			checkOracle(t, rules, in, d)
			if diff := cmp.Diff(d, other.Decide(in)); diff != "" {
				t.Fatalf("the order of rules shows, -first +shuffled:\n%s", diff)
			}
			checkReplay(t, rev, in, d)
			if t.Failed() {
				t.Fatalf("rules %+v\ninput %+v", rules, in)
			}
		}
	}
	if cases < 500 || granted < cases/20 || granted > cases*19/20 || limited == 0 {
		t.Errorf("%d cases, %d granted, %d limited: the generator is lopsided", cases, granted, limited)
	}
}

func checkOracle(t *testing.T, rules []policy.Rule, in policy.Input, d policy.Decision) {
	t.Helper()
	want := oracleVerbs(rules, in)
	got := d.Verbs
	if has(d, policy.CodeRiskReduced) { // tested on its own: gives less than the rules do
		for _, v := range got {
			if !slices.Contains(want, v) {
				t.Errorf("verbs %v, the oracle says %v", got, want)
			}
		}
		return
	}
	if !slices.Equal(got, want) {
		t.Errorf("verdict %v verbs %v (%v), the oracle says %v", d.Verdict, got, d.Reasons, want)
	}
	if has(d, policy.CodeRuleCondition) || len(d.Reasons) == 0 {
		t.Errorf("reasons %v: the explanation does not agree with Cedar", d.Reasons)
	}
}

func checkReplay(t *testing.T, rev *policy.Revision, in policy.Input, d policy.Decision) {
	t.Helper()
	b, err := in.Canonical()
	if err != nil {
		t.Fatal(err)
	}
	again, err := rev.Replay(b)
	if err != nil || !again.Equal(d) {
		t.Errorf("replay: %v, -decided +replayed:\n%s", err, cmp.Diff(d, again))
	}
}
