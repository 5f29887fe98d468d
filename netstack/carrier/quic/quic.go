// Package quic is the QUIC carrier: quic-go over a packet connection of our own, which
// prepends the relay header, reads and writes super-packets and pushes back before
// quic-go would drop. netstack/link uses it through the carrier.Carrier interface; the
// home of quic-go is here. It must not know grants, flows or tickets.
//
//	client     DialRelay(ctx, attach.Config, socket, tickets, cfg) or Dial(ctx, path, cfg)
//	connector  Serve(ctx, binding, cfg, onCarrier)
//	direct     NewDirect(conn, peer) is a Path without a relay and its header
//
// Both ends prove their identity by netstack/peer. A Carrier is safe for concurrent use.
package quic

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	quicgo "github.com/quic-go/quic-go"

	"github.com/postern-zt/postern/netstack/peer"
	"github.com/postern-zt/postern/netstack/relay/attach"
	"github.com/postern-zt/postern/netstack/relay/udpio"
)

const (
	// initialPacket is the QUIC minimum: 8 bytes of relay header still fit into the
	// smallest IPv6 path; probes find the rest (data-plane.md section 11, rule h).
	initialPacket = 1200
	// handshakeIdle bounds each silence before the handshake is complete.
	handshakeIdle = 5 * time.Second
	// keepAlive and maxIdle: a dead path shows within 15 s where nothing is being sent; a
	// sender notices earlier. NATs keep UDP for 30 s at least.
	keepAlive = 5 * time.Second
	maxIdle   = 15 * time.Second
	// maxStreams bounds the streams that a peer may hold open: its flows.
	maxStreams = 4096
)

// Config makes carriers.
type Config struct {
	// TLS is the end-to-end configuration of netstack/peer: ClientConfig to dial,
	// ServerConfig to serve.
	TLS *tls.Config
	// KeepAlive and MaxIdle; zero means 5 s and 15 s.
	KeepAlive, MaxIdle time.Duration
	// Now is the clock for certificates; nil means time.Now.
	Now func() time.Time
}

func (c Config) now() time.Time {
	if c.Now == nil {
		return time.Now()
	}
	return c.Now()
}

func (c Config) check() error {
	if c.TLS == nil {
		return errors.New("quic carrier: no TLS configuration")
	}
	return nil
}

func (c Config) quic() *quicgo.Config {
	q := &quicgo.Config{
		HandshakeIdleTimeout:  handshakeIdle,
		MaxIdleTimeout:        maxIdle,
		KeepAlivePeriod:       keepAlive,
		MaxIncomingStreams:    maxStreams,
		MaxIncomingUniStreams: -1,
		InitialPacketSize:     initialPacket,
		EnableDatagrams:       true,
	}
	if c.KeepAlive > 0 {
		q.KeepAlivePeriod = c.KeepAlive
	}
	if c.MaxIdle > 0 {
		q.MaxIdleTimeout = c.MaxIdle
	}
	return q
}

// Path moves the packets of one link; *attach.Path is one through a relay. One goroutine
// receives, any number may send.
type Path interface {
	// HeaderLen bytes stand in front of each datagram, both ways; PutHeader fills them.
	HeaderLen() int
	PutHeader(b []byte)
	// Send sends datagrams of segment bytes each (0: one); b is not kept.
	Send(b []byte, segment int, ecn byte, x *udpio.Scratch) error
	// Receive waits for a super-packet until stop is closed (ok false, err nil).
	Receive(stop <-chan struct{}) (pkt attach.Packet, ok bool, err error)
	// Raw gives access to the socket's options.
	Raw() syscall.RawConn
	// String says how the path goes.
	String() string
	Close() error
}

var _ Path = (*attach.Path)(nil)

// Dial opens a carrier over path, which it owns from now on, also when it fails.
func Dial(ctx context.Context, path Path, cfg Config) (*Carrier, error) {
	if err := cfg.check(); err != nil {
		return nil, errors.Join(err, path.Close())
	}
	pc := newPacketConn(path)
	tr := &quicgo.Transport{Conn: pc.forQUIC()}
	end := func() error { return errors.Join(tr.Close(), pc.Close(), path.Close()) }
	conn, err := tr.Dial(ctx, pc.remote, cfg.TLS, cfg.quic())
	if err != nil {
		_ = end() // the dial's error is the one to report
		return nil, fmt.Errorf("quic over %s: %w", path, err)
	}
	pc.track(conn)
	c, err := newCarrier(conn, path.String(), cfg.now(), end)
	if err != nil {
		_ = conn.CloseWithError(codeRefused, "")
		_ = end()
		return nil, err
	}
	return c, nil
}

// DialRelay binds socket at the relay and opens a carrier over the ticket's link; both
// end with the carrier.
func DialRelay(ctx context.Context, at attach.Config, socket *net.UDPConn, tickets attach.Tickets, cfg Config) (*Carrier, error) {
	b, err := attach.BindUDP(ctx, at, socket, tickets)
	if err != nil {
		return nil, err
	}
	path, err := b.Path(b.Handle())
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	c, err := Dial(ctx, path, cfg)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	c.binding = b
	return c, nil
}

// newCarrier checks who is there and starts what the carrier needs.
func newCarrier(conn *quicgo.Conn, path string, now time.Time, end func() error) (*Carrier, error) {
	id, err := peer.FromState(conn.ConnectionState().TLS, now)
	if err != nil {
		return nil, fmt.Errorf("quic peer: %w", err)
	}
	c := &Carrier{conn: conn, peer: id, path: path, end: end, out: make(chan []byte, datagramQueue)}
	c.wg.Go(c.datagramLoop)
	return c, nil
}
