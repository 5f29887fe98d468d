package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/broker/store/storetest"
	"github.com/postern-zt/postern/proto/ids"
)

func TestMain(m *testing.M) { storetest.Main(m, storetest.Leaks) }

func TestMeta(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		if _, err := s.Meta(t.Context(), "org"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Meta of a missing key = %v, want ErrNotFound", err)
		}
		if got, err := s.MetaOnce(t.Context(), "org", "first"); err != nil || got != "first" {
			t.Errorf("MetaOnce = %q, %v, want first", got, err)
		}
		if got, err := s.MetaOnce(t.Context(), "org", "second"); err != nil || got != "first" {
			t.Errorf("second MetaOnce = %q, %v, want first", got, err)
		}
		if err := s.SetMeta(t.Context(), "org", "third"); err != nil {
			t.Fatal(err)
		}
		if got, err := open().Meta(t.Context(), "org"); err != nil || got != "third" {
			t.Errorf("Meta after reopening = %q, %v, want third", got, err)
		}
	})
}

func TestBrokers(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		b := store.Broker{ID: ids.New[ids.BrokerID](), Name: "b1", Version: "1", StartedAt: time.UnixMilli(1000).UTC()}
		for range 2 {
			b.SeenAt = time.UnixMilli(2000).UTC()
			if err := s.PutBroker(t.Context(), b); err != nil {
				t.Fatal(err)
			}
		}
		got, err := s.Brokers(t.Context())
		if diff := cmp.Diff([]store.Broker{b}, got); err != nil || diff != "" {
			t.Errorf("Brokers: %v, -want +got:\n%s", err, diff)
		}
	})
}
