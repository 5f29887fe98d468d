// Package front is the broker's public TCP port. It accepts, shakes hands (TLS 1.3 and
// nothing else) and hands each connection over by the ALPN that the client chose:
//
//	postern-control/1   clients, connectors, relays: client certificate asked for
//	postern-relay/1     the relay inside this broker
//	h2, http/1.1        a browser: sign-in pages, set-up
//
// Before the handshake has ended a stranger costs one goroutine and a bounded time;
// after it the owner of the protocol decides. The package knows no request.
//
// Run owns every goroutine; it returns when all have ended.
package front

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/relay/wire"
)

const (
	handshakeTimeout = 5 * time.Second
	// maxHandshakes bounds unfinished handshakes; a further caller waits in the
	// listen queue, where it costs us nothing.
	maxHandshakes = 512
	// maxPerSource bounds the share of one source in them, so that nobody alone keeps
	// everybody else out. A handshake takes milliseconds of ours and two round trips, so
	// a whole office behind one address gets through with it.
	maxPerSource = 32
	// browserQueue is how many browser connections may wait for the HTTP server.
	browserQueue   = 16
	headerTimeout  = 10 * time.Second
	requestTimeout = 30 * time.Second
	idleTimeout    = 2 * time.Minute
	drainTimeout   = 5 * time.Second
	maxHeaderBytes = 32 << 10
)

// Config is what the port needs; all functions are required.
type Config struct {
	Listener net.Listener
	// Internal returns the certificate chain [leaf, CA] under the broker's own CA.
	Internal func() (*tls.Certificate, error)
	// Public returns the operator's certificate for browsers; nil means Internal.
	Public func() (*tls.Certificate, error)
	// Control and Relay own the connection until they return.
	Control func(ctx context.Context, conn *tls.Conn)
	Relay   func(ctx context.Context, conn *tls.Conn)
	Browser http.Handler
	// Refused hears of each connection that was closed because its source had too many
	// unfinished handshakes; may be nil.
	Refused func()
	Log     *slog.Logger
}

// Front serves one listener.
type Front struct {
	cfg     Config
	tls     *tls.Config
	slots   chan struct{}
	sources *sources
	pipe    *pipe
}

// New checks cfg; it serves nothing yet.
func New(cfg Config) (*Front, error) {
	if cfg.Listener == nil || cfg.Internal == nil || cfg.Control == nil || cfg.Relay == nil || cfg.Browser == nil || cfg.Log == nil {
		return nil, errors.New("front: config lacks a listener, a certificate, an owner or a log")
	}
	if cfg.Public == nil {
		cfg.Public = cfg.Internal
	}
	if cfg.Refused == nil {
		cfg.Refused = func() {}
	}
	f := &Front{cfg: cfg, slots: make(chan struct{}, maxHandshakes), sources: newSources()}
	f.pipe = newPipe(cfg.Listener.Addr())
	f.tls = &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		GetConfigForClient:     f.configFor,
	}
	return f, nil
}

// configFor chooses certificate and client authentication by the offered ALPN: only our
// own protocols ask for a certificate, so no browser ever shows a picker (rule 4).
func (f *Front) configFor(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true}
	source := f.cfg.Internal
	switch offered := protocolOf(hello.SupportedProtos); offered {
	case control.ALPN:
		c.NextProtos, c.ClientAuth = []string{offered}, tls.RequestClientCert
	case wire.ALPN:
		c.NextProtos = []string{offered}
	default:
		c.NextProtos, source = []string{"h2", "http/1.1"}, f.cfg.Public
	}
	cert, err := source()
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	c.Certificates = []tls.Certificate{*cert}
	return c, nil
}

func protocolOf(offered []string) string {
	for _, p := range offered {
		if p == control.ALPN || p == wire.ALPN {
			return p
		}
	}
	return ""
}

// Run accepts until ctx ends.
func (f *Front) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { f.serveBrowsers(ctx) })
	stop := context.AfterFunc(ctx, func() { f.cfg.Listener.Close() })
	defer stop()
	for {
		select {
		case f.slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := f.cfg.Listener.Accept()
		if err != nil {
			<-f.slots
			if ctx.Err() != nil {
				return nil
			}
			if !temporary(ctx, err) {
				return fmt.Errorf("accept: %w", err)
			}
			continue
		}
		from := sourceOf(conn.RemoteAddr())
		if !f.sources.enter(from) {
			<-f.slots
			f.cfg.Refused()
			conn.Close()
			continue
		}
		wg.Go(func() { f.serve(ctx, conn, from) })
	}
}

// temporary waits a little after an accept error that passes, such as too many open files.
func temporary(ctx context.Context, err error) bool {
	if errors.Is(err, net.ErrClosed) {
		return false
	}
	select {
	case <-time.After(50 * time.Millisecond):
	case <-ctx.Done():
	}
	return true
}

// serve shakes hands and gives the connection to its owner.
func (f *Front) serve(ctx context.Context, raw net.Conn, from netip.Prefix) {
	record := wire.NewRecordConn(raw)
	conn := tls.Server(record, f.tls)
	err := f.handshake(ctx, conn)
	f.sources.leave(from)
	<-f.slots
	if err != nil {
		raw.Close()
		f.cfg.Log.DebugContext(ctx, "handshake refused", "error", err)
		return
	}
	switch conn.ConnectionState().NegotiatedProtocol {
	case wire.ALPN:
		f.cfg.Relay(ctx, conn)
	case control.ALPN:
		record.PassThrough()
		f.cfg.Control(ctx, conn)
		conn.Close()
	default:
		record.PassThrough()
		f.pipe.give(ctx, conn)
	}
}

func (f *Front) handshake(ctx context.Context, conn *tls.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	return conn.HandshakeContext(ctx)
}

// serveBrowsers runs the HTTP server behind the pipe until ctx ends.
func (f *Front) serveBrowsers(ctx context.Context) {
	srv := &http.Server{
		Handler: f.cfg.Browser, ReadHeaderTimeout: headerTimeout, ReadTimeout: requestTimeout,
		WriteTimeout: requestTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
		ErrorLog: slog.NewLogLogger(f.cfg.Log.Handler(), slog.LevelDebug),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(f.pipe) // always http.ErrServerClosed or the pipe's end
	}()
	<-ctx.Done()
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if srv.Shutdown(drain) != nil {
		srv.Close()
	}
	f.pipe.Close()
	<-done
}

// pipe is the listener of the HTTP server: what arrives on it has been shaken hands with.
type pipe struct {
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipe(addr net.Addr) *pipe {
	return &pipe{addr: addr, conns: make(chan net.Conn, browserQueue), closed: make(chan struct{})}
}

// give hands conn to the HTTP server, or closes it when that does not take it.
func (p *pipe) give(ctx context.Context, conn net.Conn) {
	select {
	case p.conns <- conn:
	case <-ctx.Done():
		conn.Close()
	case <-p.closed:
		conn.Close()
	}
}

// Accept returns the next browser connection.
func (p *pipe) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept. Safe twice.
func (p *pipe) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

// Addr is the address of the real listener.
func (p *pipe) Addr() net.Addr { return p.addr }
