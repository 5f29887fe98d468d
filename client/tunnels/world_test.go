package tunnels_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"

	"github.com/postern-zt/postern/client/session"
	"github.com/postern-zt/postern/client/tunnels"
	"github.com/postern-zt/postern/netstack/carrier"
	carriertls "github.com/postern-zt/postern/netstack/carrier/tls"
	"github.com/postern-zt/postern/netstack/link"
	"github.com/postern-zt/postern/netstack/peer"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/test/netlab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var wiki = session.App{ID: "app_wiki", Name: "wiki"}

// site is one connector of the test: it echoes, and refuses what it is told to refuse.
type site struct {
	t      *testing.T
	id     ids.ConnectorID
	creds  *peer.Credentials
	server *link.Server
	ctx    context.Context
	work   sync.WaitGroup

	mu sync.Mutex // guards the fields below
	// down refuses carriers, present and dial are the codes of the answers.
	down          bool
	present, dial frame.Code
	dials         int
	seen          []string
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, id: ids.New[ids.ConnectorID](), creds: credentials(t)}
	var err error
	s.server, err = link.NewServer(link.ServerConfig{Handler: s, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.ctx = ctx
	t.Cleanup(func() {
		_ = s.server.Close()
		cancel()
		s.work.Wait()
	})
	return s
}

func credentials(t *testing.T) *peer.Credentials {
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

func (s *site) set(f func(s *site)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

func (s *site) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dials
}

// Present accepts every envelope unless told otherwise.
func (s *site) Present(_ context.Context, _ peer.Identity, _ frame.Hello, envelope []byte) (link.MicroTunnel, frame.Code) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, string(envelope))
	return link.MicroTunnel{Grant: ids.GrantID(envelope)}, s.present
}

// FlowOpened accepts.
func (s *site) FlowOpened(context.Context, link.FlowRecord) (any, frame.Code) { return nil, frame.OK }

// Dial connects to an echo.
func (s *site) Dial(context.Context, link.MicroTunnel, link.FlowOpen) (net.Conn, frame.Code) {
	s.mu.Lock()
	s.dials++
	code := s.dial
	s.mu.Unlock()
	if code != frame.OK {
		return nil, code
	}
	app := netlab.NewStream(netlab.StreamConfig{})
	s.work.Go(func() {
		_, _ = io.Copy(app.B, app.B)
		app.B.Close()
	})
	return app.A, frame.OK
}

// FlowClosed is not looked at.
func (s *site) FlowClosed(link.FlowRecord) {}

func (s *site) reach(ctx context.Context, config *tls.Config) (carrier.Carrier, error) {
	s.mu.Lock()
	down := s.down
	s.mu.Unlock()
	if down {
		return nil, errors.New("the site is down")
	}
	pair := netlab.NewStream(netlab.StreamConfig{})
	s.work.Go(func() {
		cfg, err := peer.ServerConfig(peer.Config{Credentials: s.creds, Expect: peer.Anyone})
		if err != nil {
			s.t.Error(err)
			return
		}
		c, err := carriertls.Server(s.ctx, pair.B, carriertls.Config{TLS: cfg, Path: "test"})
		if err != nil {
			return
		}
		_ = s.server.Serve(s.ctx, c)
		_ = c.Close()
	})
	return carriertls.Client(ctx, pair.A, carriertls.Config{TLS: config, Path: "test"})
}

// broker answers Authorize.
type broker struct {
	mu sync.Mutex // guards the fields below
	// sites are the connectors of each grant, in order; deny refuses; err fails.
	sites []*site
	deny  bool
	// stepUp asks for a new sign-in.
	stepUp bool
	err    error
	hold   chan struct{}
	asked  int
}

func (b *broker) set(f func(b *broker)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(b)
}

func (b *broker) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asked
}

// Authorize decides.
func (b *broker) Authorize(ctx context.Context, _ *connect.Request[controlv1.AuthorizeRequest]) (*connect.Response[controlv1.AuthorizeResponse], error) {
	b.mu.Lock()
	b.asked++
	hold := b.hold
	b.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return nil, b.err
	}
	if b.stepUp {
		return connect.NewResponse(&controlv1.AuthorizeResponse{RetryAfterMs: 30_000, Receipt: &controlv1.Receipt{
			Id: "K7M2-Q4TX", Verdict: controlv1.Verdict_VERDICT_STEP_UP, Reason: "Sign in again.", AppName: "wiki",
		}}), nil
	}
	if b.deny {
		return connect.NewResponse(&controlv1.AuthorizeResponse{RetryAfterMs: 30_000, Receipt: &controlv1.Receipt{
			Id: "K7M2-Q4TX", Verdict: controlv1.Verdict_VERDICT_DENY, Reason: "No rule.", AppName: "wiki",
		}}), nil
	}
	id := ids.New[ids.GrantID]()
	resp := &controlv1.AuthorizeResponse{
		Receipt: &controlv1.Receipt{Verdict: controlv1.Verdict_VERDICT_ALLOW}, Grant: []byte(id), GrantId: string(id),
		HardEndMs: time.Now().Add(time.Hour).UnixMilli(),
	}
	for _, s := range b.sites {
		key := s.creds.KeyID()
		resp.Connectors = append(resp.Connectors, &controlv1.ConnectorPath{ConnectorId: string(s.id), KeyId: key[:]})
	}
	return connect.NewResponse(resp), nil
}

// world is a client with its broker and sites.
type world struct {
	*tunnels.Tunnels
	broker *broker
	pins   map[ids.ConnectorID]ids.KeyID
}

func newWorld(t *testing.T, sites ...*site) *world {
	t.Helper()
	w := &world{broker: &broker{sites: sites}, pins: map[ids.ConnectorID]ids.KeyID{}}
	var err error
	var mu sync.Mutex // guards pins
	w.Tunnels, err = tunnels.New(tunnels.Config{
		Client: w.broker, Credentials: credentials(t), Log: slog.New(slog.DiscardHandler),
		CheckConnector: func(id ids.ConnectorID, key ids.KeyID) error {
			mu.Lock()
			defer mu.Unlock()
			if old, ok := w.pins[id]; ok && old != key {
				return errors.New("another key")
			}
			w.pins[id] = key
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.SetReachForTest(func(ctx context.Context, id ids.ConnectorID, _ string, config *tls.Config) (carrier.Carrier, error) {
		for _, s := range sites {
			if s.id == id {
				return s.reach(ctx, config)
			}
		}
		return nil, errors.New("unknown connector")
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = w.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

func (w *world) echo(t *testing.T, app session.App) error {
	t.Helper()
	f, err := w.OpenTCP(t.Context(), app, 80)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write([]byte("hello")); err != nil {
		return err
	}
	buf := make([]byte, 5)
	_, err = io.ReadFull(f, buf)
	return err
}

func (w *world) grantOf(t *testing.T, app session.App) string {
	t.Helper()
	id := w.GrantForTest(app)
	if id == "" {
		t.Fatal("no grant at hand")
	}
	return id
}
