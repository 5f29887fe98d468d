package route

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routeProtocol marks our routes in the kernel. It is free in the kernel's list
// (include/uapi/linux/rtnetlink.h) and shows as a number in "ip route".
const routeProtocol = 177

// kernel is the real Host. Each call opens its own netlink socket, so it works in
// whatever network namespace its thread is in.
type kernel struct{}

func newHost() (Host, error) { return kernel{}, nil }

func (kernel) Addrs(iface string) ([]netip.Prefix, error) {
	link, err := netlink.LinkByName(iface)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, a := range addrs {
		if p, ok := prefixOf(a.IPNet); ok {
			out = append(out, p)
		}
	}
	return out, nil
}

func (kernel) OwnRoutes() ([]Route, error) {
	filter := &netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, err
	}
	names, err := linkNames()
	if err != nil {
		return nil, err
	}
	var out []Route
	for _, r := range routes {
		if p, ok := prefixOf(r.Dst); ok {
			out = append(out, Route{names[r.LinkIndex], p})
		}
	}
	return out, nil
}

func linkNames() (map[int]string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	return names, nil
}

func (kernel) Up(iface string) error {
	return withLink(iface, netlink.LinkSetUp)
}

func (kernel) AddAddr(iface string, p netip.Prefix) error {
	return withLink(iface, func(l netlink.Link) error {
		if p.Addr().Is4() {
			return netlink.AddrReplace(l, &netlink.Addr{IPNet: netOf(p)})
		}
		addr := &netlink.Addr{IPNet: netOf(p), Flags: unix.IFA_F_NODAD} // nobody else can be on this link
		if err := netlink.AddrReplace(l, addr); err != nil {
			return err
		}
		return awaitLocal(p.Addr())
	})
}

// The kernel makes an IPv6 address able to receive a moment after it has accepted
// it; an answer that comes earlier is lost.
const (
	localPoll  = 2 * time.Millisecond
	localTries = 500 // one second: far more than a loaded machine needs
)

func awaitLocal(a netip.Addr) error {
	tick := time.NewTicker(localPoll)
	defer tick.Stop()
	for range localTries {
		routes, err := netlink.RouteGet(a.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
		<-tick.C
	}
	return fmt.Errorf("address %v does not become usable", a)
}

func (kernel) DelAddr(iface string, p netip.Prefix) error {
	err := withLink(iface, func(l netlink.Link) error { return netlink.AddrDel(l, &netlink.Addr{IPNet: netOf(p)}) })
	return ignoreGone(err)
}

func (kernel) AddRoute(r Route) error {
	return withLink(r.Interface, func(l netlink.Link) error { return netlink.RouteReplace(kernelRoute(l, r)) })
}

func (kernel) DelRoute(r Route) error {
	err := withLink(r.Interface, func(l netlink.Link) error { return netlink.RouteDel(kernelRoute(l, r)) })
	return ignoreGone(err)
}

func kernelRoute(l netlink.Link, r Route) *netlink.Route {
	route := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: netOf(r.Dst), Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN}
	if r.Dst.Addr().Is4() {
		route.Scope = netlink.SCOPE_LINK
	}
	return route
}

func withLink(iface string, do func(netlink.Link) error) error {
	link, err := netlink.LinkByName(iface)
	if err != nil {
		return fmt.Errorf("interface %q: %w", iface, err)
	}
	return do(link)
}

// ignoreGone makes removal idempotent: the kernel removes addresses and routes by
// itself when their interface goes.
func ignoreGone(err error) error {
	if errors.As(err, &netlink.LinkNotFoundError{}) || errors.Is(err, unix.ESRCH) ||
		errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

func (kernel) InUse(skip string) ([]netip.Prefix, error) {
	names, err := linkNames()
	if err != nil {
		return nil, err
	}
	all := &netlink.Route{Table: unix.RT_TABLE_UNSPEC} // other VPNs use tables of their own
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, all, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, err
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, r := range routes {
		if p, ok := prefixOf(r.Dst); ok && names[r.LinkIndex] != skip {
			out = append(out, p)
		}
	}
	for _, a := range addrs {
		if p, ok := prefixOf(a.IPNet); ok && names[a.LinkIndex] != skip {
			out = append(out, p.Masked())
		}
	}
	return out, nil
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones), true
}

func netOf(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
