package store_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/broker/store/storetest"
)

func change(t *testing.T, s *store.Store, key string) uint64 {
	t.Helper()
	var seq uint64
	err := s.InTx(t.Context(), func(tx *store.Tx) (err error) {
		seq, err = tx.Change(t.Context(), "app", key)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return seq
}

func TestTransactionSpansMethods(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		undo := errors.New("undo")
		err := s.InTx(t.Context(), func(tx *store.Tx) error {
			ctx := tx.Context(t.Context())
			if err := s.SetMeta(ctx, "a", "1"); err != nil {
				return err
			}
			if _, err := tx.Change(ctx, "meta", "a"); err != nil {
				return err
			}
			if v, err := s.Meta(ctx, "a"); err != nil || v != "1" {
				t.Errorf("inside: %q, %v, want 1", v, err)
			}
			if _, err := s.Meta(t.Context(), "a"); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("outside: %v, want ErrNotFound", err)
			}
			return undo
		})
		if !errors.Is(err, undo) {
			t.Fatalf("InTx = %v", err)
		}
		if _, err := s.Meta(t.Context(), "a"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("after undo: %v, want ErrNotFound", err)
		}
		if v, err := s.Version(t.Context()); err != nil || v.Seq != 0 {
			t.Errorf("version after undo = %+v, %v, want sequence 0", v, err)
		}
	})
}

// watching pulls batches of one watcher.
type watching struct {
	t    *testing.T
	next func() (store.Batch, error, bool)
}

func watch(t *testing.T, s *store.Store, after uint64) watching {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // a bound for a broken test only
	next, stop := iter.Pull2(s.Watch(ctx, after))
	t.Cleanup(func() { cancel(); stop() })
	return watching{t, next}
}

func (w watching) batch() store.Batch {
	w.t.Helper()
	b, err, ok := w.next()
	if err != nil || !ok {
		w.t.Fatalf("watch ended: %v, %v", err, ok)
	}
	return b
}

func (w watching) wantReread() store.Batch {
	w.t.Helper()
	b := w.batch()
	if !b.Reread || len(b.Changes) != 0 {
		w.t.Fatalf("batch = %+v, want a reread", b)
	}
	return b
}

func TestWatch(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		change(t, s, "before")
		w := watch(t, s, 0)
		if b := w.wantReread(); b.Version != (store.Version{Epoch: 1, Seq: 1}) {
			t.Errorf("version = %+v, want epoch 1, sequence 1", b.Version)
		}
		change(t, s, "wiki")
		want := []store.Change{{Seq: 2, Topic: "app", Key: "wiki"}}
		if diff := cmp.Diff(want, w.batch().Changes); diff != "" {
			t.Errorf("changes, -want +got:\n%s", diff)
		}
		// A watcher that comes back continues where it was.
		if diff := cmp.Diff(want, watch(t, s, 1).batch().Changes); diff != "" {
			t.Errorf("changes after coming back, -want +got:\n%s", diff)
		}
		if _, err := s.NewEpoch(t.Context()); err != nil {
			t.Fatal(err)
		}
		if b := w.wantReread(); b.Version.Epoch != 2 {
			t.Errorf("epoch after a restore = %d, want 2", b.Version.Epoch)
		}
	})
}

func TestWatchSeesOtherBrokers(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		a, b := open(), open()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := a.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		defer wg.Wait()
		defer cancel()
		w := watch(t, a, 0)
		w.wantReread()
		seq := change(t, b, "from the other")
		if got := w.batch(); len(got.Changes) != 1 || got.Changes[0].Seq != seq {
			t.Errorf("batch = %+v, want change %d", got, seq)
		}
	})
}

func TestListenerComesBack(t *testing.T) {
	dsn := storetest.Postgres(t)
	a, b := storetest.Open(t, dsn), storetest.Open(t, dsn)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := a.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer wg.Wait()
	defer cancel()
	w := watch(t, a, 0)
	w.wantReread()
	for range 2 {
		change(t, b, "x")
		if got := w.batch(); len(got.Changes) != 1 {
			t.Errorf("batch = %+v, want one change", got)
		}
		err := b.ExecForTest(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND query LIKE 'LISTEN%'`)
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestSlowWatcherRereads(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		w := watch(t, s, 0)
		w.wantReread()
		err := s.InTx(t.Context(), func(tx *store.Tx) error {
			for i := range 1100 {
				if _, err := tx.Change(t.Context(), "app", fmt.Sprint(i)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if b := w.wantReread(); b.Version.Seq != 1100 {
			t.Errorf("version = %+v, want sequence 1100", b.Version)
		}
	})
}

func TestPrunedChangesReread(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		for range 3 {
			change(t, s, "x")
		}
		if n, err := s.PruneChanges(t.Context(), time.Now().Add(time.Hour)); err != nil || n != 3 {
			t.Fatalf("PruneChanges = %d, %v, want 3", n, err)
		}
		watch(t, s, 1).wantReread()
		watch(t, s, 99).wantReread() // a sequence of another database
	})
}

func TestFullRereadNow(t *testing.T) {
	storetest.EachDSN(t, func(t *testing.T, dsn string) {
		s, err := store.Open(t.Context(), store.Config{DSN: dsn, Log: slog.New(slog.DiscardHandler), RereadEvery: 10 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		w := watch(t, s, 0)
		for range 3 {
			w.wantReread()
		}
	})
}

// TestSequenceIsCommitOrder lets two brokers write at the same time while a third watches:
// each sequence must show once and in order, or a revocation could be lost.
func TestSequenceIsCommitOrder(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		const writers, each = 4, 20
		a, b, c := open(), open(), open()
		first := change(t, a, "first")
		var wg sync.WaitGroup
		for i := range writers {
			s := []*store.Store{a, b}[i%2]
			wg.Go(func() {
				for range each {
					err := s.InTx(t.Context(), func(tx *store.Tx) error {
						_, err := tx.Change(t.Context(), "app", "x")
						return err
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		last := first
		w := watch(t, c, first)
		for last < first+writers*each {
			for _, ch := range w.batch().Changes {
				if ch.Seq != last+1 {
					t.Fatalf("change %d after %d", ch.Seq, last)
				}
				last = ch.Seq
			}
		}
		wg.Wait()
	})
}
