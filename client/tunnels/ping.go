package tunnels

import (
	"context"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/postern-zt/postern/client/session"
	"github.com/postern-zt/postern/netstack/link"
)

// Leg is one part of the way to an app.
type Leg struct {
	Name string
	RTT  time.Duration
	Err  error
}

// legWait bounds each leg of a Ping.
const legWait = 5 * time.Second

// errNoAnswer is a leg that took longer than legWait.
var errNoAnswer = errors.New("no answer within 5 s")

// Ping measures the way to an app leg by leg. The error is set when access is refused; a
// leg that fails carries its own.
func (t *Tunnels) Ping(ctx context.Context, app session.App, port uint16) ([]Leg, error) {
	var legs []Leg
	err := t.open(ctx, app, "tcp", port, func(ctx context.Context, c *connector, ref link.GrantRef) error {
		legs = []Leg{t.relayLeg(ctx, c), measure(ctx, "client to connector", c.client.Ping)}
		if err := legs[1].Err; err != nil {
			return err
		}
		legs = append(legs, measure(ctx, "connector to app", func(ctx context.Context) (time.Duration, error) {
			return c.client.ConnectTime(ctx, ref, port)
		}))
		return legs[2].Err
	})
	switch {
	case len(legs) > 0:
		return legs, nil // the refusal stands in its leg
	case errors.Is(err, link.ErrNoCarrier):
		return t.unreachedLegs(ctx, app, port, err), nil
	default:
		return nil, err
	}
}

// unreachedLegs says how far the way goes to a connector that was not reached.
func (t *Tunnels) unreachedLegs(ctx context.Context, app session.App, port uint16, err error) []Leg {
	legs := []Leg{{Name: "client to connector", Err: err}}
	g, none := t.grant(ctx, ask{app: app, network: "tcp", port: port})
	if none != nil || len(g.Connectors) == 0 {
		return legs
	}
	if c, none := t.connector(g.Connectors[0]); none == nil {
		legs = slices.Insert(legs, 0, t.relayLeg(ctx, c))
	}
	return legs
}

// measure takes one leg.
func measure(ctx context.Context, name string, do func(ctx context.Context) (time.Duration, error)) Leg {
	waiting, cancel := context.WithTimeout(ctx, legWait)
	defer cancel()
	rtt, err := do(waiting)
	if err != nil && ctx.Err() == nil && waiting.Err() != nil {
		err = errNoAnswer
	}
	return Leg{Name: name, RTT: rtt, Err: err}
}

// relayLeg measures a TCP handshake with the first relay.
func (t *Tunnels) relayLeg(ctx context.Context, c *connector) Leg {
	return measure(ctx, "client to relay", func(ctx context.Context) (time.Duration, error) { return t.relayTime(ctx, c) })
}

func (t *Tunnels) relayTime(ctx context.Context, c *connector) (rtt time.Duration, err error) {
	path, ok := c.relay(way{name: "tls-1"}, time.Now())
	if !ok {
		return 0, errNoRelay
	}
	var d interface {
		DialContext(ctx context.Context, network, address string) (net.Conn, error)
	} = &net.Dialer{}
	if t.cfg.Dialer != nil {
		d = t.cfg.Dialer
	}
	for _, addr := range t.relayInfo(path, "").TCP {
		began := time.Now()
		var conn net.Conn
		if conn, err = d.DialContext(ctx, "tcp", addr); err == nil {
			conn.Close()
			return time.Since(began), nil
		}
	}
	return 0, err
}
