package tunnels

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/carrier/quic"
	carriertls "github.com/postern-zt/postern/netstack/carrier/tls"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/link"
	"github.com/postern-zt/postern/netstack/peer"
	"github.com/postern-zt/postern/netstack/relay/attach"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/ticket"
)

const (
	// failedFor is how long a relay stands behind the others after it was not reached.
	failedFor = 30 * time.Second
	// ticketMargin asks for fresh tickets before the old ones end.
	ticketMargin = 10 * time.Minute
	// maxRelays bounds the relays that are kept per connector.
	maxRelays = 8
)

var (
	errNoRelay = errors.New("no relay for this way")
	errTicket  = errors.New("the broker gave a malformed ticket")
)

// failure names a transport to a relay that did not work.
type failure struct {
	relay string
	kind  carrier.Kind
}

// way is one place in the order of dialling. The relays behind it may change with every
// grant; the places stay. QUIC and TLS start at different relays, so that the standby
// survives the loss of a relay and the loss of UDP alike (decisions rule 19).
type way struct {
	name  string
	kind  carrier.Kind
	relay int
}

func ways(tlsOnly bool) []way {
	all := []way{
		{"quic-1", carrier.QUIC, 0}, {"tls-1", carrier.TLS, 1}, {"quic-2", carrier.QUIC, 1}, {"tls-2", carrier.TLS, 0},
	}
	if tlsOnly {
		return slices.DeleteFunc(all, func(w way) bool { return w.kind == carrier.QUIC })
	}
	return all
}

// pick returns the relay of a way among n; with a single one only the first way of each
// transport is used.
func (w way) pick(n int) (int, bool) {
	switch {
	case n == 0:
		return 0, false
	case n == 1:
		return 0, w.name == "quic-1" || w.name == "tls-1"
	default:
		return w.relay, true
	}
}

func (t *Tunnels) dialers(c *connector) ([]link.Dialer, error) {
	config, err := peer.ClientConfig(peer.Config{Credentials: t.cfg.Credentials, Expect: peer.Exactly(c.key), Now: t.cfg.Now})
	if err != nil {
		return nil, err
	}
	var out []link.Dialer
	for _, w := range ways(t.cfg.TLSOnly) {
		out = append(out, link.Dialer{Name: w.name, Kind: w.kind, Dial: func(ctx context.Context) (carrier.Carrier, error) {
			return t.reach(ctx, c, w, config)
		}})
	}
	return out, nil
}

func (t *Tunnels) dial(ctx context.Context, c *connector, w way, config *tls.Config) (carrier.Carrier, error) {
	path, ok := c.relay(w, time.Now())
	if !ok {
		return nil, errNoRelay
	}
	id, err := ids.Parse[ids.RelayID](path.GetRelay().GetId())
	if err != nil {
		return nil, err
	}
	cfg := attach.Config{Relay: t.relayInfo(path, id), Dialer: t.cfg.Dialer, Log: t.log, Now: t.cfg.Now}
	tickets := func(ctx context.Context) (attach.Ticket, error) { return t.ticket(ctx, c, id) }
	car, err := dialKind(ctx, w.kind, cfg, tickets, config, t.cfg.Now)
	c.note(failure{string(id), w.kind}, car, err)
	return car, err
}

func dialKind(ctx context.Context, kind carrier.Kind, cfg attach.Config, tickets attach.Tickets, config *tls.Config, now func() time.Time) (carrier.Carrier, error) {
	if kind == carrier.QUIC {
		socket, err := net.ListenUDP("udp", nil)
		if err != nil {
			return nil, err
		}
		q, err := quic.DialRelay(ctx, cfg, socket, tickets, quic.Config{TLS: config, Now: now})
		if err != nil {
			return nil, err
		}
		return q, nil
	}
	ticket, err := tickets(ctx)
	if err != nil {
		return nil, err
	}
	raw, err := attach.DialTCP(ctx, cfg, ticket)
	if err != nil {
		return nil, err
	}
	c, err := carriertls.Client(ctx, raw, carriertls.Config{TLS: config, Path: "relay " + string(cfg.Relay.ID) + " " + raw.RemoteAddr().String()})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// relayInfo says where a relay is and what it must prove: the broker's CA vouches for a
// relay of its own process and for the one inside the broker.
func (t *Tunnels) relayInfo(p *controlv1.RelayPath, id ids.RelayID) attach.RelayInfo {
	addrs := p.GetRelay().GetAddresses()
	kind, name := control.KindRelay, string(id)
	if len(p.GetRelay().GetKeyId()) == 0 {
		kind, name = control.KindBroker, ""
		addrs = distinct(t.cfg.Broker.Address, addrs)
	}
	pin, now := t.cfg.Broker.Pin, t.cfg.Now
	return attach.RelayInfo{ID: id, TCP: addrs, UDP: addrs, TLS: &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // the chain is checked against the pin
		VerifyConnection: func(cs tls.ConnectionState) error {
			return control.VerifyServer(cs, pin, kind, name, now())
		},
	}}
}

func distinct(first string, rest []string) []string {
	out := []string{first}
	for _, a := range rest {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// ticket returns the newest ticket for a relay; one that ends soon is replaced first, as
// long as the broker can be reached.
func (t *Tunnels) ticket(ctx context.Context, c *connector, relay ids.RelayID) (attach.Ticket, error) {
	p, ok := c.path(relay)
	if !ok {
		return attach.Ticket{}, errNoRelay
	}
	if now := t.cfg.Now(); !now.Before(time.UnixMilli(p.GetExpiresMs()).Add(-ticketMargin)) {
		t.mu.Lock()
		app, known := t.book.Via(c.id, now)
		t.mu.Unlock()
		if known {
			if _, err := t.grant(ctx, ask{app: app, fresh: true}); err != nil {
				t.log.DebugContext(ctx, "relay ticket not renewed", "relay", relay, "error", err)
			}
			p, _ = c.path(relay)
		}
	}
	return parseTicket(p)
}

func parseTicket(p *controlv1.RelayPath) (attach.Ticket, error) {
	t := attach.Ticket{
		Sealed: p.GetTicket(), Role: ticket.RoleClient, Handle: ticket.Handle(p.GetHandle()), Expires: time.UnixMilli(p.GetExpiresMs()),
	}
	if len(p.GetMacKey()) != len(t.MACKey) || !t.Handle.Valid() {
		return attach.Ticket{}, errTicket
	}
	copy(t.MACKey[:], p.GetMacKey())
	return t, nil
}

// setRelays replaces the relays with their fresh tickets.
func (c *connector) setRelays(relays []*controlv1.RelayPath) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.relays = slices.Clone(relays[:min(len(relays), maxRelays)])
}

// relay returns the relay of a way: those that have just failed by this transport last.
func (c *connector) relay(w way, now time.Time) (*controlv1.RelayPath, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, ok := w.pick(len(c.relays))
	if !ok {
		return nil, false
	}
	order := slices.Clone(c.relays)
	slices.SortStableFunc(order, func(a, b *controlv1.RelayPath) int {
		return c.badLocked(a, w.kind, now) - c.badLocked(b, w.kind, now)
	})
	return order[i], true
}

func (c *connector) badLocked(p *controlv1.RelayPath, kind carrier.Kind, now time.Time) int {
	at, ok := c.failed[failure{p.GetRelay().GetId(), kind}]
	if ok && now.Sub(at) < failedFor {
		return 1
	}
	return 0
}

func (c *connector) path(relay ids.RelayID) (*controlv1.RelayPath, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.relays {
		if p.GetRelay().GetId() == string(relay) {
			return p, true
		}
	}
	return nil, false
}

// note remembers how an attempt went.
func (c *connector) note(f failure, car carrier.Carrier, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.failed[f] = time.Now()
		return
	}
	delete(c.failed, f)
	if r, ok := car.(rebinder); ok {
		c.moving = append(slices.DeleteFunc(c.moving, func(old rebinder) bool { return old.Err() != nil }), r)
	}
}
