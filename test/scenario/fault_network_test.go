package scenario

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/postern-zt/postern/broker"
	"github.com/postern-zt/postern/client"
	"github.com/postern-zt/postern/client/state"
	"github.com/postern-zt/postern/connector"
	"github.com/postern-zt/postern/connector/enroll"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/relay/attach"
	"github.com/postern-zt/postern/proto/ids"
)

// laptop is the product's own client on an enrolled device, running, with apps known. at is
// the broker's URL that it was told.
func (w *world) laptop(user, at string, change func(*client.Config)) *client.Client {
	w.t.Helper()
	cfg := w.laptopConfig(user)
	change(&cfg)
	c, err := client.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := c.Store().Load(); errors.Is(err, state.ErrNotEnrolled) {
		w.enrolLaptop(user, at, c.Store())
	}
	start(w.t, user+"'s client", c.Run)
	if err := c.AwaitLive(w.ctx()); err != nil {
		w.t.Fatalf("%s's client never got its apps: %v", user, err)
	}
	return c
}

func (w *world) laptopConfig(user string) client.Config {
	name := user + "-laptop"
	return client.Config{Dir: filepath.Join(w.dir, name), Version: version, Log: w.log.With("role", name)}
}

// enrolLaptop signs a user in for the key of a client's state directory.
func (w *world) enrolLaptop(user, at string, store *state.Store) {
	w.t.Helper()
	d := w.stranger(user + "-laptop")
	var err error
	if d.member, err = control.NewMember(store.Key(), nil, nil); err != nil {
		w.t.Fatal(err)
	}
	d.connect()
	d.enrol(user)
	cert, err := d.member.Certificate()
	if err != nil {
		w.t.Fatal(err)
	}
	m := state.Membership{URL: at, Device: ids.DeviceID(d.id), Chain: cert.Certificate, CA: cert.Certificate[1]}
	if err := store.Save(m); err != nil {
		w.t.Fatal(err)
	}
}

// serves waits until a connector stands at a relay over TCP, the only way that some
// networks leave.
func (s *site) serves() {
	s.w.t.Helper()
	eventually(s.w.t, s.name+" serves over TCP", func() bool {
		for _, p := range s.conn.Report().Paths {
			if p.Transport == "tcp" && p.State == "up" {
				return s.conn.Live()
			}
		}
		return false
	})
}

// reaches opens an app by name with the product's client and has it answer. The facts of a
// device that has just come may still be on their way.
func reaches(t testing.TB, c *client.Client, name string, a *app) {
	t.Helper()
	eventually(t, name+" is allowed", func() bool { known, ok := c.Find(name); return ok && known.Allowed })
	f, err := c.OpenTCP(within(t), name, a.port())
	if err != nil {
		t.Fatalf("open %s: %v", name, err)
	}
	defer f.Close()
	echoes(t, f, "hello over "+name)
}

// box is a firewall in front of the broker's port. It lets a TCP connection through whose
// first bytes are a TLS ClientHello, answered by a handshake, and no UDP at all.
type box struct {
	tcp    net.Listener
	udp    net.PacketConn
	to     string
	work   sync.WaitGroup
	passed atomic.Int64
	cut    atomic.Int64
	conns  open
}

// newBox starts the firewall on a free port.
func newBox(t *testing.T) *box {
	t.Helper()
	b := &box{}
	at := freePort(t)
	var err error
	if b.tcp, err = net.Listen("tcp", at); err != nil {
		t.Fatal(err)
	}
	if b.udp, err = net.ListenPacket("udp", at); err != nil { // it swallows, so that nobody hears a refusal
		t.Fatal(err)
	}
	t.Cleanup(func() { b.tcp.Close(); b.udp.Close(); b.conns.closeAll(); b.work.Wait() })
	return b
}

// guard lets the inspection begin; to is the broker's own port.
func (b *box) guard(to string) {
	b.to = to
	b.work.Go(func() {
		for {
			c, err := b.tcp.Accept()
			if err != nil {
				return
			}
			b.conns.add(c)
			b.work.Go(func() { b.inspect(c) })
		}
	})
}

func (b *box) addr() string { return b.tcp.Addr().String() }

// inspect reads the first record of each direction and forwards the rest unseen.
func (b *box) inspect(c net.Conn) {
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	in := bufio.NewReader(c)
	if !handshakeRecord(in, 1) {
		b.cut.Add(1)
		return
	}
	up, err := net.Dial("tcp", b.to)
	if err != nil {
		return
	}
	defer up.Close()
	b.conns.add(up)
	_ = c.SetReadDeadline(time.Time{})
	b.work.Go(func() { forward(up, in) })
	out := bufio.NewReader(up)
	if _, err := out.Peek(1); err != nil {
		return // it hung up without a word
	}
	if !handshakeRecord(out, 2) {
		b.cut.Add(1)
		return
	}
	b.passed.Add(1)
	forward(c, out)
}

// handshakeRecord tells whether what comes is a whole TLS handshake record that begins with
// this message, and leaves it in the reader.
func handshakeRecord(r *bufio.Reader, message byte) bool {
	head, err := r.Peek(6)
	if err != nil || head[0] != 22 || head[1] != 3 || head[5] != message {
		return false
	}
	length := int(binary.BigEndian.Uint16(head[3:5]))
	whole, err := r.Peek(min(5+length, r.Size()))
	return err == nil && length > 40 && int(binary.BigEndian.Uint16(whole[7:9])) == length-4
}

// forward copies one direction and its end.
func forward(to net.Conn, from io.Reader) {
	_, _ = io.Copy(to, from) // either end may go
	if t, ok := to.(*net.TCPConn); ok {
		_ = t.CloseWrite()
	}
}

// TestFaultClientHello: behind a firewall that lets only TLS through, and no UDP, people
// join, sign in and reach their apps.
func TestFaultClientHello(t *testing.T) {
	wall, wiki := newBox(t), echo(t)
	w := newWorldWith(t, func(cfg *broker.Config) {
		wall.guard(cfg.Listen)
		cfg.URL = "https://" + wall.addr()
	}, "ann")
	s := w.joined("berlin-1", w.site("berlin"))
	s.startWith(func(*connector.Config) {})
	s.serves()
	w.publish("wiki", "berlin", wiki.target())
	w.allow("ann", "wiki")
	c := w.laptop("ann", w.broker.URL(), func(*client.Config) {})
	before := wall.passed.Load()
	reaches(t, c, "wiki", wiki)
	if wall.passed.Load() == before || wall.cut.Load() != 0 {
		t.Errorf("the firewall passed %d connections more and cut %d", wall.passed.Load()-before, wall.cut.Load())
	}
	plain, err := net.Dial("tcp", wall.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if _, err := plain.Write([]byte("GET / HTTP/1.1\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if n, err := plain.Read(make([]byte, 1)); err == nil || n != 0 || wall.cut.Load() != 1 {
		t.Errorf("the firewall let plain HTTP through: %d bytes, %v, %d cut", n, err, wall.cut.Load())
	}
}

// errBlocked is what a machine sees that may talk to its proxy only.
var errBlocked = errors.New("this network lets nothing out but the proxy")

// office is a network whose only way out is an HTTP proxy that wants a password. It alone
// knows where the broker is.
type office struct {
	proxy   *http.Server
	addr    string
	known   map[string]string // address that is asked for -> address that is dialled
	tunnels atomic.Int64
	strays  atomic.Int64
	work    sync.WaitGroup
	conns   open
}

func newOffice(t *testing.T, known map[string]string) *office {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &office{addr: l.Addr().String(), known: known}
	o.proxy = &http.Server{Handler: o, ReadHeaderTimeout: patience}
	o.work.Go(func() { _ = o.proxy.Serve(l) }) // always http.ErrServerClosed
	t.Cleanup(func() { o.proxy.Close(); o.conns.closeAll(); o.work.Wait() })
	return o
}

const proxyUser, proxyPassword = "office", "proxy-password"

// ServeHTTP answers CONNECT to known places for who has the password.
func (o *office) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	auth := &http.Request{Header: http.Header{"Authorization": r.Header["Proxy-Authorization"]}}
	user, password, _ := auth.BasicAuth()
	to, ok := o.known[r.Host]
	switch {
	case r.Method != http.MethodConnect:
		http.Error(rw, "CONNECT only", http.StatusMethodNotAllowed)
	case user != proxyUser || password != proxyPassword:
		http.Error(rw, "who are you?", http.StatusProxyAuthRequired)
	case !ok:
		http.Error(rw, "not from here", http.StatusForbidden)
	default:
		o.tunnel(rw, to)
	}
}

func (o *office) tunnel(rw http.ResponseWriter, to string) {
	up, err := net.Dial("tcp", to)
	if err != nil {
		http.Error(rw, "nobody there", http.StatusBadGateway)
		return
	}
	rw.WriteHeader(http.StatusOK)
	c, buffered, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		up.Close()
		return
	}
	o.tunnels.Add(1)
	o.conns.add(c)
	o.conns.add(up)
	o.work.Go(func() { forward(up, buffered.Reader); up.Close() })
	o.work.Go(func() { forward(c, up); c.Close() })
}

// DialContext is the network of a machine in this office.
func (o *office) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if address != o.addr {
		o.strays.Add(1)
		return nil, errBlocked
	}
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}

// dialer is what HTTPS_PROXY makes of the product's dialling.
func (o *office) dialer(password string) *attach.ProxyDialer {
	proxy := url.URL{Scheme: "http", Host: o.addr, User: url.UserPassword(proxyUser, password)}
	return attach.NewProxyDialer(&httpproxy.Config{HTTPSProxy: proxy.String()}, o, nil)
}

// TestFaultConnectOnly: where an HTTP proxy is the only way out, for the employee and for the
// connector, everything goes through it; a wrong password for it is named.
func TestFaultConnectOnly(t *testing.T) {
	wiki := echo(t)
	w := newWorld(t, "ann")
	token := w.site("berlin")
	w.publish("wiki", "berlin", wiki.target())
	w.allow("ann", "wiki")
	at := netip.MustParseAddrPort(w.cfg.Listen)
	outside := "broker.invalid:" + portText(at)
	o := newOffice(t, map[string]string{outside: w.cfg.Listen})
	told := control.Broker{Address: outside, Pin: w.where().Pin}.String()
	w.laptopState("ann", told)
	w.stopBroker()
	w.cfg.URL = "https://" + outside
	w.startBroker()
	s := w.behind(o, "berlin-1", token)
	c := w.laptop("ann", told, func(cfg *client.Config) { cfg.Dialer, cfg.TLSOnly = o.dialer(proxyPassword), true })
	before := o.tunnels.Load()
	reaches(t, c, "wiki", wiki)
	if o.tunnels.Load() == before || o.strays.Load() != 0 {
		t.Errorf("%d connections through the proxy, %d around it", o.tunnels.Load()-before, o.strays.Load())
	}
	for _, p := range s.conn.Report().Paths {
		if p.Transport == "udp" && p.State == "up" {
			t.Error("the connector stands at the relay over UDP where there is none")
		}
	}
}

func portText(at netip.AddrPort) string {
	_, port, _ := net.SplitHostPort(at.String())
	return port
}

// laptopState enrols a laptop where the network is open, before it is taken to the office.
func (w *world) laptopState(user, told string) {
	w.t.Helper()
	store, err := state.Open(filepath.Join(w.dir, user+"-laptop"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.enrolLaptop(user, told, store)
}

// behind joins and starts a connector in an office; a wrong password for the proxy is told.
func (w *world) behind(o *office, name, token string) *site {
	w.t.Helper()
	store, err := enroll.Open(filepath.Join(w.dir, name))
	if err != nil {
		w.t.Fatal(err)
	}
	join := enroll.Join{URL: w.broker.URL(), Token: token, Name: name, Version: version, Dialer: o.dialer("wrong")}
	_, _, err = store.Join(w.ctx(), join)
	says(w.t, "a wrong password for the proxy", err, "proxy", "407")
	join.Dialer = o.dialer(proxyPassword)
	if _, _, err = store.Join(w.ctx(), join); err != nil {
		w.t.Fatalf("join through the proxy: %v", err)
	}
	s := &site{w: w, name: name, store: store, net: newPartition()}
	s.startWith(func(cfg *connector.Config) { cfg.Dialer = o.dialer(proxyPassword) })
	s.serves()
	return s
}
