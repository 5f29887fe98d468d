package relay

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-zt/postern/netstack/relay/udpio"
	"github.com/postern-zt/postern/netstack/relay/wire"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
	"github.com/postern-zt/postern/proto/ticket"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a relay with a clock in hand and one loop on a real socket, driven by the
// test's goroutine: nothing runs in parallel, so silence can be seen.
type bench struct {
	t      testing.TB
	now    time.Time
	relay  *Relay
	loop   *udpLoop
	signer *seal.Signer
	key    ticket.PrivateKey
}

func newBench(t testing.TB, lim Limits) *bench {
	t.Helper()
	return newBenchOn(t, lim, udpSocket(t))
}

func newBenchOn(t testing.TB, lim Limits, conn *net.UDPConn) *bench {
	t.Helper()
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ticket.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, now: time.Unix(1_800_000_000, 0), signer: seal.NewSigner(priv), key: key}
	b.relay, err = New(Config{ID: "rly_x", Key: key, BrokerKeys: func() seal.Keys { return seal.NewKeys(b.signer.Public()) },
		Limits: lim, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return b.now }})
	if err != nil {
		t.Fatal(err)
	}
	loops, err := b.relay.openLoops([]*net.UDPConn{conn})
	if err != nil {
		t.Fatal(err)
	}
	b.loop = loops[0]
	return b
}

func udpSocket(t testing.TB) *net.UDPConn {
	t.Helper()
	return listenUDP(t, "udp", "127.0.0.1:0")
}

func listenUDP(t testing.TB, network, addr string) *net.UDPConn {
	t.Helper()
	c, err := net.ListenPacket(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.UDPConn)
}

func addrOf(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

// holder is a ticket with the socket that uses it.
type holder struct {
	b      *bench
	tk     ticket.Ticket
	sealed []byte
	conn   *net.UDPConn
}

func (b *bench) holder(edit func(*ticket.Ticket)) *holder {
	b.t.Helper()
	tk := ticket.Ticket{Relay: "rly_x", Role: ticket.RoleConnector, Handle: ticket.NewHandle(), MACKey: ticket.NewMACKey(),
		Holder: ids.KeyID{1}, NotBefore: b.now, Expires: b.now.Add(time.Hour)}
	if edit != nil {
		edit(&tk)
	}
	sealed, err := ticket.Seal(b.key.Public(), b.signer, tk)
	if err != nil {
		b.t.Fatal(err)
	}
	return &holder{b: b, tk: tk, sealed: sealed, conn: udpSocket(b.t)}
}

func (b *bench) client(c *holder) *holder {
	return b.holder(func(t *ticket.Ticket) { t.Role, t.Connector = ticket.RoleClient, c.tk.Handle })
}

// put hands one datagram to the relay as if it came from src.
func (b *bench) put(p []byte, src netip.AddrPort) Reason {
	return b.loop.handle(p, udpio.Packet{N: len(p), Segment: len(p), Source: src}, b.now)
}

// carry puts p until to receives a datagram: even loopback drops under load. It returns
// at once when the relay does.
func (b *bench) carry(p []byte, src netip.AddrPort, to *holder) ([]byte, Reason) {
	b.t.Helper()
	buf := make([]byte, 2048)
	for range 100 {
		if r := b.put(p, src); r != OK {
			return nil, r
		}
		_ = to.conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if n, err := to.conn.Read(buf); err == nil {
			return buf[:n], OK
		}
	}
	b.t.Fatal("no datagram")
	return nil, OK
}

// ask carries a control datagram of the holder to the relay and the answer back.
func (h *holder) ask(p []byte) ([]byte, Reason) {
	h.b.t.Helper()
	return h.b.carry(p, addrOf(h.conn), h)
}

// bind runs the whole exchange; the reason is that of the step that failed.
func (h *holder) bind(counter uint64) Reason {
	h.b.t.Helper()
	got, r := h.ask(wire.AppendBind(nil, h.tk.Handle, counter, nil, h.sealed, h.tk.MACKey))
	if r != OK {
		return r
	}
	_, cookie, err := wire.ParseCookie(got)
	if err != nil {
		h.b.t.Fatal(err)
	}
	got, r = h.ask(wire.AppendBind(nil, h.tk.Handle, counter, bytes.Clone(cookie), h.sealed, h.tk.MACKey))
	if r != OK {
		return r
	}
	if n, err := wire.ParseProven(got, h.tk.MACKey); err != nil || n != counter {
		h.b.t.Fatalf("bound: %d, %v", n, err)
	}
	return OK
}

func (h *holder) data(payload string) []byte {
	b := append(make([]byte, wire.HeaderLen), payload...)
	wire.MakeHeader(wire.TypeData, h.tk.Handle).Put(b)
	return b
}

func TestBindingLife(t *testing.T) {
	b := newBench(t, Limits{})
	c := b.holder(nil)
	k := b.client(c)
	if r := b.put(k.data("early"), addrOf(k.conn)); r != DropHandle {
		t.Errorf("data before a bind: %s", r)
	}
	if r := k.bind(1); r != OK {
		t.Fatalf("bind: %s", r)
	}
	if r := b.put(k.data("nobody there"), addrOf(k.conn)); r != DropNoPeer {
		t.Errorf("data without a connector: %s", r)
	}
	if r := c.bind(1); r != OK {
		t.Fatalf("bind: %s", r)
	}
	if got, r := b.carry(k.data("there"), addrOf(k.conn), c); r != OK || !bytes.Equal(got, k.data("there")) {
		t.Errorf("data: %q, %s", got, r)
	}
	if got, r := b.carry(k.data("back"), addrOf(c.conn), k); r != OK || !bytes.Equal(got, k.data("back")) {
		t.Errorf("data back: %q, %s", got, r)
	}
	if r := b.put(c.data("on the connector's own handle"), addrOf(k.conn)); r != DropHandle {
		t.Errorf("data on a connector handle: %s", r)
	}
	b.now = b.now.Add(idleBinding / 2)
	if _, r := k.ask(wire.AppendPing(nil, wire.TypePing, k.tk.Handle, 2, k.tk.MACKey)); r != OK {
		t.Errorf("ping: %s", r)
	}
	b.now = b.now.Add(idleBinding/2 + time.Second)
	b.relay.sweep(b.now)
	if b.relay.bindings.get(k.tk.Handle) == nil || b.relay.bindings.get(c.tk.Handle) != nil {
		t.Error("sweep did not tell a pinging holder from a silent one")
	}
}

func TestBindingEndsWithItsTicket(t *testing.T) {
	b := newBench(t, Limits{})
	c := b.holder(nil)
	k := b.client(c)
	k.bind(1)
	c.bind(1)
	b.now = b.now.Add(time.Hour)
	if r := b.put(k.data("late"), addrOf(k.conn)); r != DropExpired {
		t.Errorf("data after the ticket's end: %s", r)
	}
	if r := b.put(wire.AppendPing(nil, wire.TypePing, k.tk.Handle, 2, k.tk.MACKey), addrOf(k.conn)); r != DropExpired {
		t.Errorf("ping after the ticket's end: %s", r)
	}
	if r := k.bind(2); r != DropExpired {
		t.Errorf("bind after the ticket's end: %s", r)
	}
	b.relay.sweep(b.now)
	if n := b.relay.Load().Bindings; n != 0 {
		t.Errorf("%d bindings left", n)
	}
}

func TestNewerTicketTakesOverOlderDoesNot(t *testing.T) {
	b := newBench(t, Limits{})
	old := b.holder(nil)
	newer := b.holder(func(t *ticket.Ticket) { t.Handle, t.NotBefore = old.tk.Handle, old.tk.NotBefore.Add(time.Second) })
	if r := newer.bind(1); r != OK {
		t.Fatalf("bind: %s", r)
	}
	if r := old.bind(1 << 60); r != DropReplay {
		t.Errorf("bind under an older ticket: %s", r)
	}
	other := b.holder(func(t *ticket.Ticket) {
		t.Handle, t.Role, t.Connector = old.tk.Handle, ticket.RoleClient, ticket.NewHandle()
	})
	if r := other.bind(1); r != DropBadTicket {
		t.Errorf("bind of a connector's handle as a client: %s", r)
	}
}

func TestRepeatedProofIsAnsweredAgain(t *testing.T) {
	b := newBench(t, Limits{})
	h := b.holder(nil)
	if h.bind(3) != OK || h.bind(3) != OK {
		t.Error("the same counter from the same address, whose answer may be lost, was refused")
	}
	h.conn = udpSocket(t)
	if r := h.bind(3); r != DropReplay {
		t.Errorf("the same counter from another address: %s", r)
	}
	if r := h.bind(4); r != OK {
		t.Errorf("a higher counter from another address: %s", r)
	}
}

func TestCookieGrowsOld(t *testing.T) {
	b := newBench(t, Limits{})
	h := b.holder(nil)
	got, _ := h.ask(wire.AppendBind(nil, h.tk.Handle, 1, nil, h.sealed, h.tk.MACKey))
	_, cookie, err := wire.ParseCookie(got)
	if err != nil {
		t.Fatal(err)
	}
	b.now = b.now.Add(2 * cookieEpoch)
	if r := b.put(wire.AppendBind(nil, h.tk.Handle, 1, cookie, h.sealed, h.tk.MACKey), addrOf(h.conn)); r != DropCookie {
		t.Errorf("old cookie: %s", r)
	}
}

func TestLimits(t *testing.T) {
	b := newBench(t, Limits{Bindings: 1, BindsPerSecond: 3})
	if r := b.holder(nil).bind(1); r != OK {
		t.Fatalf("bind: %s", r)
	}
	if r := b.holder(nil).bind(1); r != DropLimit {
		t.Errorf("bind beyond the limit of bindings: %s", r)
	}
	b.holder(nil).bind(1)
	if r := b.holder(nil).bind(1); r != DropRate {
		t.Errorf("bind beyond the rate: %s", r)
	}
}

func TestPace(t *testing.T) {
	var p pace
	now := time.Unix(1_800_000_000, 0).UnixNano()
	sent := 0
	for range 1000 {
		if p.allow(1000, 1_000_000, now) {
			sent += 1000
		}
	}
	if sent < 100_000 || sent > 102_000 {
		t.Errorf("burst of %d bytes at 1 MB/s, want 100 ms worth", sent)
	}
	if !p.allow(1000, 1_000_000, now+int64(time.Second)) || !p.allow(1<<30, 0, now) {
		t.Error("a second later, or without a rate, nothing passes")
	}
}

func TestPacedLinkDrops(t *testing.T) {
	b := newBench(t, Limits{})
	c := b.holder(nil)
	k := b.holder(func(t *ticket.Ticket) {
		t.Role, t.Connector, t.BytesPerSecond = ticket.RoleClient, c.tk.Handle, 1000
	})
	k.bind(1)
	c.bind(1)
	paced := 0
	for range 20 {
		if b.put(k.data("payload payload payload"), addrOf(k.conn)) == DropPaced {
			paced++
		}
	}
	if paced == 0 || paced == 20 {
		t.Errorf("%d of 20 datagrams dropped", paced)
	}
}

func TestRevocations(t *testing.T) {
	b := newBench(t, Limits{Revocations: 4})
	h := b.holder(nil)
	h.bind(1)
	b.relay.Revoke(Revocation{Holders: []ids.KeyID{h.tk.Holder}, At: b.now})
	if b.relay.Load().Bindings != 0 {
		t.Error("binding outlived the revocation of its holder")
	}
	if r := h.bind(2); r != DropRevoked {
		t.Errorf("bind under a revoked ticket: %s", r)
	}
	b.now = b.now.Add(time.Second)
	fresh := b.holder(func(t *ticket.Ticket) { t.Holder = ids.KeyID{2} })
	again := b.holder(nil)
	if fresh.bind(1) != OK || again.bind(1) != OK {
		t.Error("a stranger to the revocation, or a ticket issued after it, was refused")
	}
	before := b.holder(nil)
	many := []ids.KeyID{{3}, {4}, {5}, {6}, {7}}
	b.relay.Revoke(Revocation{Holders: many, At: b.now})
	if r := before.bind(1); r != DropRevoked {
		t.Errorf("after an overflow an older ticket binds: %s", r)
	}
	if b.relay.Load().Bindings != 2 {
		t.Error("an overflow cut bindings that nobody revoked")
	}
	b.now = b.now.Add(time.Second)
	if r := b.holder(nil).bind(1); r != OK {
		t.Errorf("after an overflow a newer ticket: %s", r)
	}
}

// TestVoidHandle: the tickets of a link that was revoked are refused and what stands on them
// ends; a newer ticket opens the link again, and the same news once more spares it.
func TestVoidHandle(t *testing.T) {
	b := newBench(t, Limits{})
	c := b.holder(nil)
	c.bind(1)
	old, other := b.client(c), b.client(c)
	old.bind(1)
	other.bind(1)
	cut := Revocation{Handles: []ticket.Handle{old.tk.Handle}, At: b.now}
	b.relay.Revoke(cut)
	if b.relay.bindings.get(old.tk.Handle) != nil || b.relay.bindings.get(other.tk.Handle) == nil || b.relay.bindings.get(c.tk.Handle) == nil {
		t.Error("not the one link was cut")
	}
	if r := old.bind(2); r != DropRevoked {
		t.Errorf("bind under the old ticket: %s", r)
	}
	b.now = b.now.Add(time.Second)
	again := b.holder(func(k *ticket.Ticket) { k.Role, k.Connector, k.Handle = ticket.RoleClient, c.tk.Handle, old.tk.Handle })
	if r := again.bind(1); r != OK {
		t.Errorf("bind under a newer ticket: %s", r)
	}
	b.relay.Revoke(cut)
	if b.relay.bindings.get(again.tk.Handle) == nil {
		t.Error("the repeated news cut who came back with a newer ticket")
	}
	if r := old.bind(3); r != DropRevoked {
		t.Errorf("bind under the old ticket beside the newer: %s", r)
	}
	b.now = old.tk.Expires
	if r := old.bind(4); r != DropExpired {
		t.Errorf("bind under the old ticket at its end: %s", r)
	}
}

func TestOldestHandlesAreForgotten(t *testing.T) {
	v := newRevocations(4)
	at := time.Unix(1_800_000_000, 0)
	for i := range 5 {
		v.add(Revocation{Handles: []ticket.Handle{ticket.Handle(i + 1)}, At: at.Add(time.Duration(i) * time.Second)}, at)
	}
	for i := range 5 {
		tk := ticket.Ticket{Handle: ticket.Handle(i + 1), NotBefore: at.Add(-time.Hour)}
		if got, want := v.covers(tk), i >= 3; got != want {
			t.Errorf("link %d of 5 is void: %t, want %t", i+1, got, want)
		}
	}
}

func TestRevocationsAreForgottenWithTheirTickets(t *testing.T) {
	v := newRevocations(10)
	at := time.Unix(1_800_000_000, 0)
	v.add(Revocation{Handles: []ticket.Handle{1}, Holders: []ids.KeyID{{1}}, At: at}, at)
	v.add(Revocation{}, at.Add(ticket.MaxLife+ticket.Tolerance+time.Second))
	if len(v.handles)+len(v.holders) != 0 {
		t.Error("revocation kept beyond the longest ticket")
	}
}

func TestTable(t *testing.T) {
	tab := newTable[int]()
	one, two := new(int), new(int)
	if tab.add(1, one, 1) != one || tab.add(1, two, 1) != one || tab.add(2, two, 1) != nil {
		t.Error("add does not keep the first or the limit")
	}
	tab.remove(1, two)
	if tab.get(1) != one {
		t.Error("remove took another value")
	}
	tab.remove(1, one)
	if tab.get(1) != nil || tab.size.Load() != 0 {
		t.Error("remove left the value")
	}
}

// TestForwardingAllocatesNothing holds the hot path to its promise.
func TestForwardingAllocatesNothing(t *testing.T) {
	b := newBench(t, Limits{BytesPerSecond: 1 << 40})
	c := b.holder(nil)
	k := b.client(c)
	k.bind(1)
	c.bind(1)
	p := bytes.Repeat(k.data(string(make([]byte, 1192))), 10)
	in := udpio.Packet{N: len(p), Segment: 1200, ECN: 1, Source: addrOf(k.conn)}
	if n := testing.AllocsPerRun(100, func() { b.loop.receive(p, in, b.now) }); n != 0 {
		t.Errorf("%v allocations per super-packet", n)
	}
}

func BenchmarkForward(b *testing.B) { benchForward(b, newBench(b, Limits{}), netip.Addr{}) }

// BenchmarkForwardAnyAddress is a relay that is bound to all addresses.
func BenchmarkForwardAnyAddress(b *testing.B) {
	benchForward(b, newBenchOn(b, Limits{}, listenUDP(b, "udp4", "0.0.0.0:0")), netip.MustParseAddr("127.0.0.1"))
}

func benchForward(b *testing.B, x *bench, local netip.Addr) {
	c := x.holder(nil)
	k := x.client(c)
	k.bind(1)
	c.bind(1)
	at := *x.relay.bindings.get(c.tk.Handle).dest.Load()
	at.local = local
	x.relay.bindings.get(c.tk.Handle).dest.Store(&at)
	p := bytes.Repeat(k.data(string(make([]byte, 1192))), 40)
	in := udpio.Packet{N: len(p), Segment: 1200, Source: addrOf(k.conn), Local: local}
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		x.loop.receive(p, in, x.now)
	}
}

func TestServeUDPEndsWithItsContext(t *testing.T) {
	b := newBench(t, Limits{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.relay.ServeUDP(ctx, udpSocket(t), udpSocket(t)) }()
	cancel()
	if err := <-done; err == nil {
		t.Error("ServeUDP = nil")
	}
}

func TestNewRefusesAnIncompleteConfig(t *testing.T) {
	b := newBench(t, Limits{})
	for name, edit := range map[string]func(*Config){
		"id": func(c *Config) { c.ID = "" }, "key": func(c *Config) { c.Key = ticket.PrivateKey{} },
		"keys": func(c *Config) { c.BrokerKeys = nil }, "log": func(c *Config) { c.Log = nil },
	} {
		cfg := b.relay.cfg
		edit(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("New without %s succeeded", name)
		}
	}
}

func TestEveryReasonHasAName(t *testing.T) {
	b := newBench(t, Limits{})
	for i := range reasonCount {
		if i.String() == "" || i.String() == "unknown" {
			t.Errorf("reason %d has no name", i)
		}
	}
	if got := len(b.relay.Drops()); got != int(reasonCount)-1 {
		t.Errorf("Drops() has %d reasons, want %d", got, reasonCount-1)
	}
}

// FuzzDatagram feeds a bound relay with anything from anywhere.
func FuzzDatagram(f *testing.F) {
	b := newBench(f, Limits{BindsPerSecond: 1 << 30})
	c := b.holder(nil)
	k := b.client(c)
	k.bind(1)
	c.bind(1)
	f.Add(k.data("x"), 9)
	f.Add(wire.AppendPing(nil, wire.TypePing, k.tk.Handle, 1, k.tk.MACKey), 32)
	f.Add(wire.AppendBind(nil, k.tk.Handle, 1, nil, k.sealed, k.tk.MACKey), 500)
	f.Add([]byte{0x10}, 1)
	from := netip.MustParseAddrPort("127.0.0.1:9")
	f.Fuzz(func(t *testing.T, p []byte, segment int) {
		if len(p) == 0 || segment <= 0 {
			return
		}
		b.loop.receive(p, udpio.Packet{N: len(p), Segment: min(segment, len(p)), Source: from}, b.now)
		if at := b.relay.bindings.get(k.tk.Handle).dest.Load().addr; at != addrOf(k.conn) {
			t.Fatalf("mapping moved to %s", at)
		}
	})
}
