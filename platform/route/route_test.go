package route_test

import (
	"errors"
	"log/slog"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/postern-zt/postern/platform/route"
	"github.com/postern-zt/postern/platform/route/routetest"
)

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func newRouter(t *testing.T) (*route.Router, *routetest.Host) {
	t.Helper()
	h := new(routetest.Host)
	h.AddInterface("postern0")
	r, err := route.New(route.RouterConfig{Host: h, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return r, h
}

var prefixOption = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func wantState(t *testing.T, h *routetest.Host, addrs, routes []netip.Prefix) {
	t.Helper()
	gotAddrs, _ := h.Addrs("postern0")
	own, _ := h.OwnRoutes()
	var gotRoutes []netip.Prefix
	for _, r := range own {
		gotRoutes = append(gotRoutes, r.Dst)
	}
	opts := cmp.Options{prefixOption, cmpopts.EquateEmpty()}
	if diff := cmp.Diff(addrs, gotAddrs, opts); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(routes, gotRoutes, opts); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
}

func TestSetAppliesTheDifference(t *testing.T) {
	r, h := newRouter(t)
	first := route.Config{Interface: "postern0", Addrs: prefixes("100.96.0.1/32"), Routes: prefixes("100.96.0.0/16", "10.7.0.0/24")}
	if err := r.Set(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	wantState(t, h, first.Addrs, first.Routes)
	before := h.Changes
	if err := r.Set(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if n := h.Changes - before; n != 1 { // only "up"
		t.Errorf("the same Set changed %d things, want 1", n)
	}
	second := route.Config{Interface: "postern0", Addrs: prefixes("100.97.0.1/32"), Routes: prefixes("100.96.0.0/16", "10.8.1.1/24")}
	if err := r.Set(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	wantState(t, h, second.Addrs, prefixes("100.96.0.0/16", "10.8.1.0/24"))
	if err := r.CleanUp(t.Context(), "postern0"); err != nil {
		t.Fatal(err)
	}
	wantState(t, h, nil, nil)
}

func TestInterfaceMayChangeOrGo(t *testing.T) {
	r, h := newRouter(t)
	h.AddInterface("postern1")
	cfg := route.Config{Interface: "postern0", Addrs: prefixes("100.96.0.1/32"), Routes: prefixes("100.96.0.0/16")}
	if err := r.Set(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	cfg.Interface = "postern1"
	if err := r.Set(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	wantState(t, h, nil, cfg.Routes)
	h.RemoveInterface("postern1")
	if err := r.CleanUp(t.Context(), "postern1"); err != nil {
		t.Errorf("CleanUp without the interface: %v", err)
	}
	if err := r.Set(t.Context(), cfg); err == nil {
		t.Error("Set without the interface: no error")
	}
}

func TestValidate(t *testing.T) {
	for _, cfg := range []route.Config{
		{}, {Interface: "x", Routes: []netip.Prefix{{}}}, {Interface: "x", Addrs: []netip.Prefix{{}}},
		{Interface: "x", Routes: prefixes("0.0.0.0/0")}, {Interface: "x", Routes: prefixes("::/0")},
	} {
		if err := cfg.Validate(); err == nil {
			t.Errorf("Validate(%+v): no error", cfg)
		}
	}
}

func TestChoose(t *testing.T) {
	candidates := prefixes("100.96.0.0/16", "10.213.0.0/16", "172.29.0.0/16")
	for _, c := range []struct {
		used []netip.Prefix
		want string
	}{
		{nil, "100.96.0.0/16"},
		{prefixes("0.0.0.0/0", "128.0.0.0/1"), "100.96.0.0/16"}, // a full-tunnel VPN takes no prefix of ours
		{prefixes("100.64.0.0/10"), "10.213.0.0/16"},            // another overlay VPN
		{prefixes("100.96.7.1/32", "10.0.0.0/8"), "172.29.0.0/16"},
		{prefixes("100.96.7.1/32", "10.0.0.0/8", "172.16.0.0/12"), ""},
	} {
		r, h := newRouter(t)
		h.AddInterface("postern0", prefixes("100.96.0.1/16")...) // our own does not count
		h.Used = c.used
		got, err := r.Choose(candidates, "postern0")
		if c.want == "" {
			if !errors.Is(err, route.ErrNoneFree) {
				t.Errorf("Choose with %v in use = %v, %v, want ErrNoneFree", c.used, got, err)
			}
			continue
		}
		if err != nil || got.String() != c.want {
			t.Errorf("Choose with %v in use = %v, %v, want %s", c.used, got, err, c.want)
		}
	}
}
