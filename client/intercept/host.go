package intercept

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/postern-zt/postern/client/resolve"
	"github.com/postern-zt/postern/netstack/stack"
	"github.com/postern-zt/postern/platform/dns"
	"github.com/postern-zt/postern/platform/route"
)

// setter makes the host follow the wanted state while an interface exists.
type setter struct {
	engine   *Engine
	stack    *stack.Stack
	resolver *resolve.Server
	iface    string
	v4       netip.Prefix
	applied  route.Config
	domains  []string
}

func (s *setter) run(ctx context.Context) error {
	for {
		w := s.engine.want()
		if !w.Up {
			return nil
		}
		if err := s.apply(ctx, w); err != nil {
			return err
		}
		select {
		case <-s.engine.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// apply brings everything in front of the host up to date first, then the host.
func (s *setter) apply(ctx context.Context, w Wanted) error {
	e := s.engine
	plan, err := s.plan(w)
	if err != nil {
		return err
	}
	t, err := newTable(plan, w, s.domains)
	if err != nil {
		return err
	}
	s.domains = t.domains
	s.resolver.SetTable(t.names)
	s.stack.SetPrefixes(plan.Prefixes())
	e.table.Store(t)
	if err := s.routes(ctx, plan); err != nil {
		return err
	}
	server := netip.AddrPortFrom(plan.DNS().V4, 53)
	if err := e.dns.Set(ctx, dns.Config{Interface: s.iface, Server: server, Domains: t.domains}); err != nil {
		e.log.WarnContext(ctx, "names are not resolved by this host", "error", err)
	}
	s.resolver.SetUpstreams(e.dns.Status().Upstreams)
	e.setStatus(Status{Up: true, Interface: s.iface, Prefixes: plan.Prefixes()})
	return nil
}

// routes sets addresses and routes; a host without IPv6 gets IPv4 alone.
func (s *setter) routes(ctx context.Context, plan resolve.Plan) error {
	cfg := routeConfig(s.iface, plan, true)
	if slices.Equal(cfg.Routes, s.applied.Routes) {
		return nil
	}
	err := s.engine.router.Set(ctx, cfg)
	if err != nil && len(plan.Prefixes()) > 1 {
		s.engine.log.WarnContext(ctx, "IPv6 left out", "error", err)
		err = s.engine.router.Set(ctx, routeConfig(s.iface, plan, false))
	}
	if err != nil {
		return fmt.Errorf("set routes: %w", err)
	}
	s.applied = cfg
	return nil
}

func routeConfig(iface string, plan resolve.Plan, v6 bool) route.Config {
	cfg := route.Config{Interface: iface}
	device := plan.Device()
	for _, a := range []netip.Addr{device.V4, device.V6} {
		if a.IsValid() && (a.Is4() || v6) {
			cfg.Addrs = append(cfg.Addrs, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	for _, p := range plan.Prefixes() {
		if p.Addr().Is4() || v6 {
			cfg.Routes = append(cfg.Routes, p)
		}
	}
	return cfg
}

// plan chooses the IPv4 prefix once per interface, the one of the last run if it is free.
func (s *setter) plan(w Wanted) (resolve.Plan, error) {
	e := s.engine
	v6, err := netip.ParsePrefix(w.Catalog.GetUlaPrefix())
	if err != nil {
		v6 = netip.Prefix{}
	}
	if !s.v4.IsValid() {
		chosen, err := e.router.Choose(candidates(e.cfg.Prefix(), w), s.iface)
		if err != nil {
			return resolve.Plan{}, err
		}
		s.v4 = chosen
		if err := e.cfg.KeepPrefix(chosen); err != nil {
			e.log.Warn("address prefix not kept", "error", err)
		}
	}
	return resolve.NewPlan(s.v4, v6)
}

// candidates lists the broker's candidates, the earlier choice first, without those that
// would cover an address which must stay reachable outside.
func candidates(earlier netip.Prefix, w Wanted) []netip.Prefix {
	var out []netip.Prefix
	add := func(p netip.Prefix) {
		covers := slices.ContainsFunc(w.Avoid, p.Contains)
		if p.IsValid() && !covers && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	var offered []netip.Prefix
	for _, text := range w.Catalog.GetIpv4Candidates() {
		if p, err := netip.ParsePrefix(text); err == nil && p.Addr().Is4() {
			offered = append(offered, p.Masked())
		}
	}
	if slices.Contains(offered, earlier) {
		add(earlier)
	}
	for _, p := range offered {
		add(p)
	}
	return out
}
