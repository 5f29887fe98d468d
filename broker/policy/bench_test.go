package policy_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/broker/trust"
	"github.com/postern-zt/postern/proto/ids"
)

// bigDocument has 10,000 rules, of which 500 are candidates for group "staff" on app "wiki":
// they name the app's tag, and the last one alone lets the user in.
func bigDocument() policy.Document {
	doc := policy.NewDocument()
	doc.Schedules = map[string]policy.Schedule{"office": {Zone: "Europe/Berlin",
		Windows: []policy.Window{{Days: []time.Weekday{1, 2, 3, 4, 5}, From: 8 * 60, To: 18 * 60}}}}
	for i := range 10_000 {
		r := policy.Rule{ID: rid(i), Name: fmt.Sprintf("rule %d", i), Effect: policy.Allow,
			Who:  policy.Who{Groups: []ids.GroupID{ids.GroupID(fmt.Sprintf("grp_%d", i%400))}},
			Apps: policy.Apps{IDs: []ids.AppID{ids.AppID(fmt.Sprintf("app_%d", i))}},
			Conditions: policy.Conditions{MinLevel: trust.LevelKnown, Facts: []trust.FactName{trust.Firewall},
				Schedule: "office", SessionMaxAge: policy.Duration(12 * time.Hour)}}
		if i%20 == 0 {
			r.Who.Groups = append(r.Who.Groups, "grp_staff")
			r.Apps = policy.Apps{Tags: []string{"wiki"}}
			r.Conditions.Attributes = []policy.AttributeTest{{Of: policy.OfUser, Attribute: "team", Operator: policy.Equals, Value: policy.Text(fmt.Sprintf("team%d", i))}}
			if i%40 == 0 {
				r.Effect = policy.Deny
			}
		}
		doc.Rules = append(doc.Rules, r)
	}
	return doc
}

func bigInput() policy.Input {
	in := input()
	in.Identity.Groups = []ids.GroupID{"grp_staff", "grp_5", "grp_6"}
	in.Identity.Attributes = map[string]policy.Value{"team": policy.Text("team9980")}
	in.App.Tags = []string{"wiki", "docs"}
	return in
}

// BenchmarkDecide500of10000 reports the 99th percentile as p99-us: the target is 200.
func BenchmarkDecide500of10000(b *testing.B) {
	rev, err := policy.Compile(policy.Meta{}, bigDocument())
	if err != nil {
		b.Fatal(err)
	}
	in := bigInput()
	if d := rev.Decide(in); d.Verdict != policy.VerdictAllow {
		b.Fatalf("verdict %v, %v", d.Verdict, d.Reasons)
	}
	var took []time.Duration
	b.ReportAllocs()
	for b.Loop() {
		from := time.Now()
		rev.Decide(in)
		took = append(took, time.Since(from))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1000, "p99-us")
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1000, "p50-us")
}

// BenchmarkRemedies is held against 5 ms.
func BenchmarkRemedies(b *testing.B) {
	rev, err := policy.Compile(policy.Meta{}, bigDocument())
	if err != nil {
		b.Fatal(err)
	}
	in := bigInput()
	in.Device.Facts = nil
	b.ReportAllocs()
	for b.Loop() {
		rev.Remedies(in)
	}
}

func BenchmarkCompile10000(b *testing.B) {
	doc := bigDocument()
	for b.Loop() {
		if _, err := policy.Compile(policy.Meta{}, doc); err != nil {
			b.Fatal(err)
		}
	}
}
