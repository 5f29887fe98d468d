// Package tls is the carrier for networks that pass only TCP: end-to-end TLS 1.3 between
// client and connector over a connection that somebody else made (through the relay, or
// direct), with yamux streams inside and datagrams on one stream of their own. client and
// connector build carriers with it; netstack/link uses them. It is the only package that
// knows yamux. It must not dial, and knows neither relays nor grants.
//
//	flow frames -> yamux -> recordConn (one cork per frame) -> TLS 1.3 -> bufferedConn -> conn
//
// A Carrier is safe for concurrent use; its goroutines end with Close.
package tls

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/flow"
	"github.com/postern-zt/postern/netstack/peer"
)

const (
	// handshakeTimeout bounds the TLS handshake when ctx has no earlier end.
	handshakeTimeout = 15 * time.Second
	// streamWindow must exceed a flow's window with its frame headers, so that the
	// flow's own credit is what holds a sender back, never yamux.
	streamWindow = 2 * flow.MaxWindow
	// pingInterval measures the round trip and finds a dead connection.
	pingInterval = 15 * time.Second
	// writeTimeout must exceed pingInterval: else a peer's Read can hang after our Write
	// has timed out (hashicorp/yamux issue 142). It is long because a slow path is not a
	// dead one; the link finds silence much earlier.
	writeTimeout = 60 * time.Second
	// closeTimeout frees a stream whose peer never closes.
	closeTimeout = 2 * time.Minute
	// acceptBacklog bounds the streams that wait for AcceptStream.
	acceptBacklog = 1024
)

// Config describes a carrier.
type Config struct {
	// TLS comes from peer.ClientConfig or peer.ServerConfig.
	TLS *tls.Config
	// Path says how the connection goes, for status and logs.
	Path string
}

// Carrier is one TLS connection with its streams.
type Carrier struct {
	session *yamux.Session
	peer    peer.Identity
	path    string
	dg      *datagrams
	rtt     atomic.Int64 // nanoseconds; written by the pinger alone
	done    chan struct{}

	mu     sync.Mutex // guards the fields below
	closed bool
	err    error
	work   sync.WaitGroup
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
	session, err := newSession(&recordConn{Conn: tc, raw: raw}, client)
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	stream, err := firstStream(ctx, session, client)
	if err != nil {
		_ = session.Close()
		return nil, fmt.Errorf("open the datagram stream: %w", err)
	}
	c := &Carrier{session: session, peer: id, path: cfg.Path, dg: newDatagrams(stream), done: make(chan struct{})}
	c.work.Go(c.ping)
	c.work.Go(func() { c.fail(c.dg.writeLoop(c.done)) })
	c.work.Go(func() { c.fail(c.dg.readLoop()) })
	go c.watch()
	return c, nil
}

func now(cfg *tls.Config) time.Time {
	if cfg.Time != nil {
		return cfg.Time()
	}
	return time.Now()
}

func newSession(conn io.ReadWriteCloser, client bool) (*yamux.Session, error) {
	cfg := yamux.DefaultConfig()
	cfg.EnableKeepAlive = false // the carrier pings itself, to know the round trip
	cfg.KeepAliveInterval = pingInterval
	cfg.ConnectionWriteTimeout = writeTimeout
	cfg.MaxStreamWindowSize = streamWindow
	cfg.AcceptBacklog = acceptBacklog
	cfg.StreamOpenTimeout = 0 // every open on a stream has a deadline of its own
	cfg.StreamCloseTimeout = closeTimeout
	cfg.LogOutput = nil
	cfg.Logger = log.New(io.Discard, "", 0) // its errors come back through the API
	if client {
		return yamux.Client(conn, cfg)
	}
	return yamux.Server(conn, cfg)
}

// firstStream is the datagram stream: the first that the client opens.
func firstStream(ctx context.Context, s *yamux.Session, client bool) (*yamux.Stream, error) {
	if client {
		return s.OpenStream()
	}
	return s.AcceptStreamWithContext(ctx)
}

// watch ends the carrier when its session ends; it owns the shutdown.
func (c *Carrier) watch() {
	<-c.session.CloseChan()
	c.fail(net.ErrClosed)
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.work.Wait()
	close(c.dg.stopped)
}

// fail records the first reason and ends the session.
func (c *Carrier) fail(err error) {
	c.mu.Lock()
	first := c.err == nil
	if first {
		c.err = err
		close(c.done)
	}
	c.mu.Unlock()
	_ = c.session.Close() // safe twice
}

// ping measures the round trip until the carrier ends.
func (c *Carrier) ping() {
	t := time.NewTicker(pingInterval)
	defer t.Stop()
	for {
		d, err := c.session.Ping()
		if err != nil {
			c.fail(fmt.Errorf("ping: %w", err))
			return
		}
		c.rtt.Store(int64(smooth(c.RTT(), d)))
		select {
		case <-t.C:
		case <-c.done:
			return
		}
	}
}

// smooth is TCP's weighted average.
func smooth(old, sample time.Duration) time.Duration {
	if old == 0 {
		return sample
	}
	return old + (sample-old)/8
}

// OpenStream opens a stream.
func (c *Carrier) OpenStream(ctx context.Context) (carrier.Stream, error) {
	type result struct {
		s   *yamux.Stream
		err error
	}
	got := make(chan result, 1)
	if !c.background(func() {
		s, err := c.session.OpenStream()
		got <- result{s, err}
	}) {
		return nil, c.Err()
	}
	select {
	case r := <-got:
		if r.err != nil {
			return nil, c.wrap(r.err)
		}
		return &stream{Stream: r.s, c: c}, nil
	case <-ctx.Done():
		c.background(func() {
			if r := <-got; r.err == nil {
				_ = r.s.Close()
			}
		})
		return nil, context.Cause(ctx)
	}
}

// background runs fn unless the carrier is closed; Close waits for it.
func (c *Carrier) background(fn func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.err != nil {
		return false
	}
	c.work.Go(fn)
	return true
}

// AcceptStream waits for a stream of the peer.
func (c *Carrier) AcceptStream(ctx context.Context) (carrier.Stream, error) {
	s, err := c.session.AcceptStreamWithContext(ctx)
	if err != nil {
		return nil, c.wrap(err)
	}
	return &stream{Stream: s, c: c}, nil
}

func (c *Carrier) wrap(err error) error {
	if errors.Is(err, yamux.ErrSessionShutdown) {
		if own := c.Err(); own != nil {
			return own
		}
		return net.ErrClosed
	}
	return err
}

// SendDatagram queues p; when the queue is full the oldest goes.
func (c *Carrier) SendDatagram(p []byte) error {
	if len(p) > maxDatagram {
		return carrier.ErrDatagramTooLarge
	}
	c.dg.send(p)
	return nil
}

// ReceiveDatagram waits for one datagram.
func (c *Carrier) ReceiveDatagram(ctx context.Context) ([]byte, error) {
	select {
	case p := <-c.dg.in:
		return p, nil
	case <-c.done:
		return nil, c.Err()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// MaxDatagram is the largest datagram.
func (c *Carrier) MaxDatagram() int { return maxDatagram }

// Peer is the authenticated identity at the other end.
func (c *Carrier) Peer() peer.Identity { return c.peer }

// Kind is carrier.TLS.
func (c *Carrier) Kind() carrier.Kind { return carrier.TLS }

// Path says how the connection goes.
func (c *Carrier) Path() string { return c.path }

// RTT is the smoothed round-trip time, zero before the first measurement.
func (c *Carrier) RTT() time.Duration { return time.Duration(c.rtt.Load()) }

// Done is closed when the carrier has died.
func (c *Carrier) Done() <-chan struct{} { return c.done }

// Err says why the carrier died; it unwraps to net.ErrClosed after Close.
func (c *Carrier) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the carrier and waits for its goroutines.
func (c *Carrier) Close() error {
	c.fail(net.ErrClosed)
	<-c.dg.stopped
	return nil
}
