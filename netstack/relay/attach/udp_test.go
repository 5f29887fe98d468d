package attach_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/postern-zt/postern/netstack/relay"
	"github.com/postern-zt/postern/netstack/relay/attach"
	"github.com/postern-zt/postern/netstack/relay/relaytest"
	"github.com/postern-zt/postern/netstack/relay/udpio"
	"github.com/postern-zt/postern/netstack/relay/wire"
	"github.com/postern-zt/postern/proto/ticket"
)

func bind(t testing.TB, f *relaytest.Fixture, tk attach.Ticket) *attach.Binding {
	t.Helper()
	b, err := attach.BindUDP(withTimeout(t), f.Attach(), relaytest.Socket(t), attach.Fixed(tk))
	if err != nil {
		t.Fatalf("BindUDP: %v", err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func path(t testing.TB, b *attach.Binding, h ticket.Handle) *attach.Path {
	t.Helper()
	p, err := b.Path(h)
	if err != nil {
		t.Fatalf("Path: %v", err)
	}
	return p
}

// datagram builds one relayed datagram of the path's link.
func datagram(p *attach.Path, payload string) []byte {
	b := append(make([]byte, p.HeaderLen()), payload...)
	p.PutHeader(b)
	return b
}

func send(t testing.TB, p *attach.Path, payload string, ecn byte) {
	t.Helper()
	if err := p.Send(datagram(p, payload), 0, ecn, new(udpio.Scratch)); err != nil {
		t.Fatalf("Send: %v", err)
	}
}

// retry is how often a test repeats a datagram: even loopback drops under load.
const retry = 200 * time.Millisecond

// pass sends payload until it arrives and returns its congestion bits; late repetitions
// of earlier payloads are skipped.
func pass(t testing.TB, from, to *attach.Path, payload string, ecn byte) byte {
	t.Helper()
	for deadline := withTimeout(t); deadline.Err() == nil; {
		send(t, from, payload, ecn)
		for {
			got, bits, ok := next(t, to)
			if !ok {
				break
			}
			if got == payload {
				return bits
			}
		}
	}
	t.Fatalf("%q did not arrive", payload)
	return 0
}

// next returns the next datagram's payload, or false after a while.
func next(t testing.TB, p *attach.Path) (string, byte, bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), retry)
	defer cancel()
	pkt, ok, err := p.Receive(ctx.Done())
	if err != nil {
		t.Fatalf("Receive: %v", err)
	}
	if !ok {
		return "", 0, false
	}
	defer pkt.Release()
	return string(pkt.Data[p.HeaderLen():min(pkt.Segment, len(pkt.Data))]), pkt.ECN, true
}

// longHeader starts a payload that a connector takes for a new QUIC connection.
const longHeader = "\xc0"

// connect opens a link at the connector with the client's first datagram.
func connect(t testing.TB, client *attach.Path, cb *attach.Binding) *attach.Path {
	t.Helper()
	for deadline := withTimeout(t); deadline.Err() == nil; {
		send(t, client, longHeader, 0)
		ctx, cancel := context.WithTimeout(t.Context(), retry)
		p, err := cb.Accept(ctx)
		cancel()
		if err == nil {
			return p
		}
	}
	t.Fatal("the link did not arrive")
	return nil
}

func TestUDPForwardsBothWaysWithECN(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	c := ticket.NewHandle()
	cb := bind(t, f, f.Connector(c, nil))
	tk := f.Client(c, nil)
	client := path(t, bind(t, f, tk), tk.Handle)
	server := connect(t, client, cb)
	if server.Link() != tk.Handle {
		t.Errorf("accepted link %s, want %s", server.Link(), tk.Handle)
	}
	if ecn := pass(t, client, server, "hello", 2); ecn != 2 {
		t.Errorf("connector received ecn %d", ecn)
	}
	if ecn := pass(t, server, client, "answer", 1); ecn != 1 {
		t.Errorf("client received ecn %d", ecn)
	}
}

func TestConnectorIgnoresStrayPacketsOfUnknownLinks(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	c := ticket.NewHandle()
	cb := bind(t, f, f.Connector(c, nil))
	tk := f.Client(c, nil)
	client := path(t, bind(t, f, tk), tk.Handle)
	for cb.Dropped() == 0 { // until the stray one has arrived and been refused
		send(t, client, "short header", 0)
	}
	server := connect(t, client, cb)
	for {
		got, _, ok := next(t, server)
		if ok && got == longHeader {
			break
		}
		if ok && got != "short header" {
			t.Fatalf("received %q", got)
		}
		send(t, client, longHeader, 0)
	}
}

func TestBindingComesBackAfterRelayRestart(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	c := ticket.NewHandle()
	cb := bind(t, f, f.Connector(c, nil))
	tk := f.Client(c, nil)
	client := path(t, bind(t, f, tk), tk.Handle)
	server := connect(t, client, cb)
	f.Stop()
	f.Start()
	pass(t, client, server, "again", 0) // sending into silence makes the client look
	pass(t, server, client, "and back", 0)
}

func TestRebindFromANewPortMovesTheMapping(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	c := ticket.NewHandle()
	cb := bind(t, f, f.Connector(c, nil))
	tk := f.Client(c, nil)
	client := path(t, bind(t, f, tk), tk.Handle)
	server := connect(t, client, cb)
	moved := path(t, bind(t, f, tk), tk.Handle) // same ticket, higher counter, other port
	pass(t, server, moved, "to the new port", 0)
	for f.Relay.Drops()["foreign_address"] == 0 {
		send(t, client, "from the old port", 0)
	}
	send(t, moved, "from the new port", 0)
	for {
		got, _, ok := next(t, server)
		switch {
		case !ok:
			send(t, moved, "from the new port", 0)
		case got == "from the old port":
			t.Fatal("the old port still sends")
		case got == "from the new port":
			return
		}
	}
}

func TestCutAndRevokeEndUDP(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	c := ticket.NewHandle()
	cb := bind(t, f, f.Connector(c, nil))
	tk, stays := f.Client(c, nil), f.Client(c, nil)
	client, other := path(t, bind(t, f, tk), tk.Handle), path(t, bind(t, f, stays), stays.Handle)
	server := connect(t, client, cb)
	f.Relay.Revoke(relay.Revocation{Handles: []ticket.Handle{tk.Handle}, At: time.Now()})
	for f.Relay.Drops()["unknown_handle"] == 0 {
		send(t, client, "after", 0)
	}
	connect(t, other, cb)
	for {
		got, _, ok := next(t, server)
		if !ok {
			break
		}
		if got == "after" {
			t.Fatal("a datagram passed after the revocation")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := attach.BindUDP(ctx, f.Attach(), relaytest.Socket(t), attach.Fixed(tk))
	if !errors.Is(err, attach.ErrNoAnswer) {
		t.Errorf("BindUDP with a revoked ticket = %v, want silence", err)
	}
	if f.Relay.Drops()["revoked"] == 0 {
		t.Error("revoked bind was not counted")
	}
}

// raw is a socket of a stranger who talks to the relay by hand.
type raw struct {
	t    testing.TB
	conn *net.UDPConn
	to   netip.AddrPort
}

func stranger(t testing.TB, f *relaytest.Fixture) raw {
	t.Helper()
	c := relaytest.Socket(t)
	t.Cleanup(func() { _ = c.Close() })
	return raw{t: t, conn: c, to: netip.MustParseAddrPort(f.UDPAddr)}
}

func (r raw) send(b []byte) {
	r.t.Helper()
	if _, err := r.conn.WriteToUDPAddrPort(b, r.to); err != nil {
		r.t.Fatal(err)
	}
}

// ask sends b until something is answered and returns it. Silence is proven by asking
// for something that is answered afterwards, never by waiting.
func (r raw) ask(b []byte) []byte {
	r.t.Helper()
	got := make([]byte, 2048)
	for deadline := withTimeout(r.t); deadline.Err() == nil; {
		r.send(b)
		_ = r.conn.SetReadDeadline(time.Now().Add(retry))
		if n, err := r.conn.Read(got); err == nil {
			return got[:n]
		}
	}
	r.t.Fatal("no answer")
	return nil
}

// until sends b until the relay has counted one more drop for the reason.
func (r raw) until(f *relaytest.Fixture, reason string, b []byte) {
	r.t.Helper()
	before := f.Relay.Drops()[reason]
	for deadline := withTimeout(r.t); f.Relay.Drops()[reason] == before; {
		if deadline.Err() != nil {
			r.t.Fatalf("no drop for %s", reason)
		}
		r.send(b)
	}
}

func TestUDPPortAnswersNothingWithoutAValidTicket(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	other := relaytest.New(t, relay.Limits{})
	c := ticket.NewHandle()
	good := f.Client(c, nil)
	s := stranger(t, f)
	h := good.Handle
	key := good.MACKey
	forged := other.Client(c, nil)
	expired := f.Client(c, func(tk *ticket.Ticket) {
		tk.NotBefore, tk.Expires = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	})
	probes := [][]byte{
		{}, {0}, []byte("\x00\x00\x10\x00\x00\x00\x00\x00"), bytes.Repeat([]byte{0xff}, 1200),
		append([]byte{0xc3, 0, 0, 0, 1}, make([]byte, 1195)...), // QUIC Initial
		{1, 0, 0, 0}, // WireGuard
		datagramOf(wire.TypeData, h, "data before a bind"),
		wire.AppendPing(nil, wire.TypePing, h, 1, key),
		wire.AppendBind(nil, h, 1, nil, []byte("no ticket"), key),
		wire.AppendBind(nil, h, 1, nil, good.Sealed, ticket.NewMACKey()),
		wire.AppendBind(nil, ticket.NewHandle(), 1, nil, good.Sealed, key),
		wire.AppendBind(nil, h, 1, make([]byte, wire.CookieLen), good.Sealed, key),
		wire.AppendBind(nil, forged.Handle, 1, nil, forged.Sealed, forged.MACKey),
		wire.AppendBind(nil, expired.Handle, 1, nil, expired.Sealed, expired.MACKey),
	}
	for typ := range 256 {
		probes = append(probes, append([]byte{byte(typ)}, make([]byte, 63)...))
	}
	for _, p := range probes {
		s.send(p)
	}
	first := wire.AppendBind(nil, h, 7, nil, good.Sealed, key)
	got := s.ask(first)
	if counter, _, err := wire.ParseCookie(got); err != nil || counter != 7 {
		t.Errorf("the first answer is %x, want the cookie of the valid bind", got)
	}
	if len(got) >= len(first) {
		t.Errorf("cookie of %d bytes for a bind of %d", len(got), len(first))
	}
	if load := f.Relay.Load(); load.Bindings != 0 {
		t.Errorf("%d bindings before any proof", load.Bindings)
	}
}

func datagramOf(typ wire.Type, h ticket.Handle, payload string) []byte {
	b := append(make([]byte, wire.HeaderLen), payload...)
	wire.MakeHeader(typ, h).Put(b)
	return b
}

func TestCookieAndProofDoNotWorkFromAnotherAddress(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	tk := f.Client(ticket.NewHandle(), nil)
	owner, thief := stranger(t, f), stranger(t, f)
	_, cookie, err := wire.ParseCookie(owner.ask(wire.AppendBind(nil, tk.Handle, 5, nil, tk.Sealed, tk.MACKey)))
	if err != nil {
		t.Fatal(err)
	}
	prove := wire.AppendBind(nil, tk.Handle, 5, cookie, tk.Sealed, tk.MACKey)
	thief.until(f, "bad_cookie", prove) // a copy that arrives first, from elsewhere
	for bound := false; !bound; {       // a repeated cookie may still be under way
		_, err := wire.ParseProven(owner.ask(prove), tk.MACKey)
		bound = err == nil
	}
	thief.until(f, "bad_cookie", prove) // replayed afterwards
	thief.until(f, "foreign_address", wire.AppendPing(nil, wire.TypePing, tk.Handle, 9, tk.MACKey))
	thief.until(f, "no_peer", datagramOf(wire.TypeData, tk.Handle, "stolen"))
	// The first thing that it is answered at all is the cookie of a bind of its own.
	_, low, err := wire.ParseCookie(thief.ask(wire.AppendBind(nil, tk.Handle, 4, nil, tk.Sealed, tk.MACKey)))
	if err != nil {
		t.Fatalf("thief was answered something else: %v", err)
	}
	thief.until(f, "replay", wire.AppendBind(nil, tk.Handle, 4, low, tk.Sealed, tk.MACKey)) // an old counter
	ping := wire.AppendPing(nil, wire.TypePing, tk.Handle, 6, tk.MACKey)
	for counter := uint64(0); counter != 6; {
		counter, err = wire.ParseProven(owner.ask(ping), tk.MACKey)
		if err != nil {
			t.Fatalf("owner lost the mapping: %v", err)
		}
	}
}

func TestSuperPacketWithMixedHandlesIsSplit(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	c := ticket.NewHandle()
	cb := bind(t, f, f.Connector(c, nil))
	a, b := f.Client(c, nil), f.Client(c, nil)
	pa, pb := path(t, bind(t, f, a), a.Handle), path(t, bind(t, f, b), b.Handle)
	sa, sb := connect(t, pa, cb), connect(t, pb, cb)
	var super []byte // from the connector in one write, the links mixed
	for _, d := range [][]byte{datagram(sa, "to A, one"), datagram(sa, "to A, two"), datagram(sb, "to B, one"),
		datagram(sa, "to A, 3rd"), datagramOf(wire.TypeData, ticket.NewHandle(), "to nobody"), datagram(sb, "to B, two")} {
		super = append(super, d...)
	}
	again := func() {
		if err := sa.Send(super, wire.HeaderLen+9, 0, new(udpio.Scratch)); err != nil {
			t.Fatal(err)
		}
	}
	collect(t, pa, again, "to A, one", "to A, two", "to A, 3rd")
	collect(t, pb, again, "to B, one", "to B, two")
}

// collect receives until each payload has come, in whatever super-packets, and nothing
// else has; again sends them once more.
func collect(t testing.TB, p *attach.Path, again func(), want ...string) {
	t.Helper()
	missing := slices.Clone(want)
	for deadline := withTimeout(t); len(missing) > 0; {
		if deadline.Err() != nil {
			t.Fatalf("%q did not arrive", missing)
		}
		again()
		for _, got := range segments(t, p) {
			if !slices.Contains(want, got) {
				t.Fatalf("received %q, want only %q", got, want)
			}
			missing = slices.DeleteFunc(missing, func(s string) bool { return s == got })
		}
	}
}

// segments returns what comes within a while.
func segments(t testing.TB, p *attach.Path) (out []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), retry)
	defer cancel()
	for {
		pkt, ok, err := p.Receive(ctx.Done())
		if err != nil {
			t.Fatalf("Receive: %v", err)
		}
		if !ok {
			return out
		}
		for b := pkt.Data; len(b) > 0; {
			size := min(pkt.Segment, len(b))
			out = append(out, string(b[wire.HeaderLen:size]))
			b = b[size:]
		}
		pkt.Release()
	}
}

// TestDualStackSocketReachesAnIPv4Relay is how clients open their socket.
func TestDualStackSocketReachesAnIPv4Relay(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	c := ticket.NewHandle()
	cb := bind(t, f, f.Connector(c, nil))
	pc, err := net.ListenPacket("udp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	tk := f.Client(c, nil)
	b, err := attach.BindUDP(withTimeout(t), f.Attach(), pc.(*net.UDPConn), attach.Fixed(tk))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	client := path(t, b, tk.Handle)
	server := connect(t, client, cb)
	if ecn := pass(t, client, server, "hello", 2); ecn != 2 {
		t.Errorf("connector received ecn %d", ecn)
	}
	if ecn := pass(t, server, client, "answer", 1); ecn != 1 {
		t.Errorf("client received ecn %d", ecn)
	}
}
