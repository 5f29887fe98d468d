package intercept

import (
	"net/netip"

	"github.com/postern-zt/postern/client/resolve"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
)

// table is what a packet's destination means. It is immutable and swapped whole.
type table struct {
	names   *resolve.Table
	dns     resolve.Addrs
	owner   uint32
	apps    map[netip.Addr]*controlv1.CatalogApp
	domains []string
}

// newTable builds the table of one catalog. A catalog without suffixes keeps the earlier
// domains, so that names fail at once after the session's end and do not leak to others.
func newTable(plan resolve.Plan, w Wanted, earlier []string) (*table, error) {
	t := &table{dns: plan.DNS(), owner: w.Owner, apps: map[netip.Addr]*controlv1.CatalogApp{}, domains: w.Catalog.GetSuffixes()}
	if len(t.domains) == 0 {
		t.domains = earlier
	}
	var entries []resolve.Entry
	for _, app := range w.Catalog.GetApps() {
		addrs, err := plan.App(app.Index)
		if err != nil {
			continue // more apps than addresses: those have no address here, the proxy serves them
		}
		for _, a := range []netip.Addr{addrs.V4, addrs.V6} {
			if a.IsValid() {
				t.apps[a] = app
			}
		}
		for _, name := range app.Fqdns {
			entries = append(entries, resolve.Entry{Name: name, Addrs: addrs})
		}
	}
	var err error
	t.names, err = resolve.NewTable(t.domains, plan.Prefixes(), entries)
	return t, err
}

// isDNS reports whether a destination is our resolver.
func (t *table) isDNS(a netip.AddrPort) bool {
	return a.Port() == dnsPort && (a.Addr() == t.dns.V4 || a.Addr() == t.dns.V6)
}

// serves reports whether an app has a port.
func serves(app *controlv1.CatalogApp, network string, port uint16) bool {
	for _, p := range app.GetPorts() {
		if p.Network == network && p.First <= uint32(port) && uint32(port) <= p.Last {
			return true
		}
	}
	return false
}
