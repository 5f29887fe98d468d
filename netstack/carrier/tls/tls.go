// Package tls is the carrier for networks that pass only TCP: end-to-end TLS 1.3 between
// client and connector over a connection that somebody else made (through the relay, or
// direct), with the streams and datagrams of netstack/mux inside. client and connector
// build carriers with it; netstack/link uses them. It must not dial, and knows neither
// relays nor grants.
//
//	flow frames -> mux -> recordConn (one cork per frame) -> TLS 1.3 -> bufferedConn -> conn
//
// A Carrier is safe for concurrent use; its goroutines end with Close.
package tls

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/mux"
	"github.com/postern-zt/postern/netstack/peer"
)

// handshakeTimeout bounds the TLS handshake when ctx has no earlier end.
const handshakeTimeout = 15 * time.Second

// Config describes a carrier.
type Config struct {
	// TLS comes from peer.ClientConfig or peer.ServerConfig.
	TLS *tls.Config
	// Path says how the connection goes, for status and logs.
	Path string
}

// Carrier is one TLS connection with its streams.
type Carrier struct {
	session *mux.Session
	peer    peer.Identity
	path    string
	stopped chan struct{} // the session's goroutines have ended
}

var _ carrier.Carrier = (*Carrier)(nil)

// Client makes the dialling side of a carrier over conn, which it owns from here on.
func Client(ctx context.Context, conn net.Conn, cfg Config) (*Carrier, error) {
	buffered := newBufferedConn(conn)
	return start(ctx, buffered, tls.Client(buffered, cfg.TLS), cfg, true)
}

// Server makes the accepting side of a carrier over conn, which it owns from here on.
func Server(ctx context.Context, conn net.Conn, cfg Config) (*Carrier, error) {
	buffered := newBufferedConn(conn)
	return start(ctx, buffered, tls.Server(buffered, cfg.TLS), cfg, false)
}

func start(ctx context.Context, raw *bufferedConn, tc *tls.Conn, cfg Config, client bool) (*Carrier, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("end-to-end handshake: %w", err)
	}
	id, err := peer.FromState(tc.ConnectionState(), now(cfg.TLS))
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	c := &Carrier{session: mux.New(&recordConn{Conn: tc, raw: raw}, client), peer: id, path: cfg.Path, stopped: make(chan struct{})}
	go func() { // Close waits for it
		defer close(c.stopped)
		_ = c.session.Run() // Err tells why
	}()
	return c, nil
}

func now(cfg *tls.Config) time.Time {
	if cfg.Time != nil {
		return cfg.Time()
	}
	return time.Now()
}

// OpenStream opens a stream. The peer sees it with its first byte.
func (c *Carrier) OpenStream(context.Context) (carrier.Stream, error) {
	st, err := c.session.OpenStream()
	if err != nil {
		return nil, err
	}
	return st, nil
}

// AcceptStream waits for a stream of the peer.
func (c *Carrier) AcceptStream(ctx context.Context) (carrier.Stream, error) {
	st, err := c.session.AcceptStream(ctx)
	if err != nil {
		return nil, err
	}
	return st, nil
}

// SendDatagram queues p; when the queue is full the oldest goes.
func (c *Carrier) SendDatagram(p []byte) error {
	err := c.session.SendDatagram(p)
	if errors.Is(err, mux.ErrDatagramTooLarge) {
		return carrier.ErrDatagramTooLarge
	}
	return err
}

// ReceiveDatagram waits for one datagram.
func (c *Carrier) ReceiveDatagram(ctx context.Context) ([]byte, error) {
	return c.session.ReceiveDatagram(ctx)
}

// MaxDatagram is the largest datagram.
func (*Carrier) MaxDatagram() int { return mux.MaxDatagram }

// Peer is the authenticated identity at the other end.
func (c *Carrier) Peer() peer.Identity { return c.peer }

// Kind is carrier.TLS.
func (*Carrier) Kind() carrier.Kind { return carrier.TLS }

// Path says how the connection goes.
func (c *Carrier) Path() string { return c.path }

// RTT is the smoothed round-trip time, zero before the first measurement.
func (c *Carrier) RTT() time.Duration { return c.session.RTT() }

// Done is closed when the carrier has died.
func (c *Carrier) Done() <-chan struct{} { return c.session.Done() }

// Err says why the carrier died; it unwraps to net.ErrClosed after Close.
func (c *Carrier) Err() error { return c.session.Err() }

// Close ends the carrier and waits for its goroutines.
func (c *Carrier) Close() error {
	_ = c.session.Close() // never fails
	<-c.stopped
	return nil
}
