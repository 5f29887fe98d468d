package policy_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/broker/trust"
	"github.com/postern-zt/postern/proto/ids"
)

// noon is a Wednesday.
var noon = time.Date(2026, 11, 18, 12, 0, 0, 0, time.UTC)

func rid(n int) ids.RuleID { return ids.RuleID(fmt.Sprintf("rul_%026d", n)) }

// pass returns views of facts that pass at noon and for five minutes after.
func pass(names ...trust.FactName) []trust.View {
	var out []trust.View
	for _, n := range names {
		out = append(out, trust.View{Name: n, State: trust.StatePass, ObservedAt: noon.Add(-time.Minute),
			ExpiresAt: noon.Add(5 * time.Minute), Source: trust.SourceClient})
	}
	return out
}

// known, managed and compliant are the facts that make levels 1, 2 and 3.
func known() []trust.View { return pass(trust.ClientVersion, trust.OSSupported, trust.Firewall) }

func managed() []trust.View { return append(known(), pass(trust.MDMEnrolled, trust.DiskEncrypted)...) }

func compliant() []trust.View {
	return append(managed(), pass(trust.PatchLevel, trust.Antivirus, trust.KeyInHardware, trust.ScreenLock)...)
}

// input is a user on a known device who signed in a minute ago and asks for an internal app.
func input() policy.Input {
	return policy.Input{
		Version: policy.InputVersion, Time: noon,
		Identity: policy.Identity{User: "usr_ann", Session: "ses_1", Groups: []ids.GroupID{"grp_eng"},
			SignedInAt: noon.Add(-time.Minute), AuthTime: noon.Add(-time.Minute), AMR: []string{"pwd"}},
		Device:  policy.Device{ID: "dev_1", Registered: true, Facts: known()},
		Context: policy.Context{Source: netip.MustParseAddr("203.0.113.7")},
		App:     policy.App{ID: "app_wiki", Name: "wiki", Class: policy.Internal, Owner: "Olga"},
	}
}

// allow is a rule that gives everybody the wiki.
func allow(n int) policy.Rule {
	return policy.Rule{ID: rid(n), Name: fmt.Sprintf("rule %d", n), Effect: policy.Allow,
		Who: policy.Who{SignedIn: true}, Apps: policy.Apps{IDs: []ids.AppID{"app_wiki"}}}
}

// compile returns the revision of the rules over the default document.
func compile(t testing.TB, rules ...policy.Rule) *policy.Revision {
	t.Helper()
	doc := policy.NewDocument()
	doc.Schedules = map[string]policy.Schedule{"office": office()}
	doc.Attributes = []policy.AttributeDecl{{Of: policy.OfUser, Name: "clearance", Type: policy.TypeOrdered,
		Order: []string{"level1", "level2", "level3"}}}
	doc.Rules = rules
	return mustCompile(t, doc)
}

func mustCompile(t testing.TB, doc policy.Document) *policy.Revision {
	t.Helper()
	rev, err := policy.Compile(policy.Meta{Number: 1}, doc)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

// office is open from nine to five on working days in Berlin.
func office() policy.Schedule {
	return policy.Schedule{Zone: "Europe/Berlin", Windows: []policy.Window{{
		Days: []time.Weekday{time.Monday, time.Tuesday, time.Wednesday, time.Thursday, time.Friday}, From: 9 * 60, To: 17 * 60}}}
}

func has(d policy.Decision, c policy.Code) bool {
	for _, r := range d.Reasons {
		if r.Code == c {
			return true
		}
	}
	return false
}
