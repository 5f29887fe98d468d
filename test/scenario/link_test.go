package scenario

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"

	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/carrier/quic"
	carriertls "github.com/postern-zt/postern/netstack/carrier/tls"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/flow"
	"github.com/postern-zt/postern/netstack/link"
	"github.com/postern-zt/postern/netstack/peer"
	"github.com/postern-zt/postern/netstack/relay/attach"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/ticket"
)

// bothCarriers are the transports that every story about bytes is told on.
var bothCarriers = []carrier.Kind{carrier.TLS, carrier.QUIC}

// tunnel is a link of one device to one connector on which grants are presented.
type tunnel struct {
	d      *device
	client *link.Client

	mu     sync.Mutex // guards the fields below
	next   link.GrantRef
	closed map[link.GrantRef]frame.Code
	when   map[link.GrantRef]time.Time
	news   chan struct{} // closed and replaced at each change
}

// link opens a link over the named transports to the connector of a path.
func (d *device) link(path *controlv1.ConnectorPath, kinds ...carrier.Kind) *tunnel {
	d.w.t.Helper()
	tn := &tunnel{d: d, closed: map[link.GrantRef]frame.Code{}, when: map[link.GrantRef]time.Time{}, news: make(chan struct{})}
	var key ids.KeyID
	copy(key[:], path.KeyId)
	config, err := peer.ClientConfig(peer.Config{Credentials: d.creds, Expect: peer.Exactly(key)})
	if err != nil {
		d.w.t.Fatal(err)
	}
	var ways []link.Dialer
	for i := range path.Relays {
		for k, kind := range kinds { // the second way differs in both, so that it survives the first
			relay := path.Relays[(i+k)%len(path.Relays)]
			ways = append(ways, link.Dialer{Name: string(kind) + " " + relay.Relay.Id, Kind: kind, Dial: func(ctx context.Context) (carrier.Carrier, error) {
				return d.dial(ctx, kind, relay, config)
			}})
		}
	}
	tn.client, err = link.NewClient(link.ClientConfig{
		Instance: frame.NewInstanceID(), Peer: key, Dial: ways, Memory: flow.NewMemory(0),
		Events: link.Events{GrantClosed: tn.grantClosed}, Log: d.w.log.With("role", d.name),
	})
	if err != nil {
		d.w.t.Fatal(err)
	}
	start(d.w.t, d.name+"'s link", tn.client.Run)
	return tn
}

// dial opens one carrier through a relay, as the product's client does.
func (d *device) dial(ctx context.Context, kind carrier.Kind, path *controlv1.RelayPath, config *tls.Config) (carrier.Carrier, error) {
	cfg := attach.Config{Relay: d.relay(path), Log: d.w.log.With("role", d.name)}
	t := attach.Ticket{Sealed: path.Ticket, Role: ticket.RoleClient, Handle: ticket.Handle(path.Handle), Expires: time.UnixMilli(path.ExpiresMs)}
	copy(t.MACKey[:], path.MacKey)
	if kind == carrier.QUIC {
		socket, err := net.ListenUDP("udp", nil)
		if err != nil {
			return nil, err
		}
		c, err := quic.DialRelay(ctx, cfg, socket, attach.Fixed(t), quic.Config{TLS: config})
		if err != nil {
			return nil, err // a typed nil is no carrier
		}
		return c, nil
	}
	raw, err := attach.DialTCP(ctx, cfg, t)
	if err != nil {
		return nil, err
	}
	c, err := carriertls.Client(ctx, raw, carriertls.Config{TLS: config, Path: "relay " + path.Relay.Id})
	if err != nil {
		return nil, err // a typed nil is no carrier
	}
	return c, nil
}

func (d *device) relay(path *controlv1.RelayPath) attach.RelayInfo {
	kind, name := control.KindRelay, path.Relay.Id
	if len(path.Relay.KeyId) == 0 {
		kind, name = control.KindBroker, ""
	}
	pin := d.w.where().Pin
	if d.pin != nil {
		pin = *d.pin
	}
	return attach.RelayInfo{ID: ids.RelayID(path.Relay.Id), TCP: path.Relay.Addresses, UDP: path.Relay.Addresses, TLS: &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // the pin is checked instead
		VerifyConnection:   func(cs tls.ConnectionState) error { return control.VerifyServer(cs, pin, kind, name, time.Now()) },
	}}
}

func (tn *tunnel) grantClosed(ref link.GrantRef, code frame.Code) {
	tn.mu.Lock()
	defer tn.mu.Unlock()
	tn.closed[ref], tn.when[ref] = code, time.Now()
	close(tn.news)
	tn.news = make(chan struct{})
}

// present shows a grant and returns the connector's verdict.
func (tn *tunnel) present(envelope []byte) (link.GrantRef, error) {
	tn.mu.Lock()
	tn.next++
	ref := tn.next
	tn.mu.Unlock()
	return ref, tn.client.Present(tn.d.w.ctx(), envelope, ref)
}

// accepted shows a grant that must be accepted.
func (tn *tunnel) accepted(envelope []byte) link.GrantRef {
	tn.d.w.t.Helper()
	ref, err := tn.present(envelope)
	if err != nil {
		tn.d.w.t.Fatalf("the connector refused a good grant: %v", err)
	}
	return ref
}

// awaitClosed waits until the connector closed a micro-tunnel, and says why and when.
func (tn *tunnel) awaitClosed(ref link.GrantRef) (frame.Code, time.Time) {
	tn.d.w.t.Helper()
	late := time.After(patience)
	for {
		tn.mu.Lock()
		code, ok, news, when := tn.closed[ref], tn.closed[ref] != frame.OK, tn.news, tn.when[ref]
		tn.mu.Unlock()
		if ok {
			return code, when
		}
		select {
		case <-news:
		case <-late:
			tn.d.w.t.Fatal("the connector never closed the micro-tunnel")
		}
	}
}

// tcp opens a flow that must work.
func (tn *tunnel) tcp(ref link.GrantRef, port uint16) *flow.Flow {
	tn.d.w.t.Helper()
	f, err := tn.client.OpenTCP(tn.d.w.ctx(), ref, port)
	if err != nil {
		tn.d.w.t.Fatalf("open port %d: %v", port, err)
	}
	return f
}

// udp opens an association that must work.
func (tn *tunnel) udp(ref link.GrantRef, port uint16) *flow.Packets {
	tn.d.w.t.Helper()
	p, err := tn.client.OpenUDP(tn.d.w.ctx(), ref, port)
	if err != nil {
		tn.d.w.t.Fatalf("open udp port %d: %v", port, err)
	}
	return p
}

// tcpCode opens a flow and returns the code of the answer.
func (tn *tunnel) tcpCode(ref link.GrantRef, port uint16) frame.Code {
	f, err := tn.client.OpenTCP(tn.d.w.ctx(), ref, port)
	if err == nil {
		f.Close()
	}
	return frame.CodeOf(err)
}

// open gets a grant for an app and presents it on the device's link to the connector over
// one transport. A device has one link to a connector at a time: a second one is another
// start of the client, which ends the flows of the first.
func (d *device) open(app string, kind carrier.Kind) (*tunnel, link.GrantRef, *controlv1.AuthorizeResponse) {
	d.w.t.Helper()
	resp := d.granted(app)
	key := resp.Connectors[0].ConnectorId + string(kind)
	tn := d.tunnels[key]
	if tn == nil {
		tn = d.link(resp.Connectors[0], kind)
		d.tunnels[key] = tn
	}
	return tn, tn.accepted(resp.Grant), resp
}
