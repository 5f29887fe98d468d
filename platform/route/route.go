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
	"context"
	"errors"
	"fmt"
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

// New checks cfg. It does not touch the host.
func New(cfg RouterConfig) (*Router, error) {
	if cfg.Log == nil {
		return nil, errors.New("log: not set")
	}
	host := cfg.Host
	if host == nil {
		var err error
		if host, err = newHost(); err != nil {
			return nil, err
		}
	}
	return &Router{host: host, log: cfg.Log.With("component", "route")}, nil
}

// Set makes the interface look like cfg, and no own route exist that is not in it.
// After an error the state is in between; Set or CleanUp may be called again.
func (r *Router) Set(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.set.Interface != "" && r.set.Interface != cfg.Interface {
		if err := r.clearAddrs(r.set.Interface); err != nil {
			return err
		}
	}
	r.set = cfg
	if err := r.host.Up(cfg.Interface); err != nil {
		return fmt.Errorf("set %s up: %w", cfg.Interface, err)
	}
	if err := r.syncAddrs(ctx, cfg); err != nil {
		return err
	}
	return r.syncRoutes(ctx, wantedRoutes(cfg))
}

func wantedRoutes(cfg Config) []Route {
	var want []Route
	for _, p := range cfg.Routes {
		want = append(want, Route{cfg.Interface, p.Masked()})
	}
	return want
}

func (r *Router) syncAddrs(ctx context.Context, cfg Config) error {
	have, err := r.host.Addrs(cfg.Interface)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", cfg.Interface, err)
	}
	have = slices.DeleteFunc(have, isLinkLocal) // the kernel's own
	add, del := diff(have, cfg.Addrs)
	return apply(ctx, add, del,
		func(p netip.Prefix) error { return r.host.AddAddr(cfg.Interface, p) },
		func(p netip.Prefix) error { return r.host.DelAddr(cfg.Interface, p) })
}

func (r *Router) syncRoutes(ctx context.Context, want []Route) error {
	have, err := r.host.OwnRoutes()
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	add, del := diff(have, want)
	return apply(ctx, add, del, r.host.AddRoute, r.host.DelRoute)
}

// CleanUp removes our routes from the host and our addresses from the interface,
// which may be gone already. It goes on after an error and may be called at any
// time.
func (r *Router) CleanUp(_ context.Context, iface string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.set = Config{}
	routes, err := r.host.OwnRoutes()
	errs := []error{err}
	for _, route := range routes {
		errs = append(errs, r.host.DelRoute(route))
	}
	return errors.Join(append(errs, r.clearAddrs(iface))...)
}

func (r *Router) clearAddrs(iface string) error {
	addrs, err := r.host.Addrs(iface)
	errs := []error{err}
	for _, p := range slices.DeleteFunc(addrs, isLinkLocal) {
		errs = append(errs, r.host.DelAddr(iface, p))
	}
	return errors.Join(errs...)
}

func isLinkLocal(p netip.Prefix) bool { return p.Addr().IsLinkLocalUnicast() }

// diff returns what is missing in have and what is too much, each once.
func diff[T comparable](have, want []T) (add, del []T) {
	for _, w := range want {
		if !slices.Contains(have, w) && !slices.Contains(add, w) {
			add = append(add, w)
		}
	}
	for _, h := range have {
		if !slices.Contains(want, h) {
			del = append(del, h)
		}
	}
	return add, del
}

// apply removes before it adds, so that a moved prefix never collides with itself.
func apply[T any](ctx context.Context, add, del []T, adder, deleter func(T) error) error {
	for _, v := range del {
		if err := deleter(v); err != nil {
			return fmt.Errorf("remove %v: %w", v, err)
		}
	}
	for _, v := range add {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := adder(v); err != nil {
			return fmt.Errorf("add %v: %w", v, err)
		}
	}
	return nil
}

// String gives the route as people write it.
func (r Route) String() string { return r.Dst.String() + " dev " + r.Interface }
