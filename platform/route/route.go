// Package route sets the addresses and routes of the tunnel interface and of
// nothing else. The client's root package uses it.
//
// It is declarative: Set takes the whole wanted state and applies the difference;
// CleanUp removes what an earlier run left behind, also after kill -9. Every route
// it adds carries our protocol number, so it never touches what others own. It
// must not set a default route, a firewall rule or a rule of policy routing.
//
// A Router may be used from several goroutines; calls run one after the other.
package route

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
)

// Config is the whole wanted state of one interface. The zero Config means: nothing.
type Config struct {
	// Interface is the name of an existing interface.
	Interface string
	// Addrs are the addresses of the interface, each with its prefix length.
	Addrs []netip.Prefix
	// Routes are the destinations that go into the interface.
	Routes []netip.Prefix
}

// ErrDefaultRoute is returned for a wanted route that covers everything.
var ErrDefaultRoute = errors.New("a default route is never taken")

// Validate says what is wrong with the configuration.
func (c Config) Validate() error {
	if c.Interface == "" {
		return errors.New("interface: name is empty")
	}
	for _, p := range slices.Concat(c.Addrs, c.Routes) {
		if !p.IsValid() {
			return errors.New("addrs, routes: invalid prefix")
		}
	}
	for _, p := range c.Routes {
		if p.Bits() == 0 {
			return ErrDefaultRoute
		}
	}
	return nil
}

// Host is the kernel's side: what exists, and how to change it. The real one
// speaks netlink; routetest has a fake that keeps the state.
type Host interface {
	// Addrs lists the addresses of one interface. A missing interface gives
	// none.
	Addrs(iface string) ([]netip.Prefix, error)
	// OwnRoutes lists the routes with our protocol number, on any interface.
	OwnRoutes() ([]Route, error)
	// Up sets the interface up.
	Up(iface string) error
	AddAddr(iface string, p netip.Prefix) error
	DelAddr(iface string, p netip.Prefix) error
	AddRoute(r Route) error
	DelRoute(r Route) error
	// InUse lists the prefixes of all addresses and routes except the default
	// routes and those of the interface skip.
	InUse(skip string) ([]netip.Prefix, error)
}

// Route is one destination that goes into one interface.
type Route struct {
	Interface string
	Dst       netip.Prefix
}

// RouterConfig says what a Router works on.
type RouterConfig struct {
	// Host is the kernel's side; nil means the real one of this system.
	Host Host
	Log  *slog.Logger
}

// Router keeps the wanted state of the tunnel interface.
type Router struct {
	host Host
	log  *slog.Logger

	mu  sync.Mutex // one change at a time
	set Config     // what Set applied last, for CleanUp; guarded by mu
}
