package relay

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/postern-zt/postern/netstack/relay/udpio"
	"github.com/postern-zt/postern/netstack/relay/wire"
)

// talker is a holder that uses one of the relay's addresses and takes datagrams from no
// other, as a NAT would.
type talker struct {
	*holder
	relay netip.AddrPort
}

// exchange sends p to the relay's address until to hears something, through the socket.
func (k talker) exchange(p []byte, to talker) []byte {
	t, loop := k.b.t, k.b.loop
	t.Helper()
	buf := make([]byte, 2048)
	for range 100 {
		if _, err := k.conn.WriteToUDPAddrPort(p, k.relay); err != nil {
			t.Fatal(err)
		}
		_ = loop.sock.Conn().SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		in, err := loop.sock.Read(loop.in, &loop.scratch)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if in.Local != k.relay.Addr() {
			t.Fatalf("Local = %v, want %v", in.Local, k.relay.Addr())
		}
		loop.receive(loop.in[:in.N], in, k.b.now)
		_ = to.conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		n, from, err := to.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			continue
		}
		if from != to.relay {
			t.Fatalf("a datagram for who talks to %v came from %v", to.relay, from)
		}
		return buf[:n]
	}
	t.Fatal("nothing came")
	return nil
}

func (k talker) bindThrough() {
	k.b.t.Helper()
	got := k.exchange(wire.AppendBind(nil, k.tk.Handle, 1, nil, k.sealed, k.tk.MACKey), k)
	_, cookie, err := wire.ParseCookie(got)
	if err != nil {
		k.b.t.Fatal(err)
	}
	got = k.exchange(wire.AppendBind(nil, k.tk.Handle, 1, bytes.Clone(cookie), k.sealed, k.tk.MACKey), k)
	if n, err := wire.ParseProven(got, k.tk.MACKey); err != nil || n != 1 {
		k.b.t.Fatalf("bound: %d, %v", n, err)
	}
}

// TestAnswersComeFromWhereTheyWereAsked: on a host with several addresses each holder hears
// from the one that it talks to, whether it is answered or forwarded to.
func TestAnswersComeFromWhereTheyWereAsked(t *testing.T) {
	for name, at := range map[string]struct{ network, addr string }{
		"one family": {"udp4", "0.0.0.0:0"}, "both families": {"udp", "[::]:0"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBenchOn(t, Limits{}, listenUDP(t, at.network, at.addr))
			port := b.loop.sock.LocalAddr().Port()
			at := func(h *holder, addr string) talker {
				return talker{h, netip.AddrPortFrom(netip.MustParseAddr(addr), port)}
			}
			ch := b.holder(nil)
			c, k := at(ch, "127.0.0.2"), at(b.client(ch), "127.0.0.3")
			c.bindThrough()
			k.bindThrough()
			if got := k.exchange(k.data("up"), c); !bytes.Equal(got, k.data("up")) {
				t.Errorf("data: %q", got)
			}
			if got := c.exchange(k.data("down"), k); !bytes.Equal(got, k.data("down")) {
				t.Errorf("data back: %q", got)
			}
			k.exchange(wire.AppendPing(nil, wire.TypePing, k.tk.Handle, 2, k.tk.MACKey), k)
		})
	}
}

// TestForwardingFromAnAddressAllocatesNothing: the same with the address in every send.
func TestForwardingFromAnAddressAllocatesNothing(t *testing.T) {
	b := newBenchOn(t, Limits{}, listenUDP(t, "udp", "[::]:0"))
	ch := b.holder(nil)
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), b.loop.sock.LocalAddr().Port())
	c, k := talker{ch, to}, talker{b.client(ch), to}
	c.bindThrough()
	k.bindThrough()
	src := netip.AddrPortFrom(netip.AddrFrom16(addrOf(k.conn).Addr().As16()), addrOf(k.conn).Port())
	p := bytes.Repeat(k.data(string(make([]byte, 1192))), 10)
	in := udpio.Packet{N: len(p), Segment: 1200, ECN: 1, Source: src, Local: to.Addr()}
	if n := testing.AllocsPerRun(100, func() { b.loop.receive(p, in, b.now) }); n != 0 {
		t.Errorf("%v allocations per super-packet", n)
	}
	if n := b.relay.drops[DropAddress].Load() + b.relay.drops[DropSend].Load(); n != 0 {
		t.Errorf("%d were not forwarded", n)
	}
}
