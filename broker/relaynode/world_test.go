package relaynode_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"

	"github.com/postern-zt/postern/broker/relaynode"
	"github.com/postern-zt/postern/netstack/control"
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
	t      *testing.T
	caKey  *ecdsa.PrivateKey
	ca     *x509.Certificate
	signer *seal.Signer
	// certs are the signing certificates that the broker hands out.
	certs [][]byte
	relay ids.RelayID
	hpke  ticket.PublicKey
	addr  string
	stop  func()

	mu      sync.Mutex // guards the fields below
	cuts    []*controlv1.Cut
	changed chan struct{} // closed and replaced when cuts grow
	watches int
	reports []*controlv1.RelayReportRequest
	csrs    int
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, caKey: newKey(t), relay: ids.New[ids.RelayID](), addr: "127.0.0.1:0", changed: make(chan struct{})}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	w.ca = w.sign(tmpl, tmpl, w.caKey.Public())
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	w.signer = seal.NewSigner(priv)
	w.certs = [][]byte{w.leaf("/signer/brk_1", priv.Public()).Raw}
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return k
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) sign(tmpl, parent *x509.Certificate, pub any) *x509.Certificate {
	w.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, w.caKey)
	must(w.t, err)
	c, err := x509.ParseCertificate(der)
	must(w.t, err)
	return c
}

func (w *world) leaf(path string, pub any, usage ...x509.ExtKeyUsage) *x509.Certificate {
	w.t.Helper()
	return w.sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-5 * time.Minute), NotAfter: time.Now().Add(time.Hour),
		URIs: []*url.URL{{Scheme: "spiffe", Host: "org", Path: path}}, ExtKeyUsage: usage, BasicConstraintsValid: true,
	}, w.ca, pub)
}

func (w *world) pin() ids.KeyID { return ids.KeyIDOf(w.ca.RawSubjectPublicKeyInfo) }

func (w *world) url() string { return control.Broker{Address: w.addr, Pin: w.pin()}.String() }

// start runs the control server.
func (w *world) start() {
	w.t.Helper()
	key := newKey(w.t)
	cert := w.leaf("/broker/brk_1", key.Public(), x509.ExtKeyUsageServerAuth)
	l, err := tls.Listen("tcp", w.addr, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{control.ALPN}, ClientAuth: tls.RequestClientCert,
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw, w.ca.Raw}, PrivateKey: key}},
	})
	must(w.t, err)
	w.addr = l.Addr().String()
	mux := http.NewServeMux()
	mux.Handle(controlv1connect.NewEnrollServiceHandler(enrollFake{w: w}))
	mux.Handle(controlv1connect.NewRelayServiceHandler(relayFake{w: w}))
	srv := control.NewServer(mux)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { accept(ctx, l, srv) })
	w.stop = sync.OnceFunc(func() { cancel(); l.Close(); wg.Wait() })
}

func accept(ctx context.Context, l net.Listener, srv *control.Server) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			tc := c.(*tls.Conn)
			if tc.HandshakeContext(ctx) == nil {
				srv.ServeConn(ctx, tc)
			}
			tc.Close()
		})
	}
}

type enrollFake struct {
	controlv1connect.UnimplementedEnrollServiceHandler
	w *world
}

func (f enrollFake) Hello(context.Context, *connect.Request[controlv1.HelloRequest]) (*connect.Response[controlv1.HelloResponse], error) {
	return connect.NewResponse(&controlv1.HelloResponse{CaDer: f.w.ca.Raw, TimeMs: time.Now().UnixMilli()}), nil
}

func (f enrollFake) issue(csrDER []byte) [][]byte {
	csr, err := x509.ParseCertificateRequest(csrDER)
	must(f.w.t, err)
	leaf := f.w.leaf("/relay/"+string(f.w.relay), csr.PublicKey, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
	return [][]byte{leaf.Raw, f.w.ca.Raw}
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
	return connect.NewResponse(&controlv1.JoinResponse{Id: string(f.w.relay), ChainDer: f.issue(req.Msg.CsrDer)}), nil
}

func (f enrollFake) Renew(_ context.Context, req *connect.Request[controlv1.RenewRequest]) (*connect.Response[controlv1.RenewResponse], error) {
	f.w.mu.Lock()
	f.w.csrs++
	f.w.mu.Unlock()
	return connect.NewResponse(&controlv1.RenewResponse{ChainDer: f.issue(req.Msg.CsrDer)}), nil
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
	f.w.mu.Lock()
	f.w.watches++
	f.w.mu.Unlock()
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

func (f relayFake) Report(_ context.Context, req *connect.Request[controlv1.RelayReportRequest]) (*connect.Response[controlv1.RelayReportResponse], error) {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	f.w.reports = append(f.w.reports, req.Msg)
	return connect.NewResponse(&controlv1.RelayReportResponse{}), nil
}

func (w *world) cut(c *controlv1.Cut) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c.AtMs = time.Now().UnixMilli()
	w.cuts = append(w.cuts, c)
	close(w.changed)
	w.changed = make(chan struct{})
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
			return control.VerifyServer(cs, w.pin(), control.KindRelay, string(w.relay), time.Now())
		},
	}}}
}

// issue makes a ticket as the broker would.
func (w *world) issue(s *seal.Signer, t ticket.Ticket) attach.Ticket {
	w.t.Helper()
	t.Relay, t.MACKey = w.relay, ticket.NewMACKey()
	t.NotBefore = time.Now().Truncate(time.Second)
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
