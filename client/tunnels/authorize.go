package tunnels

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/client/session"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/ids"
)

const (
	// authorizeTimeout bounds one question to the broker.
	authorizeTimeout = 15 * time.Second
	// stepUpHold is how long a program waits while its user signs in again (decisions
	// rule 20).
	stepUpHold = 8 * time.Second
)

// call is work that several wait for.
type call[T any] struct {
	done chan struct{}
	val  T
	err  error
}

func newCall[T any]() *call[T] { return &call[T]{done: make(chan struct{})} }

func (c *call[T]) finish(val T, err error) {
	c.val, c.err = val, err
	close(c.done)
}

func (c *call[T]) wait(ctx context.Context) (T, error) {
	select {
	case <-c.done:
		return c.val, c.err
	case <-ctx.Done():
		var zero T
		return zero, context.Cause(ctx)
	}
}

// ask is one question to the broker.
type ask struct {
	app     session.App
	network string
	port    uint16
	// fresh asks although a grant is at hand: for new tickets.
	fresh bool
}

// grant returns a live grant from memory or from the broker; concurrent questions for one
// app share one call.
func (t *Tunnels) grant(ctx context.Context, a ask) (*session.Grant, error) {
	key := a.app.Key()
	t.mu.Lock()
	if !a.fresh {
		if g, ok := t.book.Grant(a.app, t.cfg.Now()); ok {
			t.mu.Unlock()
			return g, nil
		}
	}
	c := t.asking[key] // one that is under way may wait for a step-up, behind its denial
	if r, ok := t.book.Denial(a.app, time.Now()); ok && c == nil {
		t.mu.Unlock()
		return nil, &DeniedError{Receipt: r}
	}
	if c == nil {
		c = newCall[*session.Grant]()
		if !t.startLocked(func(ctx context.Context) { t.authorize(ctx, a, c) }) {
			t.mu.Unlock()
			return nil, ErrClosed
		}
		t.asking[key] = c
	}
	t.mu.Unlock()
	return c.wait(ctx)
}

// authorize asks the broker and writes the answer into the book before anyone sees it. A
// step-up is waited for: whenever denials are void it asks again.
func (t *Tunnels) authorize(ctx context.Context, a ask, c *call[*session.Grant]) {
	hold, cancel := context.WithTimeout(ctx, stepUpHold)
	defer cancel()
	void := t.denialsVoid()
	g, err := t.question(ctx, a)
	for needsStepUp(err) && waitFor(hold, void) {
		void = t.denialsVoid()
		g, err = t.question(ctx, a)
	}
	t.mu.Lock()
	delete(t.asking, a.app.Key())
	t.mu.Unlock()
	c.finish(g, err)
}

// question is one question to the broker.
func (t *Tunnels) question(ctx context.Context, a ask) (*session.Grant, error) {
	ctx, cancel := context.WithTimeout(ctx, authorizeTimeout)
	defer cancel()
	req := &controlv1.AuthorizeRequest{AppId: string(a.app.ID), AppName: a.app.Name, Network: a.network, Port: uint32(a.port)}
	resp, err := t.cfg.Client.Authorize(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, explain(err)
	}
	return t.take(a.app, resp.Msg)
}

// needsStepUp reports a refusal that a new sign-in would turn.
func needsStepUp(err error) bool {
	denied, ok := errors.AsType[*DeniedError](err)
	return ok && denied.Receipt.GetVerdict() == controlv1.Verdict_VERDICT_STEP_UP
}

// denialsVoid is closed when the next news makes denials void.
func (t *Tunnels) denialsVoid() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.void
}

// waitFor reports whether ch was closed before ctx ended.
func waitFor(ctx context.Context, ch <-chan struct{}) bool {
	select {
	case <-ch:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// take keeps the broker's answer. Anything but a clear permission is a denial.
func (t *Tunnels) take(app session.App, m *controlv1.AuthorizeResponse) (*session.Grant, error) {
	r := m.GetReceipt()
	if !allowed(r) || len(m.GetGrant()) == 0 {
		t.mu.Lock()
		t.book.Deny(app, r, time.Duration(m.GetRetryAfterMs())*time.Millisecond, time.Now())
		t.refused = r
		t.mu.Unlock()
		t.cfg.OnDenied(nameOf(app, r), r)
		return nil, &DeniedError{Receipt: r}
	}
	id, err := ids.Parse[ids.GrantID](m.GetGrantId())
	if err != nil {
		return nil, fmt.Errorf("answer of the broker: %w", err)
	}
	g := &session.Grant{
		ID: id, Envelope: m.GetGrant(), HardEnd: time.UnixMilli(m.GetHardEndMs()), Connectors: m.GetConnectors(), Receipt: r,
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.book.Allow(app, g)
	for _, path := range g.Connectors {
		if c := t.connectors[ids.ConnectorID(path.GetConnectorId())]; c != nil {
			c.setRelays(path.GetRelays())
		}
	}
	return g, nil
}

func nameOf(app session.App, r *controlv1.Receipt) string {
	if r.GetAppName() != "" {
		return r.GetAppName()
	}
	return app.Name
}

// allowed reports whether a receipt permits; unknown verdicts deny.
func allowed(r *controlv1.Receipt) bool {
	switch r.GetVerdict() {
	case controlv1.Verdict_VERDICT_ALLOW, controlv1.Verdict_VERDICT_LIMITED:
		return true
	default:
		return false
	}
}
