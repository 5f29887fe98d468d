package decision_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-zt/postern/broker/decision"
	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/broker/store/storetest"
	"github.com/postern-zt/postern/proto/ids"
)

func TestMain(m *testing.M) { storetest.Main(m) }

var noon = time.Date(2026, 11, 18, 12, 0, 0, 0, time.UTC)

func newService(t *testing.T, s decision.Store) *decision.Service {
	t.Helper()
	svc, err := decision.New(decision.Config{Store: s, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return noon }})
	if err != nil {
		t.Fatal(err)
	}
	return svc
}

func document(rules ...policy.Rule) policy.Document {
	doc := policy.NewDocument()
	doc.Rules = rules
	return doc
}

func allow(apps ...ids.AppID) policy.Rule {
	return policy.Rule{ID: ids.New[ids.RuleID](), Name: "allow", Effect: policy.Allow, Who: policy.Who{SignedIn: true}, Apps: policy.Apps{IDs: apps}}
}

func request(app ids.AppID) policy.Input {
	return policy.Input{Identity: policy.Identity{User: "usr_ann", Session: "ses_1", SignedInAt: noon, AuthTime: noon},
		Device: policy.Device{ID: "dev_1", Registered: true}, App: policy.App{ID: app, Name: "app", Class: policy.Public}}
}

// runUntil runs the service until work is done and everything that waits is written.
func runUntil(t *testing.T, svc *decision.Service, work func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- svc.Run(ctx) }()
	work()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestDecideRecordsAndReplays(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		svc := newService(t, s)
		rec, err := svc.Decide(t.Context(), request("app_wiki"))
		if err != nil || rec.Decision.Verdict.Grants() || rec.Decision.Reasons[0].Code != policy.CodeNoPolicy {
			t.Fatalf("before any revision: %v %v, %v", rec.Decision.Verdict, rec.Decision.Reasons, err)
		}
		rule := allow("app_wiki")
		if _, err := svc.Publish(t.Context(), document(rule), "ann", "first"); err != nil {
			t.Fatal(err)
		}
		allowed, err := svc.Decide(t.Context(), request("app_wiki"))
		if err != nil || allowed.Decision.Verdict != policy.VerdictAllow {
			t.Fatalf("%v %v, %v, want allow", allowed.Decision.Verdict, allowed.Decision.Reasons, err)
		}
		if kept, err := s.Decision(t.Context(), allowed.Receipt); err != nil || !kept.Decision.Equal(allowed.Decision) {
			t.Errorf("a granting decision is not in the store when the answer is out: %v", err)
		}
		var denied policy.Record
		runUntil(t, svc, func() { denied, _ = svc.Decide(t.Context(), request("app_pay")) })
		for _, r := range []policy.Record{allowed, denied} {
			if _, again, same, err := svc.Replay(t.Context(), r.Receipt); err != nil || !same {
				t.Errorf("replay of %v: %v, %v", r.Decision.Verdict, again, err)
			}
		}
		if denied.Decision.Verdict.Grants() || !slices.ContainsFunc(denied.Decision.Reasons, func(r policy.Reason) bool { return r.Code == policy.CodeNoRule }) {
			t.Errorf("%v %v, want deny no_rule", denied.Decision.Verdict, denied.Decision.Reasons)
		}
	})
}

func TestPublishSwapsAndKeeps(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		one, two := newService(t, open()), newService(t, open())
		first, err := one.Publish(t.Context(), document(allow("app_wiki")), "ann", "")
		if err != nil || first.Number != 1 {
			t.Fatal(first, err)
		}
		bad := allow("app_pay")
		bad.Effect = "permit"
		var ce *policy.CompileError
		if _, err := one.Publish(t.Context(), document(bad), "ann", ""); !errors.As(err, &ce) || one.Current().ID != first.ID {
			t.Errorf("a bad document: %v, revision %d in force", err, one.Current().Number)
		}
		second, err := two.Publish(t.Context(), document(allow("app_pay")), "bob", "")
		if err != nil || second.Number != 2 {
			t.Fatal(second, err)
		}
		if err := one.Load(t.Context()); err != nil || one.Current().ID != second.ID || one.Current().Hash != second.Hash {
			t.Errorf("the other broker after Load: %v, revision %d", err, one.Current().Number)
		}
	})
}

func TestPreviewUsesRecordedRequests(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		svc := newService(t, open())
		if _, err := svc.Publish(t.Context(), document(allow("app_wiki")), "ann", ""); err != nil {
			t.Fatal(err)
		}
		if _, err := svc.Decide(t.Context(), request("app_wiki")); err != nil {
			t.Fatal(err)
		}
		changes, skipped, err := svc.Preview(t.Context(), document(), noon.Add(-time.Hour), 100)
		if err != nil || skipped != 0 || len(changes) != 1 || changes[0].Gives() {
			t.Errorf("Preview of an empty policy = %+v, %d, %v, want that ann loses the wiki", changes, skipped, err)
		}
	})
}

// fake is a store that fails on demand.
type fake struct {
	decision.Store
	revision policy.StoredRevision
	putErr   error
	conflict int
	puts     []policy.Record
}

func (f *fake) CurrentRevision(context.Context) (policy.StoredRevision, error) {
	if f.revision.Number == 0 {
		return policy.StoredRevision{}, policy.ErrNotFound
	}
	return f.revision, nil
}

func (f *fake) PublishRevision(_ context.Context, r policy.StoredRevision) error {
	f.revision = r
	return nil
}

// Decision of this store knows nothing.
func (f *fake) Decision(context.Context, ids.ReceiptID) (policy.Record, error) {
	return policy.Record{}, policy.ErrNotFound
}

func (f *fake) PutDecision(_ context.Context, r policy.Record) error {
	if f.conflict > 0 {
		f.conflict--
		return policy.ErrConflict
	}
	if f.putErr == nil {
		f.puts = append(f.puts, r)
	}
	return f.putErr
}

func TestUnrecordedGrantIsDenied(t *testing.T) {
	f := &fake{}
	svc := newService(t, f)
	if _, err := svc.Publish(t.Context(), document(allow("app_wiki")), "ann", ""); err != nil {
		t.Fatal(err)
	}
	f.putErr = errors.New("disk full")
	rec, err := svc.Decide(t.Context(), request("app_wiki"))
	if !errors.Is(err, f.putErr) || rec.Decision.Verdict.Grants() || rec.Decision.Reasons[0].Code != policy.CodeNotRecorded {
		t.Errorf("with a full disk: %v %v, %v, want deny not_recorded", rec.Decision.Verdict, rec.Decision.Reasons, err)
	}
	if rec, err := svc.Decide(t.Context(), request("app_pay")); err != nil || rec.Decision.Verdict.Grants() {
		t.Errorf("a refusal with a full disk: %v, %v, want no error", rec.Decision.Verdict, err)
	}
}

func TestTakenReceiptIsDrawnAgain(t *testing.T) {
	f := &fake{conflict: 2}
	svc := newService(t, f)
	if _, err := svc.Publish(t.Context(), document(allow("app_wiki")), "ann", ""); err != nil {
		t.Fatal(err)
	}
	rec, err := svc.Decide(t.Context(), request("app_wiki"))
	if err != nil || len(f.puts) != 1 || f.puts[0].Receipt != rec.Receipt {
		t.Errorf("%v, stored %v, answered %v", err, f.puts, rec.Receipt)
	}
	f.conflict = 100
	if rec, err := svc.Decide(t.Context(), request("app_wiki")); !errors.Is(err, policy.ErrConflict) || rec.Decision.Verdict.Grants() {
		t.Errorf("no free receipt: %v, %v, want deny", rec.Decision.Verdict, err)
	}
}

func TestTamperedRevisionIsNotLoaded(t *testing.T) {
	f := &fake{}
	svc := newService(t, f)
	if _, err := svc.Publish(t.Context(), document(allow("app_wiki")), "ann", ""); err != nil {
		t.Fatal(err)
	}
	good := svc.Current()
	f.revision.ID, f.revision.Number, f.revision.Hash = "rev_x", 2, "00"
	if err := svc.Load(t.Context()); err == nil || svc.Current() != good {
		t.Errorf("Load = %v, revision %v in force, want the good one", err, svc.Current().Number)
	}
	f.revision.Document = []byte("{")
	if err := svc.Load(t.Context()); err == nil || svc.Current() != good {
		t.Errorf("Load of garbage = %v", err)
	}
}

func TestRefusalsNeverWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		svc := newService(t, f)
		for range 2000 {
			if _, err := svc.Decide(t.Context(), request("app_pay")); err != nil {
				t.Fatal(err)
			}
		}
		if svc.Dropped() != 2000-1024 {
			t.Errorf("dropped %d of 2000 with nobody writing, want what exceeds the backlog", svc.Dropped())
		}
		runUntil(t, svc, func() { synctest.Wait() })
		if len(f.puts) != 1024 {
			t.Errorf("%d refusals recorded in the end, want 1024", len(f.puts))
		}
	})
}

// A person may ask for the reason before the store has it.
func TestARefusalIsKnownBeforeItIsStored(t *testing.T) {
	svc := newService(t, &fake{})
	rec, err := svc.Decide(t.Context(), request("app_pay"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := svc.Recorded(t.Context(), rec.Receipt)
	if err != nil || got.Receipt != rec.Receipt || got.Decision.Verdict != policy.VerdictDeny {
		t.Errorf("Recorded of a receipt just given out = %v, %v", got, err)
	}
	runUntil(t, svc, func() {})
	if _, err := svc.Recorded(t.Context(), rec.Receipt); !errors.Is(err, policy.ErrNotFound) {
		t.Errorf("Recorded after it was stored = %v, want the answer of the store", err)
	}
}
