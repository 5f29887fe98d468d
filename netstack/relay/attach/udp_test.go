package attach_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
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

func receive(t testing.TB, p *attach.Path) (string, byte) {
	t.Helper()
	pkt, ok, err := p.Receive(withTimeout(t).Done())
	if err != nil || !ok {
		t.Fatalf("Receive: ok %v, %v", ok, err)
	}
	defer pkt.Release()
	return string(pkt.Data[p.HeaderLen():]), pkt.ECN
}

// longHeader starts a payload that a connector takes for a new QUIC connection.
const longHeader = "\xc0"

func accept(t testing.TB, b *attach.Binding) *attach.Path {
	t.Helper()
	p, err := b.Accept(withTimeout(t))
	if err != nil {
		t.Fatalf("Accept: %v", err)
	}
	return p
}

func TestUDPForwardsBothWaysWithECN(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	c := ticket.NewHandle()
	cb := bind(t, f, f.Connector(c, nil))
	tk := f.Client(c, nil)
	client := path(t, bind(t, f, tk), tk.Handle)
	send(t, client, longHeader+"hello", 2)
	server := accept(t, cb)
	if got, ecn := receive(t, server); got != longHeader+"hello" || ecn != 2 || server.Link() != tk.Handle {
		t.Errorf("connector received %q ecn %d on %s", got, ecn, server.Link())
	}
	send(t, server, "answer", 1)
	if got, ecn := receive(t, client); got != "answer" || ecn != 1 {
		t.Errorf("client received %q ecn %d", got, ecn)
	}
}

func TestConnectorIgnoresStrayPacketsOfUnknownLinks(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	c := ticket.NewHandle()
	cb := bind(t, f, f.Connector(c, nil))
	tk := f.Client(c, nil)
	client := path(t, bind(t, f, tk), tk.Handle)
	send(t, client, "short header", 0)
	send(t, client, longHeader, 0)
	if got, _ := receive(t, accept(t, cb)); got != longHeader {
		t.Errorf("first packet of the link is %q, want the long header", got)
	}
}

func TestBindingComesBackAfterRelayRestart(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	c := ticket.NewHandle()
	cb := bind(t, f, f.Connector(c, nil))
	tk := f.Client(c, nil)
	client := path(t, bind(t, f, tk), tk.Handle)
	send(t, client, longHeader, 0)
	server := accept(t, cb)
	receive(t, server)
	f.Stop()
	f.Start()
	deadline := withTimeout(t)
	for got := ""; got != "again"; {
		if deadline.Err() != nil {
			t.Fatal("nothing forwarded after the restart")
		}
		send(t, server, "x", 0) // both sides send into silence, which makes them look
		send(t, client, "again", 0)
		got = receiveWithin(t, server, 200*time.Millisecond)
	}
}

func receiveWithin(t testing.TB, p *attach.Path, d time.Duration) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	pkt, ok, err := p.Receive(ctx.Done())
	if err != nil {
		t.Fatalf("Receive: %v", err)
	}
	if !ok {
		return ""
	}
	defer pkt.Release()
	return string(pkt.Data[p.HeaderLen():])
}

func TestRebindFromANewPortMovesTheMapping(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	c := ticket.NewHandle()
	cb := bind(t, f, f.Connector(c, nil))
	tk := f.Client(c, nil)
	old := bind(t, f, tk)
	client := path(t, old, tk.Handle)
	send(t, client, longHeader, 0)
	server := accept(t, cb)
	receive(t, server)
	moved := path(t, bind(t, f, tk), tk.Handle) // same ticket, higher counter, other port
	send(t, server, "to the new port", 0)
	if got, _ := receive(t, moved); got != "to the new port" {
		t.Errorf("new port received %q", got)
	}
	send(t, client, "from the old port", 0)
	send(t, moved, "from the new port", 0)
	if got, _ := receive(t, server); got != "from the new port" {
		t.Errorf("connector received %q, want only the new port's", got)
	}
}

func TestCutAndRevokeEndUDP(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	c := ticket.NewHandle()
	cb := bind(t, f, f.Connector(c, nil))
	tk, stays := f.Client(c, nil), f.Client(c, nil)
	client, other := path(t, bind(t, f, tk), tk.Handle), path(t, bind(t, f, stays), stays.Handle)
	send(t, client, longHeader, 0)
	receive(t, accept(t, cb))
	f.Relay.Revoke(relay.Revocation{Handles: []ticket.Handle{tk.Handle}, At: time.Now()})
	send(t, client, longHeader+"after", 0)
	send(t, other, longHeader+"other", 0)
	if got, _ := receive(t, accept(t, cb)); got != longHeader+"other" {
		t.Errorf("received %q, want only the link that was not revoked", got)
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

// answer returns the next datagram. Silence is proven by asking for something that is
// answered afterwards, never by waiting.
func (r raw) answer() []byte {
	r.t.Helper()
	b := make([]byte, 2048)
	_ = r.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, err := r.conn.Read(b)
	if err != nil {
		r.t.Fatalf("no answer: %v", err)
	}
	return b[:n]
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
	s.send(first)
	got := s.answer()
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
	owner.send(wire.AppendBind(nil, tk.Handle, 5, nil, tk.Sealed, tk.MACKey))
	_, cookie, err := wire.ParseCookie(owner.answer())
	if err != nil {
		t.Fatal(err)
	}
	prove := wire.AppendBind(nil, tk.Handle, 5, cookie, tk.Sealed, tk.MACKey)
	thief.send(prove) // a copy sent first, from elsewhere
	owner.send(prove)
	if _, err := wire.ParseProven(owner.answer(), tk.MACKey); err != nil {
		t.Fatalf("owner was not bound: %v", err)
	}
	thief.send(prove)                                                        // replayed afterwards
	thief.send(wire.AppendPing(nil, wire.TypePing, tk.Handle, 9, tk.MACKey)) // right key, wrong address
	thief.send(datagramOf(wire.TypeData, tk.Handle, "stolen"))
	thief.send(wire.AppendBind(nil, tk.Handle, 4, nil, tk.Sealed, tk.MACKey))
	_, low, err := wire.ParseCookie(thief.answer()) // the first answer it gets at all
	if err != nil {
		t.Fatalf("thief was answered something else: %v", err)
	}
	thief.send(wire.AppendBind(nil, tk.Handle, 4, low, tk.Sealed, tk.MACKey)) // an old counter
	owner.send(wire.AppendPing(nil, wire.TypePing, tk.Handle, 6, tk.MACKey))
	if counter, err := wire.ParseProven(owner.answer(), tk.MACKey); err != nil || counter != 6 {
		t.Errorf("owner lost the mapping: %v", err)
	}
	drops := f.Relay.Drops()
	for reason, want := range map[string]uint64{"bad_cookie": 2, "foreign_address": 1, "replay": 1} {
		if drops[reason] != want {
			t.Errorf("drops[%s] = %d, want %d", reason, drops[reason], want)
		}
	}
}

func TestSuperPacketWithMixedHandlesIsSplit(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	c := ticket.NewHandle()
	cb := bind(t, f, f.Connector(c, nil))
	a, b := f.Client(c, nil), f.Client(c, nil)
	pa, pb := path(t, bind(t, f, a), a.Handle), path(t, bind(t, f, b), b.Handle)
	send(t, pa, longHeader, 0)
	sa := accept(t, cb)
	receive(t, sa)
	send(t, pb, longHeader, 0)
	sb := accept(t, cb)
	receive(t, sb)
	var super []byte // from the connector, one write: A A B A, and B twice the same handle at the end
	for _, d := range [][]byte{datagram(sa, "to A, one"), datagram(sa, "to A, two"), datagram(sb, "to B, one"),
		datagram(sa, "to A, 3rd"), datagramOf(wire.TypeData, ticket.NewHandle(), "to nobody"), datagram(sb, "to B, two")} {
		super = append(super, d...)
	}
	if err := sa.Send(super, wire.HeaderLen+9, 0, new(udpio.Scratch)); err != nil {
		t.Fatal(err)
	}
	if got := collect(t, pa, 3); got != "to A, one|to A, two|to A, 3rd|" {
		t.Errorf("A received %q", got)
	}
	if got := collect(t, pb, 2); got != "to B, one|to B, two|" {
		t.Errorf("B received %q", got)
	}
}

// collect joins the payloads of n datagrams, in whatever super-packets they come.
func collect(t testing.TB, p *attach.Path, n int) string {
	t.Helper()
	var out []byte
	for n > 0 {
		pkt, ok, err := p.Receive(withTimeout(t).Done())
		if err != nil || !ok {
			t.Fatalf("Receive: ok %v, %v", ok, err)
		}
		for b := pkt.Data; len(b) > 0; n-- {
			size := min(pkt.Segment, len(b))
			out = append(append(out, b[wire.HeaderLen:size]...), '|')
			b = b[size:]
		}
		pkt.Release()
	}
	return string(out)
}
