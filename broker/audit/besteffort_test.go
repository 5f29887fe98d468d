package audit_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/broker/store/storetest"
	"github.com/postern-zt/postern/proto/ids"
)

// running runs f's loop until the returned function is called.
func running(t *testing.T, f fixture) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

// advance moves the bubble's clock and waits until its effects are done.
func advance(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestDeniedScanBecomesOneCountedRecord(t *testing.T) {
	dsn := storetest.SQLite(t)
	synctest.Test(t, func(t *testing.T) {
		f := newLog(t, storetest.Open(t, dsn))
		stop := running(t, f)
		ann, app := ids.New[ids.UserID](), ids.New[ids.AppID]()
		for port := range 10000 {
			f.AppendBestEffort(audit.Event{Kind: audit.Denied, User: ann, App: app, Receipt: ids.NewReceipt(),
				Reasons: []string{"no_rule"}, Details: map[string]string{"port": fmt.Sprint(port)}})
		}
		f.AppendBestEffort(audit.Event{Kind: audit.Denied, User: ids.New[ids.UserID](), App: app, Reasons: []string{"no_rule"}})
		synctest.Wait()
		if n := len(f.records(t, audit.Query{})); n != 2 {
			t.Errorf("%d records at once, want the first of each user", n)
		}
		advance(62 * time.Second)
		found := f.records(t, audit.Query{User: ann})
		if len(found) != 2 || found[0].Count != 9999 || found[0].Details["port"] != "9999" {
			t.Errorf("records of the scan = %+v, want the first and one with the count 9999", found)
		}
		stop()
		f.mustHold(t, 3)
		if f.Lost() != 0 {
			t.Errorf("Lost = %d", f.Lost())
		}
	})
}

func TestFullDiskStopsAllowNotDeny(t *testing.T) {
	dsn := storetest.SQLite(t)
	synctest.Test(t, func(t *testing.T) {
		s := &brokenStore{Store: storetest.Open(t, dsn)}
		f := newLog(t, s, func(c *audit.Config) { c.QueueLen = 10 })
		stop := running(t, f)
		s.set(store.ErrFull)
		if _, err := f.Append(t.Context(), audit.Event{Kind: audit.Decision}); !errors.Is(err, store.ErrFull) {
			t.Errorf("Append on a full disk = %v, want ErrFull", err)
		}
		before := time.Now()
		for range 25 {
			f.AppendBestEffort(audit.Event{Kind: audit.Revoked, Session: ids.New[ids.SessionID]()})
		}
		if waited := time.Since(before); waited != 0 {
			t.Errorf("revocations waited %v for the disk", waited)
		}
		synctest.Wait()
		if f.Lost() == 0 {
			t.Error("25 records fit into a queue of 10")
		}
		lost := f.Lost()
		s.set(nil)
		advance(3 * time.Second)
		if n := uint64(len(f.records(t, audit.Query{Kind: audit.Revoked}))); n != 25-lost {
			t.Errorf("%d revocations recorded, %d lost, want 25 together", n, lost)
		}
		var counted uint64
		for _, r := range f.records(t, audit.Query{Kind: audit.Lost}) {
			counted += r.Count
		}
		if counted != lost {
			t.Errorf("lost records count %d, want %d", counted, lost)
		}
		stop()
		if r := f.verify(t); !r.OK() {
			t.Errorf("Verify: %v", r.Breaks)
		}
	})
}

func TestRunWritesTheRestAtItsEnd(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		f := newLog(t, open())
		for range 3 {
			f.AppendBestEffort(audit.Event{Kind: audit.Denied, Reasons: []string{"x"}})
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := f.Run(ctx); err != nil {
			t.Fatal(err)
		}
		f.mustHold(t, 2) // the first, and one with the count 2
		if r := f.verify(t); r.Writers[0].Signed != 2 {
			t.Errorf("signed through %d, want 2", r.Writers[0].Signed)
		}
	})
}
