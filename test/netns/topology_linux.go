package netns

import (
	"fmt"
	"net/netip"
	"testing"
)

// Topology is the network that the product is made for: everybody behind a router,
// the broker and the relay in the open, apps reachable from the connector only.
//
//	client --- clientNAT --- internet --- connectorNAT --- connector --- private --- apps
//	  .10.2   .10.1           |    |              .20.1   .20.2  .30.1   (switch)  .30.10 ...
//	                        broker  relay
//
// Public networks are /29s of 203.0.113.0/24, private ones 192.168.x.0/24; the fields
// have the addresses.
// Apps have no route to anywhere but their own network.
type Topology struct {
	*World
	Client, ClientNAT, Internet     *Host
	Broker, Relay                   *Host
	ConnectorNAT, Connector         *Host
	Private                         *Switch
	Apps                            map[string]*Host
	BrokerAddr, RelayAddr           netip.Addr
	ClientAddr, ConnectorAddr       netip.Addr // as seen in their own networks
	ClientOutside, ConnectorOutside netip.Addr // as seen from the internet
	AppAddrs                        map[string]netip.Addr
	ClientUplink, ConnectorUplink   string // outer interfaces of the NAT routers
}

// NewTopology builds the network with one app host for each name.
func NewTopology(t testing.TB, apps ...string) *Topology {
	t.Helper()
	w := New(t)
	top := &Topology{World: w, Apps: make(map[string]*Host), AppAddrs: make(map[string]netip.Addr)}
	for _, m := range []struct {
		host **Host
		name string
	}{
		{&top.Client, "client"},
		{&top.ClientNAT, "cnat"},
		{&top.Internet, "inet"},
		{&top.Broker, "broker"},
		{&top.Relay, "relay"},
		{&top.ConnectorNAT, "knat"},
		{&top.Connector, "connector"},
	} {
		*m.host = w.Host(m.name)
	}
	top.cable()
	top.addApps(apps)
	return top
}

func (top *Topology) cable() {
	top.World.t.Helper()
	top.Internet.Forward()
	top.BrokerAddr = top.uplink(top.Broker, 1)
	top.RelayAddr = top.uplink(top.Relay, 2)
	top.ClientOutside, top.ClientUplink = top.nat(top.ClientNAT, 3)
	top.ConnectorOutside, top.ConnectorUplink = top.nat(top.ConnectorNAT, 4)
	top.ClientAddr = top.inside(top.Client, top.ClientNAT, 10)
	top.ConnectorAddr = top.inside(top.Connector, top.ConnectorNAT, 20)
}

// uplink connects a machine to the internet and returns its address there.
func (top *Topology) uplink(h *Host, n int) netip.Addr {
	addr, _ := top.uplinkVia(h, n)
	return addr
}

func (top *Topology) uplinkVia(h *Host, n int) (netip.Addr, string) {
	top.World.t.Helper()
	router := netip.MustParsePrefix(fmt.Sprintf("203.0.113.%d/29", n*8+1))
	own := netip.MustParsePrefix(fmt.Sprintf("203.0.113.%d/29", n*8+2))
	_, iface := top.Connect(top.Internet, []netip.Prefix{router}, h, []netip.Prefix{own})
	h.Route("default", router.Addr())
	return own.Addr(), iface
}

func (top *Topology) nat(h *Host, n int) (netip.Addr, string) {
	top.World.t.Helper()
	addr, iface := top.uplinkVia(h, n)
	h.Masquerade(iface)
	return addr, iface
}

// inside connects a machine to its NAT router and returns its private address.
func (top *Topology) inside(h, router *Host, n int) netip.Addr {
	top.World.t.Helper()
	gateway := netip.MustParsePrefix(fmt.Sprintf("192.168.%d.1/24", n))
	own := netip.MustParsePrefix(fmt.Sprintf("192.168.%d.2/24", n))
	top.Connect(router, []netip.Prefix{gateway}, h, []netip.Prefix{own})
	h.Route("default", gateway.Addr())
	return own.Addr()
}

func (top *Topology) addApps(names []string) {
	top.World.t.Helper()
	top.Private = top.Switch("private")
	top.Private.Attach(top.Connector, netip.MustParsePrefix("192.168.30.1/24"))
	for i, name := range names {
		h := top.Host("app-" + name)
		addr := netip.MustParsePrefix(fmt.Sprintf("192.168.30.%d/24", 10+i))
		top.Private.Attach(h, addr)
		top.Apps[name], top.AppAddrs[name] = h, addr.Addr()
	}
}

// Switch joins many machines into one network.
type Switch struct {
	host *Host
}

// Switch makes a switch without machines.
func (w *World) Switch(name string) *Switch {
	w.t.Helper()
	h := w.Host("sw-" + name)
	h.IP("link", "add", "br0", "type", "bridge")
	h.IP("link", "set", "br0", "up")
	return &Switch{host: h}
}

// Attach plugs a machine in and returns the name of its interface.
func (s *Switch) Attach(h *Host, addrs ...netip.Prefix) string {
	s.host.w.t.Helper()
	iface, port := s.host.w.Connect(h, addrs, s.host, nil)
	s.host.IP("link", "set", port, "master", "br0")
	return iface
}
