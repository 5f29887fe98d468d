package tunnels

import (
	"context"
	"net"
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

// Ping measures the way to an app leg by leg. The error is set when access is refused; a
// leg that fails carries its own.
func (t *Tunnels) Ping(ctx context.Context, app session.App, port uint16) ([]Leg, error) {
	var legs []Leg
	err := t.open(ctx, app, "tcp", port, func(ctx context.Context, c *connector, ref link.GrantRef) error {
		legs = []Leg{t.relayLeg(ctx, c)}
		rtt, err := c.client.Ping(ctx)
		legs = append(legs, Leg{Name: "client to connector", RTT: rtt, Err: err})
		if err != nil {
			return err
		}
		rtt, err = c.client.ConnectTime(ctx, ref, port)
		legs = append(legs, Leg{Name: "connector to app", RTT: rtt, Err: err})
		return err
	})
	if len(legs) == 3 {
		return legs, nil // the refusal stands in its leg
	}
	return legs, err
}

// relayLeg measures a TCP handshake with the first relay.
func (t *Tunnels) relayLeg(ctx context.Context, c *connector) Leg {
	leg := Leg{Name: "client to relay"}
	path, ok := c.relay(way{name: "tls-1"}, time.Now())
	if !ok {
		leg.Err = errNoRelay
		return leg
	}
	var d interface {
		DialContext(ctx context.Context, network, address string) (net.Conn, error)
	} = &net.Dialer{Timeout: carrierWait}
	if t.cfg.Dialer != nil {
		d = t.cfg.Dialer
	}
	for _, addr := range t.relayInfo(path, "").TCP {
		began := time.Now()
		conn, err := d.DialContext(ctx, "tcp", addr)
		if leg.RTT, leg.Err = time.Since(began), err; err == nil {
			conn.Close()
			return leg
		}
	}
	return leg
}
