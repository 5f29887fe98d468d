package authorize

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"
)

// TestFailedReloadIsTriedAgain: state that cannot be read anew is remembered, shown and
// read as soon as that works; then every grant is judged by it.
func TestFailedReloadIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	broken := errors.New("corrupt policy")
	r := NewReactor(ReactorConfig{
		Authorizer: w.Authorizer, Ledger: w.ledger, Sources: w, Listener: w, Now: func() time.Time { return w.now },
		Reload: func(context.Context, map[string]bool) error { return broken }, Log: slog.New(slog.DiscardHandler),
	})
	if err := r.handle(t.Context(), Changes{List: []Change{{Topic: "somewhere else"}}}); err != nil {
		t.Fatal(err)
	}
	if r.Stale() == nil || !w.live() {
		t.Fatalf("after a failure: stale %v, grant live %v", r.Stale(), w.live())
	}
	if r.retry(t.Context()); r.Stale() == nil {
		t.Fatal("the failure was forgotten")
	}
	broken = nil
	if r.retry(t.Context()); r.Stale() != nil || w.live() {
		t.Errorf("after the state was read: stale %v, grant live %v", r.Stale(), w.live())
	}
}
