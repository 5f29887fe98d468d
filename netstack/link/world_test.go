package link_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/carrier/tls"
	"github.com/postern-zt/postern/netstack/flow"
	"github.com/postern-zt/postern/netstack/link"
	"github.com/postern-zt/postern/netstack/peer"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/test/netlab"
)

// world is one connector with apps and any number of clients over netlab streams.
type world struct {
	t       testing.TB
	handler *fakeHandler
	server  *link.Server
	creds   *peer.Credentials
	memory  *flow.Memory
	ctx     context.Context
	serving sync.WaitGroup
}

func newWorld(t testing.TB, limits link.Limits) *world {
	t.Helper()
	w := &world{t: t, handler: newFakeHandler(), creds: newCredentials(t), memory: flow.NewMemory(0)}
	w.startServer(limits)
	ctx, cancel := context.WithCancel(context.Background())
	w.ctx = ctx
	t.Cleanup(func() {
		_ = w.server.Close()
		cancel()
		w.serving.Wait()
		w.handler.close()
	})
	return w
}

func (w *world) startServer(limits link.Limits) {
	w.t.Helper()
	s, err := link.NewServer(link.ServerConfig{Handler: w.handler, Memory: w.memory, Limits: limits, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		w.t.Fatal(err)
	}
	w.server = s
}

func newCredentials(t testing.TB) *peer.Credentials {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c, err := peer.NewCredentials(peer.CredentialsConfig{Identity: key})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// road is one way between a client and the connector, which the test can break.
type road struct {
	name    string
	latency time.Duration

	mu      sync.Mutex // guards the fields below
	streams []*netlab.Stream
	closed  bool
	dials   int
}

// cut silences everything on the road; new dials fail while it is closed.
func (r *road) cut() { r.each(true, (*netlab.Stream).Cut) }

// kill resets everything on the road; new dials fail while it is closed.
func (r *road) kill() { r.each(true, (*netlab.Stream).Reset) }

// flap resets everything; new dials work.
func (r *road) flap() { r.each(false, (*netlab.Stream).Reset) }

func (r *road) each(closed bool, fn func(*netlab.Stream)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = closed
	for _, s := range r.streams {
		fn(s)
	}
	r.streams = nil
}

func (r *road) open() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = false
}

func (r *road) carried() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := int64(0)
	for _, s := range r.streams {
		n += s.Carried()
	}
	return n
}

var errDeadline = os.ErrDeadlineExceeded

var errRoadClosed = errors.New("road is closed")

// dialer makes tls carriers over the road; the far end is served by w's present server.
func (w *world) dialer(r *road, creds *peer.Credentials) link.Dialer {
	return link.Dialer{Name: r.name, Kind: carrier.TLS, Dial: func(ctx context.Context) (carrier.Carrier, error) {
		r.mu.Lock()
		r.dials++
		if r.closed {
			r.mu.Unlock()
			return nil, errRoadClosed
		}
		s := netlab.NewStream(netlab.StreamConfig{Latency: r.latency})
		r.streams = append(r.streams, s)
		r.mu.Unlock()
		w.accept(s.B)
		cfg, err := peer.ClientConfig(peer.Config{Credentials: creds, Expect: peer.Exactly(w.creds.KeyID())})
		if err != nil {
			return nil, err
		}
		return tls.Client(ctx, s.A, tls.Config{TLS: cfg, Path: r.name})
	}}
}

func (w *world) accept(conn net.Conn) {
	server := w.server
	w.serving.Go(func() {
		cfg, err := peer.ServerConfig(peer.Config{Credentials: w.creds, Expect: peer.Anyone})
		if err != nil {
			w.t.Error(err)
			return
		}
		c, err := tls.Server(w.ctx, conn, tls.Config{TLS: cfg, Path: "test"})
		if err != nil {
			return
		}
		_ = server.Serve(w.ctx, c)
	})
}

// client starts a client over the roads.
func (w *world) client(creds *peer.Credentials, edit func(*link.ClientConfig), roads ...*road) *link.Client {
	w.t.Helper()
	cfg := link.ClientConfig{
		Instance: frame.NewInstanceID(), Peer: w.creds.KeyID(), Memory: w.memory, Log: slog.New(slog.DiscardHandler),
	}
	for _, r := range roads {
		cfg.Dial = append(cfg.Dial, w.dialer(r, creds))
	}
	if edit != nil {
		edit(&cfg)
	}
	c, err := link.NewClient(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Run(ctx)
	}()
	w.t.Cleanup(func() {
		cancel()
		<-done
	})
	return c
}

// fakeHandler is a connector's policy: an envelope "grant:port" is good for that port.
type fakeHandler struct {
	mu       sync.Mutex // guards the fields below
	apps     map[uint16]func(net.Conn)
	revoked  map[ids.GrantID]frame.Code
	opened   map[uint64]link.FlowRecord
	closed   []link.FlowRecord
	dials    int
	dialGate chan struct{}
	working  sync.WaitGroup
	conns    []net.Conn
	changed  chan struct{}
}

func newFakeHandler() *fakeHandler {
	return &fakeHandler{
		apps: make(map[uint16]func(net.Conn)), revoked: make(map[ids.GrantID]frame.Code),
		opened: make(map[uint64]link.FlowRecord), changed: make(chan struct{}),
	}
}

type fakeGrant struct{ port uint16 }

func envelope(grant string, port uint16) []byte { return fmt.Appendf(nil, "%s %d", grant, port) }

func (h *fakeHandler) Present(_ context.Context, _ peer.Identity, _ frame.Hello, env []byte) (link.MicroTunnel, frame.Code) {
	var g fakeGrant
	var name string
	if _, err := fmt.Sscanf(string(env), "%s %d", &name, &g.port); err != nil {
		return link.MicroTunnel{}, frame.GrantInvalid
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if code, ok := h.revoked[ids.GrantID(name)]; ok {
		return link.MicroTunnel{}, code
	}
	return link.MicroTunnel{Grant: ids.GrantID(name), App: "app_test", Handle: g}, frame.OK
}

func (h *fakeHandler) FlowOpened(_ context.Context, rec link.FlowRecord) (any, frame.Code) {
	if rec.Tunnel.Handle.(fakeGrant).port != rec.Port {
		return nil, frame.PortNotGranted
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.opened[rec.Flow] = rec
	return rec.Flow, frame.OK
}

func (h *fakeHandler) Dial(ctx context.Context, _ link.MicroTunnel, open link.FlowOpen) (net.Conn, frame.Code) {
	h.mu.Lock()
	h.dials++
	app, gate := h.apps[open.Port], h.dialGate
	h.changedLocked()
	h.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, frame.CodeOf(context.Cause(ctx))
		}
	}
	if app == nil {
		return nil, frame.Refused
	}
	s := netlab.NewStream(netlab.StreamConfig{})
	h.mu.Lock()
	h.conns = append(h.conns, s.B)
	h.mu.Unlock()
	h.working.Go(func() { app(s.B) })
	return s.A, frame.OK
}

func (h *fakeHandler) FlowClosed(rec link.FlowRecord) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = append(h.closed, rec)
	h.changedLocked()
}

func (h *fakeHandler) changedLocked() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// awaitChange waits until a dial starts or a flow ends, unless a dial has been seen.
func (h *fakeHandler) awaitChange(t testing.TB) {
	t.Helper()
	h.mu.Lock()
	dials, changed := h.dials, h.changed
	h.mu.Unlock()
	if dials > 0 {
		return
	}
	select {
	case <-changed:
	case <-t.Context().Done():
		t.Fatal("nothing happened")
	}
}

// awaitClosed waits for the records of n ended flows.
func (h *fakeHandler) awaitClosed(t testing.TB, n int) []link.FlowRecord {
	t.Helper()
	for {
		h.mu.Lock()
		got, changed := append([]link.FlowRecord(nil), h.closed...), h.changed
		h.mu.Unlock()
		if len(got) >= n {
			return got
		}
		select {
		case <-changed:
		case <-t.Context().Done():
			t.Fatalf("%d of %d flows closed", len(got), n)
		}
	}
}

func (h *fakeHandler) app(port uint16, fn func(net.Conn)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.apps[port] = fn
}

func (h *fakeHandler) revoke(g ids.GrantID, code frame.Code) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.revoked[g] = code
}

func (h *fakeHandler) dialled() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.dials
}

func (h *fakeHandler) close() {
	h.mu.Lock()
	for _, c := range h.conns {
		_ = c.Close()
	}
	h.mu.Unlock()
	h.working.Wait()
}

// echo returns what it reads and passes a half-close on.
func echo(c net.Conn) {
	defer c.Close()
	_, _ = io.Copy(c, c)
	_ = c.(interface{ CloseWrite() error }).CloseWrite()
}
