package serve_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-zt/postern/connector/serve"
	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/carrier/quic"
	carriertls "github.com/postern-zt/postern/netstack/carrier/tls"
	"github.com/postern-zt/postern/netstack/control/controltest"
	"github.com/postern-zt/postern/netstack/peer"
	"github.com/postern-zt/postern/netstack/relay"
	"github.com/postern-zt/postern/netstack/relay/attach"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
	"github.com/postern-zt/postern/proto/ticket"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a broker's CA with relays of it; each may be stopped and started again.
type world struct {
	*controltest.Authority
	t      *testing.T
	signer *seal.Signer
	log    *slog.Logger
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{Authority: controltest.New(t), t: t, log: slog.New(slog.DiscardHandler)}
	w.signer, _ = w.Signer()
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// relayNode is one relay.
type relayNode struct {
	w    *world
	id   ids.RelayID
	key  ticket.PrivateKey
	cert tls.Certificate
	addr string
	stop func()
	// handle is the connector's at this relay.
	handle ticket.Handle
}

// relay starts a relay whose certificate says it is kind.
func (w *world) relay(path string) *relayNode {
	w.t.Helper()
	key, err := ticket.GenerateKey()
	must(w.t, err)
	r := &relayNode{w: w, id: ids.New[ids.RelayID](), key: key, addr: "127.0.0.1:0", handle: ticket.NewHandle()}
	if path == "" {
		path = "/relay/" + string(r.id)
	}
	private := controltest.Key(w.t)
	leaf := w.Issue(path, private.Public(), x509.ExtKeyUsageServerAuth)
	r.cert = tls.Certificate{Certificate: [][]byte{leaf.Raw, w.CA.Raw}, PrivateKey: private}
	r.start()
	w.t.Cleanup(func() { r.stop() })
	return r
}

func (r *relayNode) start() {
	r.w.t.Helper()
	rl, err := relay.New(relay.Config{ID: r.id, Key: r.key, Log: r.w.log, BrokerKeys: func() seal.Keys { return seal.NewKeys(r.w.signer.Public()) }})
	must(r.w.t, err)
	l, err := net.Listen("tcp", r.addr)
	must(r.w.t, err)
	r.addr = l.Addr().String()
	u, err := net.ListenPacket("udp", r.addr)
	must(r.w.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = rl.ServeTCP(ctx, l, relay.TLSConfig(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &r.cert, nil }))
	})
	wg.Go(func() { _ = rl.ServeUDP(ctx, u.(*net.UDPConn)) })
	r.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
}

func (r *relayNode) ticket(t ticket.Ticket, life time.Duration) attach.Ticket {
	r.w.t.Helper()
	t.Relay, t.MACKey = r.id, ticket.NewMACKey()
	t.NotBefore = time.Now().Add(-time.Second).Truncate(time.Second)
	t.Expires = t.NotBefore.Add(life)
	sealed, err := ticket.Seal(r.key.Public(), r.w.signer, t)
	must(r.w.t, err)
	return attach.Ticket{Sealed: sealed, Role: t.Role, Handle: t.Handle, MACKey: t.MACKey, Expires: t.Expires}
}

// path is what the broker tells the connector about the relay.
func (r *relayNode) path() *controlv1.RelayPath {
	r.w.t.Helper()
	t := r.ticket(ticket.Ticket{Role: ticket.RoleConnector, Handle: r.handle}, time.Hour)
	return &controlv1.RelayPath{
		Relay:  &controlv1.RelayInfo{Id: string(r.id), Addresses: []string{r.addr}, KeyId: []byte("its own process")},
		Ticket: t.Sealed, Handle: uint64(t.Handle), MacKey: t.MACKey[:], ExpiresMs: t.Expires.UnixMilli(),
	}
}

func (r *relayNode) attach() attach.Config {
	return attach.Config{Log: r.w.log, Relay: attach.RelayInfo{ID: r.id, TCP: []string{r.addr}, UDP: []string{r.addr}, TLS: &tls.Config{
		InsecureSkipVerify: true, //nolint:gosec // the test's own relay
	}}}
}

func (r *relayNode) client() attach.Ticket {
	return r.ticket(ticket.Ticket{Role: ticket.RoleClient, Handle: ticket.NewHandle(), Connector: r.handle}, time.Hour)
}

// linksFake hands carriers to the test and holds them until they die.
type linksFake struct{ got chan carrier.Carrier }

func (l *linksFake) Serve(ctx context.Context, c carrier.Carrier) error {
	l.got <- c
	select {
	case <-c.Done():
		return c.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fixture is a running server with a device that knows its key.
type fixture struct {
	*serve.Server
	links  *linksFake
	self   *peer.Credentials
	device *peer.Credentials
}

func (w *world) credentials() *peer.Credentials {
	w.t.Helper()
	c, err := peer.NewCredentials(peer.CredentialsConfig{Identity: controltest.Key(w.t)})
	must(w.t, err)
	return c
}

func (w *world) serve(brokerAddr string) *fixture {
	w.t.Helper()
	f := &fixture{links: &linksFake{got: make(chan carrier.Carrier, 16)}, self: w.credentials(), device: w.credentials()}
	var err error
	f.Server, err = serve.New(serve.Config{Credentials: f.self, Links: f.links, Broker: w.Broker(brokerAddr), Log: w.log})
	must(w.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Run = %v", err)
		}
	})
	return f
}

func (f *fixture) tls(t *testing.T) *tls.Config {
	t.Helper()
	c, err := peer.ClientConfig(peer.Config{Credentials: f.device, Expect: peer.Exactly(f.self.KeyID())})
	must(t, err)
	return c
}

// dialTCP opens the tls carrier as a device does.
func (f *fixture) dialTCP(t *testing.T, r *relayNode) (carrier.Carrier, error) {
	t.Helper()
	raw, err := attach.DialTCP(t.Context(), r.attach(), r.client())
	if err != nil {
		return nil, err
	}
	return carriertls.Client(t.Context(), raw, carriertls.Config{TLS: f.tls(t)})
}

func (f *fixture) dialUDP(t *testing.T, r *relayNode) (carrier.Carrier, error) {
	t.Helper()
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	must(t, err)
	return quic.DialRelay(t.Context(), r.attach(), socket, attach.Fixed(r.client()), quic.Config{TLS: f.tls(t)})
}

// await waits until every transport of n relays is up.
func (f *fixture) await(t *testing.T, n int) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("states %+v", f.States())
		}
	}()
	waitFor(t, func() bool {
		states := f.States()
		for _, s := range states {
			if !s.Up {
				return false
			}
		}
		return len(states) == 2*n
	})
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(10 * time.Second)
	defer limit.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatalf("%s: condition not reached", t.Name())
		}
	}
}

// TestServesBothCarriers: a device reaches the connector over TCP and UDP, and the
// connector knows it by its identity key.
func TestServesBothCarriers(t *testing.T) {
	w := newWorld(t)
	r := w.relay("")
	f := w.serve("127.0.0.1:1")
	f.SetRelays([]*controlv1.RelayPath{r.path()})
	f.await(t, 1)
	for kind, dial := range map[carrier.Kind]func(*testing.T, *relayNode) (carrier.Carrier, error){carrier.TLS: f.dialTCP, carrier.QUIC: f.dialUDP} {
		c, err := dial(t, r)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		got := <-f.links.got
		if got.Kind() != kind || got.Peer().KeyID != f.device.KeyID() {
			t.Errorf("%s: served %s of %s", kind, got.Kind(), got.Peer().KeyID)
		}
		c.Close()
		<-got.Done()
	}
}

// TestStrangersAreNotServed: a connection without an identity never reaches the links.
func TestStrangersAreNotServed(t *testing.T) {
	w := newWorld(t)
	r := w.relay("")
	f := w.serve("127.0.0.1:1")
	f.SetRelays([]*controlv1.RelayPath{r.path()})
	f.await(t, 1)
	raw, err := attach.DialTCP(t.Context(), r.attach(), r.client())
	must(t, err)
	defer raw.Close()
	tc := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{peer.ALPN}, MinVersion: tls.VersionTLS13})
	must(t, raw.SetDeadline(time.Now().Add(20*time.Second)))
	err = tc.Handshake() // with TLS 1.3 the refusal comes with the first read
	if err == nil {
		_, err = tc.Read(make([]byte, 1))
	}
	if err == nil {
		t.Error("a device without a key was served")
	}
	wrong := *f
	wrong.self = w.credentials()
	if c, err := wrong.dialTCP(t, r); err == nil {
		c.Close()
		t.Error("the device took another connector for its own")
	}
	if len(f.links.got) != 0 {
		t.Error("a carrier reached the links")
	}
}

// TestRelayMustBeTheNamedOne: its certificate names relay and kind, by the pinned CA.
func TestRelayMustBeTheNamedOne(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	for name, r := range map[string]*relayNode{
		"another relay's name": w.relay("/relay/" + string(ids.New[ids.RelayID]())),
		"a device":             w.relay("/device/dev_1"),
		"another CA":           other.relay(""),
	} {
		f := w.serve("127.0.0.1:1")
		f.SetRelays([]*controlv1.RelayPath{r.path()})
		waitFor(t, func() bool {
			for _, s := range f.States() {
				if s.Transport == serve.TCP {
					return !s.Up && s.Problem != "" && s.Problem != "attaching"
				}
			}
			return false
		})
		if st := f.States(); st[0].Up || !strings.Contains(st[0].Problem, "not the pinned broker") {
			t.Errorf("%s: %+v", name, st[0])
		}
	}
}

// TestRelayInsideTheBroker is reached where the broker is, whatever it says of itself.
func TestRelayInsideTheBroker(t *testing.T) {
	w := newWorld(t)
	r := w.relay("/broker/brk_1")
	f := w.serve(r.addr)
	p := r.path()
	p.Relay.KeyId, p.Relay.Addresses = nil, []string{"192.0.2.1:9"}
	f.SetRelays([]*controlv1.RelayPath{p})
	f.await(t, 1)
}

// TestRelayRestart: both transports come back by themselves, with the same tickets.
func TestRelayRestart(t *testing.T) {
	w := newWorld(t)
	r := w.relay("")
	f := w.serve("127.0.0.1:1")
	f.SetRelays([]*controlv1.RelayPath{r.path()})
	f.await(t, 1)
	r.stop()
	waitFor(t, func() bool { s := f.States(); return !s[0].Up })
	r.start()
	waitFor(t, func() bool { s := f.States(); return s[0].Up })
	c, err := f.dialTCP(t, r)
	must(t, err)
	c.Close()
	waitFor(t, func() bool {
		c, err := f.dialUDP(t, r)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// TestUnnamedRelayStaysAWhile: a broker that has just started does not know yet which
// relays live, and flows through them must not notice.
func TestUnnamedRelayStaysAWhile(t *testing.T) {
	w := newWorld(t)
	one, two := w.relay(""), w.relay("")
	f := w.serve("127.0.0.1:1")
	f.SetRelays([]*controlv1.RelayPath{one.path()})
	f.await(t, 1)
	c, err := f.dialTCP(t, one)
	must(t, err)
	defer c.Close()
	served := <-f.links.got
	f.SetRelays([]*controlv1.RelayPath{two.path()})
	f.await(t, 2)
	select {
	case <-served.Done():
		t.Error("the carrier through the unnamed relay died")
	default:
	}
	f.SetRelays([]*controlv1.RelayPath{one.path(), two.path()})
	f.SetRelays(nil)
	if _, err := f.dialTCP(t, one); err != nil {
		t.Errorf("through the unnamed relay: %v", err)
	}
}

// TestMovedRelay: other addresses count at once.
func TestMovedRelay(t *testing.T) {
	w := newWorld(t)
	r := w.relay("")
	f := w.serve("127.0.0.1:1")
	wrong := r.path()
	wrong.Relay.Addresses = []string{"127.0.0.1:1"}
	f.SetRelays([]*controlv1.RelayPath{wrong})
	waitFor(t, func() bool { s := f.States(); return len(s) == 2 && s[0].Problem != "" })
	f.SetRelays([]*controlv1.RelayPath{r.path()})
	f.await(t, 1)
}

func TestBadTicketsSayWhy(t *testing.T) {
	w := newWorld(t)
	r := w.relay("")
	for want, edit := range map[string]func(*controlv1.RelayPath){
		"the broker gave a malformed ticket":                  func(p *controlv1.RelayPath) { p.MacKey = p.MacKey[1:] },
		"the ticket has expired and the broker gave no other": func(p *controlv1.RelayPath) { p.ExpiresMs = time.Now().UnixMilli() },
	} {
		f := w.serve("127.0.0.1:1")
		p := r.path()
		edit(p)
		f.SetRelays([]*controlv1.RelayPath{p, {Relay: &controlv1.RelayInfo{Id: "../etc"}}, {}})
		waitFor(t, func() bool {
			s := f.States()
			return len(s) == 2 && !s[0].Up && s[0].Problem == want
		})
	}
}
