package scenario

import (
	"context"
	"crypto/tls"
	"maps"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker"
	"github.com/postern-zt/postern/client"
	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/peer"
	"github.com/postern-zt/postern/netstack/relay/wire"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	"github.com/postern-zt/postern/proto/chain"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
)

// TestTenets holds the product to the tenets of NIST SP 800-207 as far as a story in one
// process can show them; each subtest is named by the tenet's requirement. What needs real
// programs and wires is in test/system.
func TestTenets(t *testing.T) {
	for _, tenet := range []struct {
		id   string
		tell func(t *testing.T)
	}{
		{"tenet1/inventory_complete", inventoryComplete},
		{"tenet1/only_published_reachable", onlyPublishedReachable},
		{"tenet2/e2e_blind_broker", brokerCannotStandIn},
		{"tenet2/downgrade_fallback", fallbackIsNoDowngrade},
		{"tenet3/one_grant_one_app", oneGrantOneApp},
		{"tenet3/no_inheritance", noInheritance},
		{"tenet3/lease", leaseEnds},
		{"tenet6/default_deny", defaultDeny},
		{"tenet6/token_attacks", tokenAttacks},
		{"tenet6/pep_bypass", enforcementCannotBePassed},
		{"tenet6/fail_closed", failClosed},
	} {
		t.Run(tenet.id, tenet.tell)
	}
}

// six is a site with six services of which four are published, and ann may use two.
type six struct {
	*world
	services map[string]*app
	d        *device
	site     *site
}

var (
	publishedApps = []string{"dns", "git", "payroll", "wiki"}
	grantedApps   = []string{"dns", "wiki"}
)

func newSix(t *testing.T) *six {
	t.Helper()
	s := &six{world: newWorld(t, "ann"), services: map[string]*app{"dns": echoUDP(t)}}
	for _, name := range []string{"git", "payroll", "wiki", "backup", "printer"} {
		s.services[name] = echo(t)
	}
	s.site = s.connector("berlin-1", s.world.site("berlin"))
	for _, name := range publishedApps {
		target := s.services[name].target()
		if name == "dns" {
			target = s.services[name].udpTarget()
		}
		s.publishAs(&adminv1.PublishAppRequest{
			Name: name, Owner: name + " team", Placements: []*adminv1.Placement{{Site: "berlin", Targets: []string{target}}},
		})
	}
	for _, name := range grantedApps {
		s.allow("ann", name)
	}
	s.d = s.device("ann", "ann-laptop")
	return s
}

// inventoryComplete: each app that is published is a resource with its owner and, unless told
// otherwise, the class internal, for the administrator and for the connector; what is not
// published is none.
func inventoryComplete(t *testing.T) {
	s := newSix(t)
	resp, err := s.admin.apps.ListApps(s.ctx(), connect.NewRequest(&adminv1.ListAppsRequest{}))
	var names, assigned, known []string
	for _, a := range must(t, resp, err).Apps {
		names, known = append(names, a.Name), append(known, a.Id)
		if a.Owner != a.Name+" team" || a.Class != "internal" {
			t.Errorf("%s has owner %q and class %q, want its team and internal", a.Name, a.Owner, a.Class)
		}
	}
	slices.Sort(names)
	if !slices.Equal(names, publishedApps) {
		t.Errorf("the inventory is %v, want %v", names, publishedApps)
	}
	for _, a := range s.site.conn.Report().Apps {
		assigned = append(assigned, a.AppId)
	}
	if slices.Sort(assigned); !slices.Equal(assigned, slices.Sorted(slices.Values(known))) {
		t.Errorf("the connector serves %v, want %v", assigned, known)
	}
}

// onlyPublishedReachable: what answers is what was granted, of all services of the site; the
// connector refuses an unpublished target even when the broker itself asks.
func onlyPublishedReachable(t *testing.T) {
	s := newSix(t)
	var got []string
	for _, x := range scan(t, s.d, publishedApps, s.services) {
		if x.port != s.services[x.app].port() {
			t.Errorf("the grant for %s reached %s port %d", x.app, x.net, x.port)
		}
		got = append(got, x.app)
	}
	if slices.Sort(got); !slices.Equal(got, grantedApps) {
		t.Errorf("reachable: %v, granted: %v", got, grantedApps)
	}
	for _, name := range []string{"backup", "printer"} {
		if resp, err := s.d.authorize(name); connect.CodeOf(err) != connect.CodeNotFound {
			t.Errorf("%s, which nobody published: %v, %v", name, resp, err)
		}
	}
	tn, _, resp := s.d.open("wiki", carrier.TLS)
	everything := tn.accepted(s.forge(resp, func(g *grant.Grant) { g.Ports = []grant.Ports{{Network: grant.TCP, First: 1, Last: 65535}} }))
	for _, name := range slices.Sorted(maps.Keys(s.services)) {
		a := s.services[name]
		if got := tn.tcpCode(everything, a.port()); name != "wiki" && got != frame.NotAssigned {
			t.Errorf("the port of %s by the broker's own word: %v, want %v", name, got, frame.NotAssigned)
		}
		if !slices.Contains(grantedApps, name) && a.hits() != 0 {
			t.Errorf("%s saw %d connections", name, a.hits())
		}
	}
}

// brokerCannotStandIn: a broker that names another key for a connector completes no stream:
// a client that has met the connector refuses the key, and one that has not finds that the
// machine behind the relay does not have it.
func brokerCannotStandIn(t *testing.T) {
	wiki := echo(t)
	w := newWorld(t, "ann")
	s := w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	w.allow("ann", "wiki")
	c := w.laptop("ann", w.broker.URL(), func(*client.Config) {})
	reaches(t, c, "wiki", wiki)
	invented := ids.KeyID{1, 2, 3}
	id := ids.ConnectorID(s.row().Id)
	if err := c.Store().CheckConnector(id, invented); err == nil {
		t.Error("the client took another key for the connector that it knows")
	}

	d := w.device("ann", "ann-phone")
	path := d.granted("wiki").Connectors[0]
	hits := wiki.hits()
	for _, kind := range bothCarriers {
		if err := d.meet(kind, path, invented); err == nil {
			t.Errorf("over %s a connector passed for another", kind)
		}
		if err := d.meet(kind, path, ids.KeyID(path.KeyId)); err != nil {
			t.Errorf("over %s the connector itself: %v", kind, err)
		}
	}
	if wiki.hits() != hits {
		t.Errorf("the app saw %d more connections", wiki.hits()-hits)
	}
}

// meet makes the end-to-end handshake with whoever is behind the first relay of a path.
func (d *device) meet(kind carrier.Kind, path *controlv1.ConnectorPath, key ids.KeyID) error {
	config, err := peer.ClientConfig(peer.Config{Credentials: d.creds, Expect: peer.Exactly(key)})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(d.w.t.Context(), handshakePatience)
	defer cancel()
	c, err := d.dial(ctx, kind, path.Relays[0], config)
	if err != nil {
		return err
	}
	return c.Close()
}

// handshakePatience bounds a handshake that cannot succeed.
const handshakePatience = 10 * time.Second

// fallbackIsNoDowngrade: the way over TCP, which is left when UDP is blocked, is TLS 1.3 and
// nothing less, with the same pin of the relay and the same key of the connector.
func fallbackIsNoDowngrade(t *testing.T) {
	wiki := web(t, "hello over TCP")
	w := newWorld(t, "ann")
	w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	w.allow("ann", "wiki")
	d := w.device("ann", "ann-laptop")
	resp := d.granted("wiki")
	path := resp.Connectors[0]
	for _, alpn := range [][]string{nil, {control.ALPN}, {wire.ALPN}, {"h2", "http/1.1"}} {
		old := &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS12, InsecureSkipVerify: true, NextProtos: alpn} // the version is the subject
		if c, err := tls.Dial("tcp", w.cfg.Listen, old); err == nil {
			c.Close()
			t.Errorf("TLS %x was accepted for %v", c.ConnectionState().Version, alpn)
		}
	}
	if err := d.meet(carrier.TLS, path, ids.KeyID{9}); err == nil {
		t.Error("the connector's key is not checked over TCP")
	}
	foreign := *d
	foreign.pin = &ids.KeyID{7}
	if err := foreign.meet(carrier.TLS, path, ids.KeyID(path.KeyId)); err == nil {
		t.Error("the relay's certificate is not checked over TCP")
	}
	tn := d.link(path, carrier.TLS)
	if got := get(t, tn.tcp(tn.accepted(resp.Grant), wiki.port())); got != "hello over TCP" || wiki.hits() != 1 {
		t.Errorf("the app says %q and saw %d connections", got, wiki.hits())
	}
}

// oneGrantOneApp: five uses of a grant that is for something else, each refused for its own
// reason.
func oneGrantOneApp(t *testing.T) {
	l := newLiars(t)
	tn, ref, resp := l.ann.open("wiki", carrier.TLS)
	bobs := l.bob.link(l.bob.granted("git").Connectors[0], carrier.TLS)
	past := time.Now().Add(-time.Second)
	expired := l.forge(resp, func(g *grant.Grant) { g.NotBefore, g.HardEnd = past.Add(-time.Hour), past })
	otherApp := l.forge(resp, func(g *grant.Grant) { g.App = l.appID("munich") })
	reasons := map[frame.Code]bool{}
	refused := func(what string, err error) {
		code := frame.CodeOf(err)
		if err == nil || reasons[code] {
			t.Errorf("%s: %v, want a refusal with a reason of its own", what, err)
		}
		reasons[code] = true
	}
	refused("another app", errOf(tn.present(otherApp)))
	refused("another port", errOf(tn.client.OpenTCP(l.ctx(), ref, l.git.port())))
	refused("another device", errOf(bobs.present(resp.Grant)))
	refused("after its end", errOf(tn.present(expired)))
	l.revoke(resp)
	tn.awaitClosed(ref)
	refused("replayed", errOf(tn.present(resp.Grant)))
	l.untouched()
	l.ann.granted("wiki")
}

// noInheritance: who is connected to one app needs a decision of its own for the next, and
// each flow stands in the records under the receipt of its own app.
func noInheritance(t *testing.T) {
	wiki, git, payroll := echo(t), echo(t), echo(t)
	w := newWorld(t, "ann")
	w.connector("berlin-1", w.site("berlin"))
	apps := map[string]*app{"wiki": wiki, "git": git, "payroll": payroll}
	for name, a := range apps {
		w.publish(name, "berlin", a.target())
	}
	w.allow("ann", "wiki")
	w.allow("ann", "git")
	d := w.device("ann", "ann-laptop")
	tn, ref, first := d.open("wiki", carrier.TLS)
	talk(t, tn.tcp(ref, wiki.port()), 100)
	if got := tn.tcpCode(ref, git.port()); got != frame.PortNotGranted {
		t.Errorf("the next app by the first one's grant: %v", got)
	}
	d.denied("payroll")
	_, second, resp := d.open("git", carrier.TLS)
	talk(t, tn.tcp(second, git.port()), 100)
	if resp.Receipt.Id == first.Receipt.Id || resp.GrantId == first.GrantId {
		t.Errorf("both apps have decision %s and grant %s", resp.Receipt.Id, resp.GrantId)
	}
	var opens []chain.Record
	eventually(t, "both flows are recorded", func() bool { opens = w.records(chain.FlowOpened); return len(opens) == 2 })
	want := map[ids.AppID]string{w.appID("wiki"): first.Receipt.Id, w.appID("git"): resp.Receipt.Id}
	for _, r := range opens {
		if string(r.Receipt) != want[r.App] {
			t.Errorf("the flow to %s has receipt %s, want %s", r.App, r.Receipt, want[r.App])
		}
	}
	if git.hits() != 1 || payroll.hits() != 0 {
		t.Errorf("hits: git %d, payroll %d", git.hits(), payroll.hits())
	}
}

// leaseSlack is how far from the end of its lease a flow may end.
const leaseSlack = time.Second

// leaseEnds: without news of the broker a flow ends when its lease does, or goes on exactly as
// its app says, and nothing new opens.
func leaseEnds(t *testing.T) {
	cut, kept := echo(t), echo(t)
	w := newWorldWith(t, func(c *broker.Config) { c.Lease = shortLease }, "ann")
	s := w.connector("berlin-1", w.site("berlin"))
	for name, a := range map[string]*app{"cut": cut, "continue 1h": kept} {
		w.publishAs(&adminv1.PublishAppRequest{
			Name: name[:3], OutageMode: name, Placements: []*adminv1.Placement{{Site: "berlin", Targets: []string{a.target()}}},
		})
		w.allow("ann", name[:3])
	}
	d := w.device("ann", "ann-laptop")
	one, two := goLive(d, "cut", carrier.TLS, cut.port()), goLive(d, "con", carrier.TLS, kept.port())
	began := time.Now()
	s.net.set(true)
	if at := one.died().Sub(began); frame.CodeOf(one.err) != frame.LeaseEnded || at > shortLease+leaseSlack {
		t.Errorf("the flow ended after %s with %v, want the end of a lease of %s", at, one.err, shortLease)
	}
	two.alive()
	if got := two.tn.tcpCode(two.ref, kept.port()); got != frame.NotLive {
		t.Errorf("a new flow after the lease: %v", got)
	}
	if cut.hits() != 1 || kept.hits() != 1 {
		t.Errorf("hits: %d and %d, want one each", cut.hits(), kept.hits())
	}
}
