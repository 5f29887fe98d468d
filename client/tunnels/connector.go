package tunnels

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-zt/postern/client/session"
	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/link"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/ids"
)

// presentTimeout bounds the showing of one grant, the dialling of a carrier included.
const presentTimeout = 30 * time.Second

// connector is one connector with its link.
type connector struct {
	id     ids.ConnectorID
	key    ids.KeyID
	client *link.Client
	// carriers counts the live ones; lost is when the last of them went, in Unix
	// nanoseconds.
	carriers atomic.Int32
	lost     atomic.Int64

	mu     sync.Mutex // guards the fields below
	relays []*controlv1.RelayPath
	failed map[failure]time.Time
	shown  map[ids.GrantID]*shown
	// moving are carriers that follow a change of the network when told.
	moving []rebinder
}

// shown is a grant on the link.
type shown struct {
	ref     link.GrantRef
	hardEnd time.Time
	verdict *call[link.GrantRef]
}

// rebinder is a carrier that can ask for a new mapping at its relay.
type rebinder interface {
	carrier.Carrier
	Rebind()
}

// connector returns the link to a connector, a new one at first use. A connector whose
// identity key is not the pinned one is refused.
func (t *Tunnels) connector(path *controlv1.ConnectorPath) (*connector, error) {
	id, err := ids.Parse[ids.ConnectorID](path.GetConnectorId())
	if err != nil {
		return nil, fmt.Errorf("answer of the broker: %w", err)
	}
	var key ids.KeyID
	if copy(key[:], path.GetKeyId()) != len(key) || len(path.GetKeyId()) != len(key) {
		return nil, fmt.Errorf("connector %s: malformed identity key", id)
	}
	t.mu.Lock()
	c := t.connectors[id]
	t.mu.Unlock()
	if c != nil && c.key == key {
		return c, nil
	}
	if err := t.cfg.CheckConnector(id, key); err != nil {
		return nil, err
	}
	return t.newConnector(id, key, path.GetRelays())
}

func (t *Tunnels) newConnector(id ids.ConnectorID, key ids.KeyID, relays []*controlv1.RelayPath) (*connector, error) {
	c := &connector{id: id, key: key, failed: map[failure]time.Time{}, shown: map[ids.GrantID]*shown{}}
	c.setRelays(relays)
	dial, err := t.dialers(c)
	if err != nil {
		return nil, err
	}
	c.client, err = link.NewClient(link.ClientConfig{
		Instance: t.instance, Peer: key, Dial: dial, Chooser: t.chooser, Memory: t.memory,
		Events: t.events(c), Log: t.log.With("connector", id),
	})
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.connectors[id]; old != nil && old.key == key {
		return old, nil // somebody else was faster
	}
	if !t.startLocked(func(ctx context.Context) { _ = c.client.Run(ctx) }) { // always the end of ctx
		return nil, ErrClosed
	}
	t.connectors[id] = c
	return c, nil
}

func (t *Tunnels) events(c *connector) link.Events {
	log := t.log.With("connector", c.id)
	return link.Events{
		CarrierUp: func(s link.CarrierStatus) {
			c.carriers.Add(1)
			log.Debug("carrier up", "carrier", s.Name, "path", s.Path)
		},
		CarrierDown: func(name string, err error) {
			c.lost.Store(time.Now().UnixNano())
			c.carriers.Add(-1)
			log.Debug("carrier down", "carrier", name, "error", err)
		},
		GrantClosed: func(ref link.GrantRef, code frame.Code) {
			if id, ok := c.forget(ref); ok {
				log.Info("grant ended", "grant", id, "code", code.String())
				t.mu.Lock()
				t.book.End(id)
				t.mu.Unlock()
			}
		},
		Resumed: func(flows int, stalled time.Duration) {
			log.Info("flows went on over another carrier", "count", flows, "duration", stalled)
		},
	}
}

// present shows a grant once per link and returns its reference when it was accepted.
func (t *Tunnels) present(ctx context.Context, c *connector, g *session.Grant) (link.GrantRef, error) {
	t.mu.Lock()
	c.mu.Lock()
	s := c.shown[g.ID]
	if s == nil {
		t.nextRef++
		s = &shown{ref: t.nextRef, hardEnd: g.HardEnd, verdict: newCall[link.GrantRef]()}
		if !t.startLocked(func(ctx context.Context) { c.show(ctx, g, s) }) {
			c.mu.Unlock()
			t.mu.Unlock()
			return 0, ErrClosed
		}
		c.shown[g.ID] = s
	}
	c.mu.Unlock()
	t.mu.Unlock()
	return s.verdict.wait(ctx)
}

// whileReached returns a context that ends when no carrier has been there for carrierWait.
func (c *connector) whileReached(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	var look func()
	mu, timer := sync.Mutex{}, (*time.Timer)(nil)
	look = func() {
		if c.carriers.Load() == 0 && time.Since(time.Unix(0, c.lost.Load())) >= carrierWait {
			cancel(errNotReached)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if ctx.Err() == nil {
			timer.Reset(lookEvery)
		}
	}
	mu.Lock()
	timer = time.AfterFunc(lookEvery, look)
	mu.Unlock()
	return ctx, func() { cancel(nil); timer.Stop() }
}

func (c *connector) show(ctx context.Context, g *session.Grant, s *shown) {
	ctx, cancel := context.WithTimeout(ctx, presentTimeout)
	defer cancel()
	err := c.client.Present(ctx, g.Envelope, s.ref)
	if err != nil {
		c.withdraw(g.ID)
	}
	s.verdict.finish(s.ref, err)
}

// withdraw takes a grant off the link; its flows are reset. Unknown grants are nothing.
func (c *connector) withdraw(id ids.GrantID) {
	c.mu.Lock()
	s := c.shown[id]
	delete(c.shown, id)
	c.mu.Unlock()
	if s != nil {
		c.client.Withdraw(s.ref)
	}
}

// forget drops a grant that the connector has closed.
func (c *connector) forget(ref link.GrantRef) (ids.GrantID, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, s := range c.shown {
		if s.ref == ref {
			delete(c.shown, id)
			return id, true
		}
	}
	return "", false
}

func (c *connector) presentedGrants() []ids.GrantID {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []ids.GrantID
	for id := range c.shown {
		out = append(out, id)
	}
	return out
}

// endedBy lists the grants whose hard end has passed.
func (c *connector) endedBy(now time.Time) []ids.GrantID {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []ids.GrantID
	for id, s := range c.shown {
		if !now.Before(s.hardEnd) {
			out = append(out, id)
		}
	}
	return out
}

// probe looks whether the carriers live and moves those that can move.
func (c *connector) probe() {
	c.mu.Lock()
	c.moving = slices.DeleteFunc(c.moving, func(r rebinder) bool { return r.Err() != nil })
	moving := slices.Clone(c.moving)
	c.mu.Unlock()
	for _, r := range moving {
		r.Rebind()
	}
	c.client.Probe()
}
