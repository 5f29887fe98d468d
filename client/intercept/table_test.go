package intercept

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/postern-zt/postern/client/resolve"
	"github.com/postern-zt/postern/client/session"
	"github.com/postern-zt/postern/netstack/flow"
	"github.com/postern-zt/postern/platform/dns"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
)

var catalog = &controlv1.Catalog{
	Suffixes: []string{"corp.internal"}, UlaPrefix: "fd00:1:2::/48", Ipv4Candidates: []string{"198.18.0.0/16", "198.19.0.0/16", "no prefix"},
	Apps: []*controlv1.CatalogApp{{
		Id: "app_wiki", Name: "wiki", Fqdns: []string{"wiki.corp.internal"}, Index: 1, Allowed: true,
		Ports: []*controlv1.PortRange{{Network: "tcp", First: 80, Last: 90}, {Network: "udp", First: 53, Last: 53}},
	}},
}

func TestCandidatesKeepWhatMustStayOutside(t *testing.T) {
	first, second := netip.MustParsePrefix("198.18.0.0/16"), netip.MustParsePrefix("198.19.0.0/16")
	for _, c := range []struct {
		name    string
		earlier netip.Prefix
		avoid   []netip.Addr
		want    []netip.Prefix
	}{
		{"first run", netip.Prefix{}, nil, []netip.Prefix{first, second}},
		{"kept", second, nil, []netip.Prefix{second, first}},
		{"no longer offered", netip.MustParsePrefix("10.9.0.0/16"), nil, []netip.Prefix{first, second}},
		{"covers the broker", first, []netip.Addr{netip.MustParseAddr("198.18.7.7")}, []netip.Prefix{second}},
		{"covers everything", first, []netip.Addr{netip.MustParseAddr("198.18.7.7"), netip.MustParseAddr("198.19.7.7")}, nil},
	} {
		got := candidates(c.earlier, Wanted{Catalog: catalog, Avoid: c.avoid})
		if diff := cmp.Diff(c.want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

func testTable(t *testing.T) (*table, resolve.Plan) {
	t.Helper()
	plan, err := resolve.NewPlan(netip.MustParsePrefix("198.18.0.0/16"), netip.MustParsePrefix("fd00:1:2::/48"))
	if err != nil {
		t.Fatal(err)
	}
	tab, err := newTable(plan, Wanted{Up: true, Owner: 1000, Catalog: catalog}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return tab, plan
}

func TestTableKnowsAppsAndResolver(t *testing.T) {
	tab, plan := testTable(t)
	app, err := plan.App(1)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{app.V4, app.V6} {
		if tab.apps[a].GetName() != "wiki" {
			t.Errorf("%v is no app", a)
		}
	}
	if !tab.isDNS(netip.AddrPortFrom(plan.DNS().V4, 53)) || tab.isDNS(netip.AddrPortFrom(plan.DNS().V4, 54)) || tab.isDNS(netip.AddrPortFrom(app.V4, 53)) {
		t.Error("the resolver's address")
	}
	later, err := newTable(plan, Wanted{Up: true}, tab.domains)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"corp.internal"}, later.domains); diff != "" || len(later.apps) != 0 {
		t.Errorf("after the session: %s, %d apps", diff, len(later.apps))
	}
}

// nobody opens nothing: these tests end before.
type nobody struct{}

func (nobody) OpenTCP(context.Context, string, uint16) (*flow.Flow, error) {
	return nil, errors.New("opened")
}
func (nobody) OpenUDP(context.Context, string, uint16) (*flow.Packets, error) {
	return nil, errors.New("opened")
}

func TestOnlyTheOwnersProgramsPass(t *testing.T) {
	tab, plan := testTable(t)
	app, err := plan.App(1)
	if err != nil {
		t.Fatal(err)
	}
	program := netip.AddrPortFrom(plan.Device().V4, 40000)
	uid, failure := uint32(1000), error(nil)
	e, err := New(Config{
		Opener: nobody{}, Outcome: func(error) session.Outcome { return session.NotAllowed }, Log: slog.New(slog.DiscardHandler),
		DNS:   dns.HostConfig{ResolvConf: t.TempDir() + "/resolv.conf", BusAddress: "none"},
		Owner: func(string, netip.AddrPort, netip.AddrPort) (uint32, error) { return uid, failure },
	})
	if err != nil {
		t.Fatal(err)
	}
	h := &handler{engine: e}
	wiki := netip.AddrPortFrom(app.V4, 80)
	if _, ok := h.target("tcp", program, wiki); ok {
		t.Error("passed before there was a table")
	}
	e.table.Store(tab)
	if got, ok := h.target("tcp", program, wiki); !ok || got.Name != "wiki" {
		t.Error("the owner's program did not pass")
	}
	for name, dest := range map[string]netip.AddrPort{
		"port":    netip.AddrPortFrom(app.V4, 91),
		"network": netip.AddrPortFrom(app.V4, 53),
		"address": netip.AddrPortFrom(plan.Device().V4, 80),
	} {
		if _, ok := h.target("tcp", program, dest); ok {
			t.Errorf("another %s passed", name)
		}
	}
	if e.Status().Refused != 0 {
		t.Error("what does not exist counts as another user's")
	}
	uid = 1001
	if _, ok := h.target("tcp", program, wiki); ok {
		t.Error("another user's program passed")
	}
	uid, failure = 1000, errors.New("no socket: forwarded")
	if _, ok := h.target("tcp", program, wiki); ok {
		t.Error("a forwarded packet passed")
	}
	if got := e.Status().Refused; got != 2 {
		t.Errorf("%d refused, want 2", got)
	}
}
