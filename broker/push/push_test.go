package push_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/postern-zt/postern/broker/push"
)

func TestMarksCollapse(t *testing.T) {
	h := push.NewHub[string]()
	s := h.Subscribe("a")
	defer s.Close()
	if m, err := s.Next(t.Context()); err != nil || m != push.Everything {
		t.Fatalf("a new stream starts with %v, %v", m, err)
	}
	for range 1000 {
		h.Mark("a", push.Statement)
	}
	h.MarkAll(push.Catalog)
	h.Mark("nobody", push.Statement)
	if m, err := s.Next(t.Context()); err != nil || m != push.Statement|push.Catalog {
		t.Fatalf("Next = %v, %v", m, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if m, err := s.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Next without news = %v, %v", m, err)
	}
}

func TestNewStreamTakesOver(t *testing.T) {
	h := push.NewHub[string]()
	first := h.Subscribe("a")
	second := h.Subscribe("a")
	if _, err := first.Next(t.Context()); !errors.Is(err, push.ErrSuperseded) {
		t.Errorf("the old stream: %v", err)
	}
	first.Close()
	if !h.Online("a") {
		t.Error("closing the old stream ended the new one")
	}
	second.Close()
	if h.Online("a") || len(h.Keys()) != 0 {
		t.Error("the caller is still online")
	}
}

// TestNoMarkIsLost marks while the reader is between two calls of Next.
func TestNoMarkIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := push.NewHub[int]()
		s := h.Subscribe(1)
		defer s.Close()
		var seen push.Mark
		done := make(chan struct{})
		go func() {
			defer close(done)
			for !seen.Has(push.Cuts | push.Grants) {
				m, err := s.Next(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				seen |= m
			}
		}()
		h.Mark(1, push.Cuts)
		synctest.Wait()
		h.Mark(1, push.Grants)
		<-done
	})
}
