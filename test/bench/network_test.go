//go:build linux

package bench

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/postern-zt/postern/test/netns"
)

const (
	// congestion is pinned everywhere: the machine's default may be another one, and BBR and
	// cubic differ by a factor of two on the raw path.
	congestion  = "cubic"
	dialTimeout = 10 * time.Second
)

// network is the cables of a bench.
type network struct {
	*netns.World
	laptops   map[string]*netns.Host // by what is special about them
	addrs     map[string]netip.Addr
	relay     *netns.Host
	connector *netns.Host
	// relayAddr is the broker's and the relay's, appAddr the app's and the connector's.
	relayAddr, appAddr netip.Addr
}

// newNetwork builds a router with the connector on one side and laptops on the other.
func newNetwork(t *testing.T, laptops ...string) *network {
	t.Helper()
	w := netns.New(t)
	n := &network{
		World: w, laptops: map[string]*netns.Host{}, addrs: map[string]netip.Addr{}, relay: w.Host("relay"), connector: w.Host("connector"),
		relayAddr: netip.MustParseAddr("10.77.1.1"), appAddr: netip.MustParseAddr("10.77.1.2"),
	}
	n.relay.Forward()
	n.cable(t, n.connector, netip.PrefixFrom(n.relayAddr, 24), netip.PrefixFrom(n.appAddr, 24))
	for i, name := range laptops {
		h := w.Host("laptop-" + name)
		n.laptops[name] = h
		net := netip.AddrFrom4([4]byte{10, 77, byte(2 + i), 0})
		router := net.Next()
		n.addrs[name] = router.Next()
		n.cable(t, h, netip.PrefixFrom(router, 24), netip.PrefixFrom(router.Next(), 24))
	}
	return n
}

// cable joins h to the router and pins congestion control on both ends.
func (n *network) cable(t *testing.T, h *netns.Host, router, own netip.Prefix) {
	t.Helper()
	pinLocal(h, "lo", "127.0.0.0/8", "127.0.0.1")
	pinLocal(h, "lo", "127.0.0.1", "127.0.0.1")
	at, end := n.Connect(n.relay, []netip.Prefix{router}, h, []netip.Prefix{own})
	for host, iface := range map[*netns.Host]string{n.relay: at, h: end} {
		if os.Getenv("POSTERN_BENCH_PLAIN") != "" {
			continue
		}
		if err := host.Do(func() error { return setOffloads(iface, wire()) }); err != nil {
			t.Fatal(err)
		}
	}
	pinRoute(n.relay, at, router)
	pinRoute(h, end, own)
	h.IP("route", "add", "default", "via", router.Addr().String(), "congctl", congestion)
}

// pinRoute replaces the route that came with an address by the same one with congestion
// control: the programs under test do not know that they are measured.
func pinRoute(h *netns.Host, iface string, p netip.Prefix) {
	net := p.Masked().String()
	h.IP("route", "del", net, "dev", iface)
	h.IP("route", "add", net, "dev", iface, "proto", "kernel", "scope", "link", "src", p.Addr().String(), "congctl", congestion)
	pinLocal(h, iface, p.Addr().String(), p.Addr().String())
}

// pinLocal is pinRoute for connections of a machine to itself: a connector's to an app
// beside it, a program's to a proxy.
func pinLocal(h *netns.Host, iface, net, addr string) {
	h.IP("route", "replace", "local", net, "dev", iface, "proto", "kernel", "scope", "host", "src", addr, "table", "local", "congctl", congestion)
}

// blockUDP lets no datagram of h to the relay out, as some networks do.
func (n *network) blockUDP(h *netns.Host) {
	h.NFT(fmt.Sprintf(`table ip bench {
	chain output {
		type filter hook output priority 0;
		udp dport %d drop
	}
}`, brokerPort))
}

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// dial opens a connection with pinned congestion control from h.
func dial(h *netns.Host, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	var c net.Conn
	err := h.Do(func() (err error) {
		d := net.Dialer{Control: pin}
		c, err = d.DialContext(ctx, "tcp", addr)
		return err
	})
	return c, err
}
