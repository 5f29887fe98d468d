package store_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/broker/store/storetest"
	"github.com/postern-zt/postern/proto/ids"
)

func policyRule(name string) policy.Rule {
	return policy.Rule{ID: ids.New[ids.RuleID](), Name: name, Effect: policy.Allow, Who: policy.Who{SignedIn: true},
		Apps: policy.Apps{Any: true}, Conditions: policy.Conditions{Attributes: []policy.AttributeTest{{
			Of: policy.OfUser, Attribute: "team", Operator: policy.Equals, Value: policy.Text("a")}}}}
}

// valueCmp lets cmp look at attribute values.
var valueCmp = cmp.Comparer(func(a, b policy.Value) bool { return a.Equal(b) })

func TestPolicyDraft(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		if doc, err := s.PolicyDraft(t.Context()); err != nil || len(doc.Rules) != 0 {
			t.Fatalf("PolicyDraft of a new store = %v, %v", doc, err)
		}
		r := policyRule("first")
		if err := s.PutRule(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		r.Name = "renamed"
		if err := s.PutRule(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		doc := policy.NewDocument()
		doc.Schedules = map[string]policy.Schedule{"always": {Zone: "UTC", Windows: []policy.Window{{Days: []time.Weekday{1}, To: 60}}}}
		if err := s.SetPolicySettings(t.Context(), doc); err != nil {
			t.Fatal(err)
		}
		doc.Rules = []policy.Rule{r}
		got, err := open().PolicyDraft(t.Context())
		if diff := cmp.Diff(doc, got, valueCmp); err != nil || diff != "" {
			t.Errorf("PolicyDraft: %v, -want +got:\n%s", err, diff)
		}
		if err := s.DeleteRule(t.Context(), r.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Rule(t.Context(), r.ID); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Rule after DeleteRule = %v, want ErrNotFound", err)
		}
		if err := s.DeleteRule(t.Context(), r.ID); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("second DeleteRule = %v, want ErrNotFound", err)
		}
	})
}

func storedRevision(t *testing.T, number int64) policy.StoredRevision {
	t.Helper()
	doc := policy.NewDocument()
	doc.Rules = []policy.Rule{policyRule(fmt.Sprint("rule of ", number))}
	rev, err := policy.Compile(policy.Meta{ID: ids.New[ids.RevisionID](), Number: number,
		PublishedAt: time.UnixMilli(1000 * number).UTC(), PublishedBy: "ann"}, doc)
	if err != nil {
		t.Fatal(err)
	}
	return rev.Stored()
}

func TestRevisionsAreImmutableAndFollowEachOther(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		if _, err := s.CurrentRevision(t.Context()); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("CurrentRevision of a new store = %v, want ErrNotFound", err)
		}
		one, two := storedRevision(t, 1), storedRevision(t, 2)
		if err := s.PublishRevision(t.Context(), two); !errors.Is(err, store.ErrConflict) {
			t.Errorf("publish 2 before 1 = %v, want ErrConflict", err)
		}
		before, err := s.Version(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range []policy.StoredRevision{one, two} {
			if err := s.PublishRevision(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		if after, err := s.Version(t.Context()); err != nil || after.Seq != before.Seq+2 {
			t.Errorf("version after two publications = %v, %v, want %d changes more", after, err, 2)
		}
		if err := s.PublishRevision(t.Context(), one); !errors.Is(err, store.ErrConflict) {
			t.Errorf("publish 1 again = %v, want ErrConflict", err)
		}
		got, err := open().CurrentRevision(t.Context())
		if diff := cmp.Diff(two, got); err != nil || diff != "" {
			t.Errorf("CurrentRevision: %v, -want +got:\n%s", err, diff)
		}
		if got, err := s.Revision(t.Context(), one.ID); err != nil || got.Hash != one.Hash || string(got.Document) != string(one.Document) {
			t.Errorf("Revision(1) = %v, %v", got, err)
		}
		list, err := s.Revisions(t.Context(), 0)
		if err != nil || len(list) != 2 || list[0].ID != two.ID || len(list[0].Document) != 0 {
			t.Errorf("Revisions = %v, %v", list, err)
		}
		if list, err := s.Revisions(t.Context(), 2); err != nil || len(list) != 1 || list[0].ID != one.ID {
			t.Errorf("Revisions below 2 = %v, %v", list, err)
		}
	})
}

func decisionRecord(user ids.UserID, at int64, verdict policy.Verdict) policy.Record {
	return policy.Record{Receipt: ids.NewReceipt(), Time: time.UnixMilli(at).UTC(), User: user, Device: "dev_1", Session: "ses_1",
		App: "app_1", Revision: "rev_1", Input: fmt.Appendf(nil, `{"n":%d}`, at),
		Decision: policy.Decision{Verdict: verdict, ReEvaluateAt: time.UnixMilli(at + 1).UTC(),
			Reasons: []policy.Reason{{Code: policy.CodeNoRule}}}}
}

func TestDecisions(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		var all []policy.Record
		for i := range int64(7) {
			r := decisionRecord(ids.UserID(fmt.Sprint("usr_", i%2)), 1000+i, policy.Verdict(i%4))
			if err := s.PutDecision(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			all = append([]policy.Record{r}, all...)
		}
		again := decisionRecord("usr_9", 1, policy.VerdictAllow)
		again.Receipt = all[0].Receipt
		if err := s.PutDecision(t.Context(), again); !errors.Is(err, store.ErrConflict) {
			t.Errorf("PutDecision with a used receipt = %v, want ErrConflict", err)
		}
		checkDecision(t, s, all[3])
		checkPages(t, s, all)
		inputs, err := s.RecentInputs(t.Context(), time.UnixMilli(1005), 10)
		if err != nil || len(inputs) != 2 || string(inputs[0]) != `{"n":1006}` {
			t.Errorf("RecentInputs = %q, %v", inputs, err)
		}
		if n, err := s.PruneDecisions(t.Context(), time.UnixMilli(1003)); err != nil || n != 3 {
			t.Errorf("PruneDecisions = %d, %v, want 3", n, err)
		}
	})
}

func checkDecision(t *testing.T, s *store.Store, want policy.Record) {
	t.Helper()
	want.Remedies = []policy.Remedy{{Changes: []policy.RemedyCode{policy.RemedyMFA}, Verdict: policy.VerdictAllow}}
	if err := s.SetRemedies(t.Context(), want.Receipt, want.Remedies); err != nil {
		t.Fatal(err)
	}
	got, err := s.Decision(t.Context(), want.Receipt)
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); err != nil || diff != "" {
		t.Errorf("Decision: %v, -want +got:\n%s", err, diff)
	}
	missing := ids.NewReceipt()
	if _, err := s.Decision(t.Context(), missing); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Decision(unknown) = %v, want ErrNotFound", err)
	}
	if err := s.SetRemedies(t.Context(), missing, nil); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("SetRemedies(unknown) = %v, want ErrNotFound", err)
	}
}

func checkPages(t *testing.T, s *store.Store, all []policy.Record) {
	t.Helper()
	var got []ids.ReceiptID
	f := policy.Filter{Limit: 3}
	for pages := 0; pages < 10; pages++ {
		page, next, err := s.Decisions(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range page {
			got = append(got, r.Receipt)
		}
		if f.Before = next; next == 0 {
			break
		}
	}
	var want []ids.ReceiptID
	for _, r := range all {
		want = append(want, r.Receipt)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("pages of Decisions, -want +got:\n%s", diff)
	}
	f = policy.Filter{User: "usr_1", Device: "dev_1", Session: "ses_1", App: "app_1", Verdict: "step_up",
		From: time.UnixMilli(1002), Until: time.UnixMilli(1006)}
	if page, _, err := s.Decisions(t.Context(), f); err != nil || len(page) != 1 || page[0].Receipt != all[1].Receipt {
		t.Errorf("Decisions(%+v) = %v, %v", f, page, err)
	}
}
