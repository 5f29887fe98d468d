package store_test

import (
	"encoding/json"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/broker/directory"
	ident "github.com/postern-zt/postern/broker/identity"
	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/broker/store/storetest"
	"github.com/postern-zt/postern/proto/ids"
)

func testRecord(kind ident.Kind, key string) ident.Record {
	return ident.Record{
		Kind: kind, Key: key, Alt: "alt-" + key, User: ids.New[ids.UserID](), Family: "family",
		Data: json.RawMessage(`{"a":1}`), Expires: time.UnixMilli(1_800_000_000_001).UTC(),
	}
}

func TestIdentityRecords(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s, ctx := open(), t.Context()
		r := testRecord("flow", "one")
		if err := s.AddRecord(ctx, r); err != nil {
			t.Fatal(err)
		}
		got, err := s.Record(ctx, "flow", "one")
		byAlt, err2 := s.RecordByAlt(ctx, "flow", "alt-one")
		if diff := cmp.Diff(r, got) + cmp.Diff(r, byAlt); errors.Join(err, err2) != nil || diff != "" {
			t.Errorf("read: %v %v %s", err, err2, diff)
		}
		if err := s.AddRecord(ctx, r); !errors.Is(err, ident.ErrExists) {
			t.Errorf("same key: %v", err)
		}
		twin := testRecord("flow", "two")
		twin.Alt = r.Alt
		if err := s.AddRecord(ctx, twin); !errors.Is(err, ident.ErrExists) {
			t.Errorf("same second key: %v", err)
		}
		for _, key := range []string{"three", "four"} { // no second key: no conflict
			bare := testRecord("flow", key)
			bare.Alt = ""
			if err := s.AddRecord(ctx, bare); err != nil {
				t.Error(err)
			}
		}
		if _, err := s.RecordByAlt(ctx, "flow", ""); !errors.Is(err, ident.ErrNotFound) {
			t.Errorf("empty second key: %v", err)
		}
		if _, err := s.Record(ctx, "device", "one"); !errors.Is(err, ident.ErrNotFound) {
			t.Errorf("other kind: %v", err)
		}
		r.Data, r.Alt = json.RawMessage(`"new"`), ""
		if err := s.PutRecord(ctx, r); err != nil {
			t.Error(err)
		}
		if got, err := s.Record(ctx, "flow", "one"); err != nil || cmp.Diff(r, got) != "" {
			t.Errorf("after put: %v %s", err, cmp.Diff(r, got))
		}
		if n, err := s.CountRecords(ctx, "flow"); n != 3 || err != nil {
			t.Errorf("count = %d, %v", n, err)
		}
	})
}

func TestIdentityRecordIsTakenOnce(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s, ctx := open(), t.Context()
		if err := s.AddRecord(ctx, testRecord("owner", "code")); err != nil {
			t.Fatal(err)
		}
		var won atomic.Int32
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				switch r, err := s.TakeRecord(ctx, "owner", "code"); {
				case err == nil && string(r.Data) == `{"a":1}`:
					won.Add(1)
				case !errors.Is(err, ident.ErrNotFound):
					t.Errorf("take: %+v, %v", r, err)
				}
			})
		}
		group.Wait()
		if won.Load() != 1 {
			t.Errorf("taken %d times", won.Load())
		}
	})
}

func TestIdentityRecordChangesAndEnds(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s, ctx := open(), t.Context()
		a, b := testRecord("refresh", "a"), testRecord("refresh", "b")
		b.User, b.Family = a.User, "other"
		if err := errors.Join(s.AddRecord(ctx, a), s.AddRecord(ctx, b), s.AddRecord(ctx, testRecord("invite", "c"))); err != nil {
			t.Fatal(err)
		}
		changed, err := s.ChangeRecord(ctx, "refresh", "a", func(r *ident.Record) error {
			r.Alt, r.Data, r.Expires = "", json.RawMessage(`2`), time.UnixMilli(5).UTC()
			return nil
		})
		if got, err2 := s.Record(ctx, "refresh", "a"); err != nil || err2 != nil || cmp.Diff(changed, got) != "" {
			t.Errorf("change: %v %v %s", err, err2, cmp.Diff(changed, got))
		}
		refused := errors.New("refused")
		if _, err := s.ChangeRecord(ctx, "refresh", "b", func(*ident.Record) error { return refused }); !errors.Is(err, refused) {
			t.Errorf("refused change: %v", err)
		}
		if _, err := s.ChangeRecord(ctx, "refresh", "z", func(*ident.Record) error { return nil }); !errors.Is(err, ident.ErrNotFound) {
			t.Errorf("unknown record: %v", err)
		}
		count := func(want int, after string) {
			t.Helper()
			n, err := s.CountRecords(ctx, "refresh")
			if n != want || err != nil {
				t.Errorf("after %s: %d records, %v", after, n, err)
			}
		}
		if err := s.DeleteExpired(ctx, time.UnixMilli(6)); err != nil {
			t.Error(err)
		}
		count(1, "expiry")
		if err := s.DeleteRecords(ctx, ident.Filter{Kind: "refresh", Family: "family"}); err != nil {
			t.Error(err)
		}
		count(1, "another family's end")
		if err := s.DeleteRecords(ctx, ident.Filter{User: a.User}); err != nil {
			t.Error(err)
		}
		count(0, "the user's end")
		if err := s.DeleteRecords(ctx, ident.Filter{}); err == nil {
			t.Error("an empty filter deleted everything")
		}
		if n, _ := s.CountRecords(ctx, "invite"); n != 1 {
			t.Errorf("%d invitations left", n)
		}
	})
}

func TestIdentityIssuers(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s, ctx := open(), t.Context()
		i := ident.StoredIssuer{
			ID: ids.New[ids.IssuerID](), Name: "Corp", URL: "https://idp.example", ClientID: "c", SealedSecret: []byte{0, 255, 1},
			Scopes: []string{"groups"}, Claims: directory.ClaimMap{Groups: "roles", Attributes: map[string]string{"a": "b"}},
			CreatedAt: time.UnixMilli(1_700_000_000_000).UTC(),
		}
		if err := s.PutIssuer(ctx, i); err != nil {
			t.Fatal(err)
		}
		i.Name = "Renamed"
		if err := s.PutIssuer(ctx, i); err != nil {
			t.Fatal(err)
		}
		got, err := s.Issuer(ctx, i.ID)
		if diff := cmp.Diff(i, got); err != nil || diff != "" {
			t.Errorf("issuer: %v %s", err, diff)
		}
		twin := i
		twin.ID = ids.New[ids.IssuerID]()
		if err := s.PutIssuer(ctx, twin); !errors.Is(err, ident.ErrExists) {
			t.Errorf("second issuer with this URL: %v", err)
		}
		if list, err := s.Issuers(ctx); len(list) != 1 || err != nil {
			t.Errorf("list: %d, %v", len(list), err)
		}
		if err := s.DeleteIssuer(ctx, i.ID); err != nil {
			t.Error(err)
		}
		if err := s.DeleteIssuer(ctx, i.ID); !errors.Is(err, ident.ErrNotFound) {
			t.Errorf("second delete: %v", err)
		}
	})
}
