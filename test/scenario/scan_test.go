package scenario

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/link"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/grant"
)

// tuple is what a device can reach or not.
type tuple struct {
	app  string
	net  string
	port uint16
}

// TestReachableIsGranted: a device that tries every port of everything under every grant
// it can get reaches what it was granted, all of it and nothing else (invariant 3).
func TestReachableIsGranted(t *testing.T) {
	apps := map[string]*app{"wiki": echo(t), "git": echo(t), "payroll": echo(t), "munich": echo(t), "dns": echoUDP(t)}
	w := newWorld(t, "ann")
	w.connector("berlin-1", w.site("berlin"))
	w.connector("munich-1", w.site("munich"))
	for _, name := range []string{"wiki", "git", "payroll"} {
		w.publish(name, "berlin", apps[name].target())
	}
	w.publish("munich", "munich", apps["munich"].target())
	w.publish("dns", "munich", apps["dns"].udpTarget())
	for _, name := range []string{"wiki", "munich", "dns"} {
		w.allow("ann", name)
	}
	d := w.device("ann", "ann-laptop")
	got := scan(t, d, slices.Sorted(maps.Keys(apps)), apps)
	want := []tuple{
		{"dns", "udp", apps["dns"].port()}, {"munich", "tcp", apps["munich"].port()}, {"wiki", "tcp", apps["wiki"].port()},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("reachable: %v\ngranted:   %v", got, want)
	}
	for _, name := range []string{"git", "payroll"} {
		if n := apps[name].hits(); n != 0 {
			t.Errorf("%s saw %d connections", name, n)
		}
	}
	if apps["wiki"].hits() != 1 || apps["munich"].hits() != 1 {
		t.Errorf("hits: wiki %d, munich %d, want one each", apps["wiki"].hits(), apps["munich"].hits())
	}
}

// scan asks for the named apps and tries the ports of all, TCP and UDP, under every grant
// that the device gets; it lists what answered in the order of the names.
func scan(t *testing.T, d *device, names []string, apps map[string]*app) []tuple {
	t.Helper()
	var out []tuple
	for _, name := range names {
		resp, err := d.authorize(name)
		if err != nil {
			t.Fatal(err)
		}
		if len(resp.Grant) == 0 {
			continue
		}
		tn, ref, _ := d.open(name, carrier.TLS)
		for _, a := range apps {
			out = append(out, try(tn, ref, name, a)...)
		}
	}
	return out
}

// try opens one port with both networks under one grant.
func try(tn *tunnel, ref link.GrantRef, name string, a *app) []tuple {
	var out []tuple
	if f, err := tn.client.OpenTCP(tn.d.w.ctx(), ref, a.port()); err == nil {
		f.Close()
		out = append(out, tuple{name, "tcp", a.port()})
	} else if code := frame.CodeOf(err); code != frame.PortNotGranted {
		tn.d.w.t.Errorf("%s tcp %d: %v", name, a.port(), err)
	}
	if p, err := tn.client.OpenUDP(tn.d.w.ctx(), ref, a.port()); err == nil {
		exchange(tn.d.w.t, p, []byte("scan"))
		p.Close()
		out = append(out, tuple{name, "udp", a.port()})
	} else if code := frame.CodeOf(err); code != frame.PortNotGranted {
		tn.d.w.t.Errorf("%s udp %d: %v", name, a.port(), err)
	}
	return out
}

// TestNameReboundToTheConnector: a name that leads to the connector itself is not dialled,
// although the app, the port and the grant are right.
func TestNameReboundToTheConnector(t *testing.T) {
	private := echo(t)
	w := newWorld(t, "ann")
	w.connector("berlin-1", w.site("berlin"))
	w.publish("rebound", "berlin", fmt.Sprintf("localhost:%d", private.port()))
	w.allow("ann", "rebound")
	d := w.device("ann", "ann-laptop")
	for _, kind := range bothCarriers {
		tn, ref, _ := d.open("rebound", kind)
		if got := tn.tcpCode(ref, private.port()); got != frame.NameLeftAssignment {
			t.Errorf("a name that resolves to loopback: %v", got)
		}
	}
	if private.hits() != 0 {
		t.Errorf("the port behind the name saw %d connections", private.hits())
	}
}

// TestConnectorKnowsItsSiteOnly: the assignment of a connector holds its own site's apps,
// so that a broker's signature alone leads nowhere else (invariant 3, decisions rule 35).
func TestConnectorKnowsItsSiteOnly(t *testing.T) {
	l := newLiars(t)
	apps := map[string][]string{}
	for _, s := range []*site{l.berlin1, l.munich1} {
		for _, a := range s.conn.Report().Apps {
			apps[s.name] = append(apps[s.name], a.AppId)
		}
	}
	if len(apps["berlin-1"]) != 2 || len(apps["munich-1"]) != 1 || apps["munich-1"][0] != string(l.appID("munich")) {
		t.Errorf("assignments: %v", apps)
	}
	// A grant for the other site's app, with this connector named in it, by the broker's key.
	resp := l.ann.granted("munich")
	tn := l.ann.link(l.ann.granted("wiki").Connectors[0], carrier.TLS)
	here := l.ann.granted("wiki")
	forged := l.forge(here, func(g *grant.Grant) { g.App = l.appID("munich") })
	_, err := tn.present(forged)
	l.want("the other site's app by a forged grant", err, frame.NotAssigned)
	_, err = tn.present(resp.Grant)
	l.want("the other site's grant", err, frame.GrantForeign)
	l.untouched()
}
