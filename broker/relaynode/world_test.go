package relaynode_test

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"

	"github.com/postern-zt/postern/broker/relaynode"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/control/controltest"
	"github.com/postern-zt/postern/netstack/relay/attach"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/control/v1/controlv1connect"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
	"github.com/postern-zt/postern/proto/ticket"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const joinToken = "the right token"

// world is a broker's CA, signing key and control server; the server may be stopped and
// started again on its address.
type world struct {
	*controltest.Authority
	t      *testing.T
	signer *seal.Signer
	// certs are the signing certificates that the broker hands out.
	certs  [][]byte
	relay  ids.RelayID
	hpke   ticket.PublicKey
	addr   string
	server *controltest.Server

	mu      sync.Mutex // guards the fields below
	cuts    []*controlv1.Cut
	changed chan struct{} // closed and replaced when cuts grow
	csrs    int
	report  *controlv1.RelayReportRequest
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{Authority: controltest.New(t), t: t, relay: ids.New[ids.RelayID](), changed: make(chan struct{})}
	var cert []byte
	w.signer, cert = w.Signer()
	w.certs = [][]byte{cert}
	w.start()
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) url() string { return w.Broker(w.addr).String() }

// start runs the control server.
func (w *world) start() {
	mux := http.NewServeMux()
	mux.Handle(controlv1connect.NewEnrollServiceHandler(enrollFake{w: w}))
	mux.Handle(controlv1connect.NewRelayServiceHandler(relayFake{w: w}))
	w.server = w.Serve(w.addr, mux)
	w.addr = w.server.Addr
}

func (w *world) stop() { w.server.Stop() }

type enrollFake struct {
	controlv1connect.UnimplementedEnrollServiceHandler
	w *world
}

func (f enrollFake) Hello(context.Context, *connect.Request[controlv1.HelloRequest]) (*connect.Response[controlv1.HelloResponse], error) {
	return connect.NewResponse(&controlv1.HelloResponse{CaDer: f.w.CA.Raw, TimeMs: time.Now().UnixMilli()}), nil
}

func (f enrollFake) JoinRelay(_ context.Context, req *connect.Request[controlv1.JoinRelayRequest]) (*connect.Response[controlv1.JoinResponse], error) {
	if req.Msg.Token != joinToken {
		return nil, connect.NewError(connect.CodePermissionDenied, errors.New("this token was never issued"))
	}
	hpke, err := ticket.ParsePublicKey(req.Msg.HpkePublic)
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	f.w.mu.Lock()
	f.w.hpke = hpke
	f.w.mu.Unlock()
	return connect.NewResponse(&controlv1.JoinResponse{Id: string(f.w.relay), ChainDer: f.w.Chain("/relay/"+string(f.w.relay), req.Msg.CsrDer)}), nil
}

func (f enrollFake) Renew(_ context.Context, req *connect.Request[controlv1.RenewRequest]) (*connect.Response[controlv1.RenewResponse], error) {
	f.w.mu.Lock()
	f.w.csrs++
	f.w.mu.Unlock()
	return connect.NewResponse(&controlv1.RenewResponse{ChainDer: f.w.Chain("/relay/"+string(f.w.relay), req.Msg.CsrDer)}), nil
}

type relayFake struct {
	controlv1connect.UnimplementedRelayServiceHandler
	w *world
}

// Watch sends the keys, then every cut there ever was, as a broker does for a new stream.
func (f relayFake) Watch(ctx context.Context, _ *connect.Request[controlv1.WatchRequest], out *connect.ServerStream[controlv1.RelayPush]) error {
	push := func(p *controlv1.RelayPush) error { p.TimeMs = time.Now().UnixMilli(); return out.Send(p) }
	if err := push(&controlv1.RelayPush{News: &controlv1.RelayPush_Keys{Keys: &controlv1.Keys{CertificatesDer: f.w.certs}}}); err != nil {
		return err
	}
	for sent := 0; ; {
		f.w.mu.Lock()
		fresh, changed := f.w.cuts[sent:], f.w.changed
		f.w.mu.Unlock()
		for _, c := range fresh {
			if err := push(&controlv1.RelayPush{News: &controlv1.RelayPush_Cut{Cut: c}}); err != nil {
				return err
			}
			sent++
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (w *world) cut(c *controlv1.Cut) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c.AtMs = time.Now().UnixMilli()
	w.cuts = append(w.cuts, c)
	close(w.changed)
	w.changed = make(chan struct{})
}

func (f relayFake) Report(_ context.Context, req *connect.Request[controlv1.RelayReportRequest]) (*connect.Response[controlv1.RelayReportResponse], error) {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	f.w.report = req.Msg
	return connect.NewResponse(&controlv1.RelayReportResponse{}), nil
}

// join makes a store that has joined.
func (w *world) join() *relaynode.Store {
	w.t.Helper()
	s, err := relaynode.Open(w.t.TempDir())
	must(w.t, err)
	_, err = s.Join(w.t.Context(), relaynode.Join{URL: w.url(), Token: joinToken, Name: "relay", Addresses: []string{"127.0.0.1:8444"}})
	must(w.t, err)
	return s
}

// node runs a relay; stop ends it and waits.
type node struct {
	*relaynode.Node
	stop func()
}

func (w *world) run(s *relaynode.Store, listen string) *node {
	w.t.Helper()
	n, err := relaynode.New(w.t.Context(), relaynode.Config{Store: s, Listen: listen, Log: slog.New(slog.DiscardHandler)})
	must(w.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Run = %v", err)
		}
	})
	w.t.Cleanup(stop)
	return &node{Node: n, stop: stop}
}

// connected waits until the node has taken the first news.
func (n *node) connected(t *testing.T) {
	t.Helper()
	waitFor(t, func() bool { return n.State().Connected })
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(30 * time.Second)
	defer limit.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatal("condition not reached")
		}
	}
}

// attach says how to reach the relay and what it must prove.
func (w *world) attach(addr string) attach.Config {
	return attach.Config{Log: slog.New(slog.DiscardHandler), Relay: attach.RelayInfo{ID: w.relay, TCP: []string{addr}, UDP: []string{addr}, TLS: &tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			return control.VerifyServer(cs, w.Pin(), control.KindRelay, string(w.relay), time.Now())
		},
	}}}
}

// issue makes a ticket as the broker would.
func (w *world) issue(s *seal.Signer, t ticket.Ticket) attach.Ticket {
	w.t.Helper()
	t.Relay, t.MACKey = w.relay, ticket.NewMACKey()
	if t.NotBefore.IsZero() {
		t.NotBefore = time.Now().Truncate(time.Second)
	}
	t.Expires = t.NotBefore.Add(time.Hour)
	sealed, err := ticket.Seal(w.hpke, s, t)
	must(w.t, err)
	return attach.Ticket{Sealed: sealed, Role: t.Role, Handle: t.Handle, MACKey: t.MACKey, Expires: t.Expires}
}

// connector attaches a connector over TCP that echoes, and over UDP.
func (w *world) connector(addr string) ticket.Handle {
	w.t.Helper()
	h := ticket.NewHandle()
	tk := w.issue(w.signer, ticket.Ticket{Role: ticket.RoleConnector, Handle: h})
	ctx, cancel := context.WithCancel(context.Background())
	cfg := w.attach(addr)
	attached := make(chan struct{}, 1)
	cfg.OnAttached = func() {
		select {
		case attached <- struct{}{}:
		default:
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = attach.Serve(ctx, cfg, attach.Fixed(tk), echo) })
	w.t.Cleanup(func() { cancel(); wg.Wait() })
	<-attached
	return h
}

func echo(ctx context.Context, _ ticket.Handle, raw net.Conn) {
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	defer raw.Close()
	buf := make([]byte, 1024)
	for {
		n, err := raw.Read(buf)
		if err != nil {
			return
		}
		if _, err := raw.Write(buf[:n]); err != nil {
			return
		}
	}
}

// say sends a word and reports whether it came back.
func say(c net.Conn, word string) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte(word)); err != nil {
		return err
	}
	got := make([]byte, len(word))
	for n := 0; n < len(got); {
		k, err := c.Read(got[n:])
		if err != nil {
			return err
		}
		n += k
	}
	if string(got) != word {
		return errors.New("another word came back: " + string(got))
	}
	return nil
}
