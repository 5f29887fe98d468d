package tunnels

import (
	"context"
	"crypto/tls"
	"time"

	"github.com/postern-zt/postern/client/session"
	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/proto/ids"
)

// SetReachForTest replaces the relays: f makes the carriers to a connector.
func (t *Tunnels) SetReachForTest(f func(ctx context.Context, id ids.ConnectorID, way string, config *tls.Config) (carrier.Carrier, error)) {
	t.reach = func(ctx context.Context, c *connector, w way, config *tls.Config) (carrier.Carrier, error) {
		return f(ctx, c.id, w.name, config)
	}
}

// PicksForTest lists the relay of each way among n, -1 for none.
func PicksForTest(n int, tlsOnly bool) map[string]int {
	out := map[string]int{}
	for _, w := range ways(tlsOnly) {
		i, ok := w.pick(n)
		if !ok {
			i = -1
		}
		out[w.name] = i
	}
	return out
}

// SetClientForTest replaces the broker.
func (t *Tunnels) SetClientForTest(c Authorizer) { t.cfg.Client = c }

// GrantForTest returns the id of the grant at hand.
func (t *Tunnels) GrantForTest(app session.App) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	g, ok := t.book.Grant(app, t.cfg.Now())
	if !ok {
		return ""
	}
	return string(g.ID)
}

// WhileReachedForTest is an open through a connector that has just lost a carrier and has
// so many left.
func WhileReachedForTest(ctx context.Context, carriers int32) (context.Context, func()) {
	c := &connector{}
	c.lost.Store(time.Now().UnixNano())
	c.carriers.Store(carriers)
	return c.whileReached(ctx)
}

// ExplainForTest is how an error of the Authorize call becomes one of ours.
func ExplainForTest(err error) error { return explain(err) }
