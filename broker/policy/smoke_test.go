package policy_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/proto/ids"
)

func rid(n int) ids.RuleID { return ids.RuleID(fmt.Sprintf("rul_%026d", n)) }

var noon = time.Date(2026, 11, 18, 12, 0, 0, 0, time.UTC)

func TestSmoke(t *testing.T) {
	doc := policy.NewDocument()
	doc.Schedules = map[string]policy.Schedule{"office": {Zone: "Europe/Berlin", Windows: []policy.Window{{Days: []time.Weekday{1, 2, 3, 4, 5}, From: 540, To: 1020}}}}
	doc.Rules = []policy.Rule{
		{ID: rid(1), Name: "a", Effect: policy.Allow, Who: policy.Who{Groups: []ids.GroupID{"grp_a", "grp_b"}, Users: []ids.UserID{"usr_x"}}, Apps: policy.Apps{IDs: []ids.AppID{"app_1", "app_2"}, Tags: []string{"x"}},
			Conditions: policy.Conditions{Facts: nil, MinLevel: 1, MinScore: 10, MFAMaxAge: policy.Duration(time.Hour), AuthMethods: []string{"hwk"}, SessionMaxAge: policy.Duration(time.Hour), Schedule: "office", Networks: []string{"10.0.0.0/8"},
				Attributes: []policy.AttributeTest{{Of: "user", Attribute: "department", Operator: "equals", Value: policy.Text("eng")}, {Of: "user", Attribute: "age", Operator: "lessThan", Value: policy.Number(3)}, {Of: "app", Attribute: "type", Operator: "in", Value: policy.List("a", "b")}}}},
		{ID: rid(2), Name: "b", Effect: policy.Deny, Who: policy.Who{Groups: []ids.GroupID{"grp_a", "grp_b"}, Users: []ids.UserID{"usr_x"}}, Apps: policy.Apps{Any: true},
			Conditions: policy.Conditions{Facts: nil, MinLevel: 1, MinScore: 10, Networks: []string{"10.0.0.0/8"}, Schedule: "office",
				Attributes: []policy.AttributeTest{{Of: "user", Attribute: "department", Operator: "matches", Value: policy.Text("eng*")}, {Of: "user", Attribute: "age", Operator: "lessThan", Value: policy.Number(3)}, {Of: "user", Attribute: "lst", Operator: "contains", Value: policy.Text("b")}}}},
		{ID: rid(3), Name: "c", Cedar: `@max_flows("3") forbid(principal in Group::"g", action, resource) when { context.risk > 3 } unless { context.facts.firewall.state == "pass" && context.schedules.office };`},
	}
	r, err := policy.Compile(policy.Meta{}, doc)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(r.Schema())
	for i := 1; i < 4; i++ {
		t.Log(r.Cedar(string(rid(i))))
	}
	in := policy.Input{Version: 1, Time: noon, Identity: policy.Identity{User: "usr_x", Session: "ses_1", Groups: []ids.GroupID{"grp_a"}, SignedInAt: noon.Add(-time.Minute), AuthTime: noon.Add(-time.Minute)}, Device: policy.Device{ID: "dev_1", Registered: true}, App: policy.App{ID: "app_1", Name: "wiki", Class: policy.Internal}}
	d := r.Decide(in)
	t.Logf("%+v", d)
	t.Log(policy.EmployeeText("de", d, r.Remedies(in), "Ann"))
}
