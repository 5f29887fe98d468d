// Package routetest has a host for tests of what uses platform/route: it keeps
// addresses and routes in memory and behaves like a kernel. Only tests use it.
package routetest

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/postern-zt/postern/platform/route"
)

// Host is a route.Host without a kernel. The zero value has no interfaces; it may
// be used from several goroutines.
type Host struct {
	mu     sync.Mutex
	ifaces map[string]*iface
	routes []route.Route
	// Used is what InUse reports besides the interfaces.
	Used []netip.Prefix
	// Changes counts the calls that changed something.
	Changes int
}

type iface struct {
	up    bool
	addrs []netip.Prefix
}

var _ route.Host = (*Host)(nil)

// AddInterface makes an interface.
func (h *Host) AddInterface(name string, addrs ...netip.Prefix) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ifaces == nil {
		h.ifaces = make(map[string]*iface)
	}
	h.ifaces[name] = &iface{addrs: addrs}
}

// RemoveInterface takes its addresses and routes with it, as the kernel does.
func (h *Host) RemoveInterface(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.ifaces, name)
	h.routes = slices.DeleteFunc(h.routes, func(r route.Route) bool { return r.Interface == name })
}

// Addrs implements route.Host.
func (h *Host) Addrs(name string) ([]netip.Prefix, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i := h.ifaces[name]; i != nil {
		return slices.Clone(i.addrs), nil
	}
	return nil, nil
}

// OwnRoutes implements route.Host.
func (h *Host) OwnRoutes() ([]route.Route, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.routes), nil
}

// Up implements route.Host.
func (h *Host) Up(name string) error {
	return h.change(name, func(i *iface) { i.up = true })
}

// AddAddr implements route.Host.
func (h *Host) AddAddr(name string, p netip.Prefix) error {
	return h.change(name, func(i *iface) { i.addrs = append(i.addrs, p) })
}

// DelAddr implements route.Host.
func (h *Host) DelAddr(name string, p netip.Prefix) error {
	return h.change(name, func(i *iface) {
		i.addrs = slices.DeleteFunc(i.addrs, func(a netip.Prefix) bool { return a == p })
	})
}

// AddRoute implements route.Host.
func (h *Host) AddRoute(r route.Route) error {
	return h.change(r.Interface, func(*iface) { h.routes = append(h.routes, r) })
}

// DelRoute implements route.Host.
func (h *Host) DelRoute(r route.Route) error {
	return h.change(r.Interface, func(*iface) {
		h.routes = slices.DeleteFunc(h.routes, func(have route.Route) bool { return have == r })
	})
}

// InUse implements route.Host.
func (h *Host) InUse(skip string) ([]netip.Prefix, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := slices.Clone(h.Used)
	for name, i := range h.ifaces {
		if name != skip {
			out = append(out, i.addrs...)
		}
	}
	return out, nil
}

func (h *Host) change(name string, do func(*iface)) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := h.ifaces[name]
	if i == nil {
		return fmt.Errorf("no interface %q", name)
	}
	h.Changes++
	do(i)
	return nil
}
