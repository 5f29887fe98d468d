package scenario

import (
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/netstack/carrier"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
)

// liars is a world with two sites and two people, for those who misuse what they have.
type liars struct {
	*world
	wiki, git, munich *app
	berlin1, munich1  *site
	ann, bob          *device
}

func newLiars(t *testing.T) *liars {
	t.Helper()
	l := &liars{wiki: echo(t), git: echo(t), munich: echo(t), world: newWorld(t, "ann", "bob")}
	l.berlin1 = l.connector("berlin-1", l.site("berlin"))
	l.munich1 = l.connector("munich-1", l.site("munich"))
	l.publish("wiki", "berlin", l.wiki.target())
	l.publish("git", "berlin", l.git.target())
	l.publish("munich", "munich", l.munich.target())
	for _, name := range []string{"wiki", "munich"} {
		l.allow("ann", name)
	}
	l.allow("bob", "git")
	l.ann, l.bob = l.device("ann", "ann-laptop"), l.device("bob", "bob-laptop")
	return l
}

// untouched checks that no lie has reached any app.
func (l *liars) untouched() {
	l.t.Helper()
	for name, a := range map[string]*app{"wiki": l.wiki, "git": l.git, "munich": l.munich} {
		if a.hits() != 0 {
			l.t.Errorf("%s saw %d connections", name, a.hits())
		}
	}
}

func (l *liars) want(what string, err error, code frame.Code) {
	l.t.Helper()
	if got := frame.CodeOf(err); got != code {
		l.t.Errorf("%s: %v, want %v", what, err, code)
	}
}

// TestGrantForOneApp: a grant opens its own app's ports and nothing else, whatever the
// device asks for (invariant 2).
func TestGrantForOneApp(t *testing.T) {
	l := newLiars(t)
	tn, ref, _ := l.ann.open("wiki", carrier.TLS)
	for _, port := range []uint16{l.git.port(), l.munich.port(), 1, 22, 65535} {
		_, err := tn.client.OpenTCP(l.ctx(), ref, port)
		l.want("another port", err, frame.PortNotGranted)
	}
	_, err := tn.client.OpenUDP(l.ctx(), ref, l.wiki.port())
	l.want("UDP on a TCP port", err, frame.PortNotGranted)
	l.untouched()
	tn.tcp(ref, l.wiki.port()).Close()
	if l.wiki.hits() != 1 {
		t.Errorf("the granted port was reached %d times", l.wiki.hits())
	}
}

// TestGrantOfAnotherDevice: a stolen grant is worth nothing without the device's key.
func TestGrantOfAnotherDevice(t *testing.T) {
	l := newLiars(t)
	stolen := l.ann.granted("wiki")
	for _, kind := range bothCarriers {
		tn := l.bob.link(l.bob.granted("git").Connectors[0], kind)
		ref, err := tn.present(stolen.Grant)
		l.want("ann's grant on bob's link", err, frame.GrantForeign)
		if _, err := tn.client.OpenTCP(l.ctx(), ref, l.wiki.port()); err == nil {
			t.Error("a flow opened under a refused grant")
		}
	}
	l.untouched()
}

// TestTicketOfAnotherDevice: a stolen relay ticket brings the thief to the connector, where
// his own key is what counts.
func TestTicketOfAnotherDevice(t *testing.T) {
	l := newLiars(t)
	stolen := l.ann.granted("wiki")
	tn := l.bob.link(stolen.Connectors[0], carrier.TLS)
	_, err := tn.present(stolen.Grant)
	l.want("ann's ticket and grant with bob's key", err, frame.GrantForeign)
	l.untouched()
}

// TestGrantAtAnotherConnector: a grant names its connectors.
func TestGrantAtAnotherConnector(t *testing.T) {
	l := newLiars(t)
	wiki, munich := l.ann.granted("wiki"), l.ann.granted("munich")
	tn := l.ann.link(munich.Connectors[0], carrier.TLS)
	_, err := tn.present(wiki.Grant)
	l.want("a grant for Berlin in Munich", err, frame.GrantForeign)
	l.untouched()
	tn.tcp(tn.accepted(munich.Grant), l.munich.port()).Close()
}

// TestTamperedGrant: no byte of a grant can be changed.
func TestTamperedGrant(t *testing.T) {
	l := newLiars(t)
	resp := l.ann.granted("wiki")
	tn := l.ann.link(resp.Connectors[0], carrier.TLS)
	for i := 0; i < len(resp.Grant); i += 7 {
		bad := append([]byte(nil), resp.Grant...)
		bad[i] ^= 0x40
		if _, err := tn.present(bad); frame.CodeOf(err) != frame.GrantInvalid {
			t.Errorf("byte %d changed: %v", i, err)
		}
	}
	_, err := tn.present(resp.Grant[:len(resp.Grant)-1])
	l.want("a cut grant", err, frame.GrantInvalid)
	_, err = tn.present(nil)
	l.want("no grant", err, frame.GrantInvalid)
	l.untouched()
	tn.accepted(resp.Grant)
}

// TestRevokedGrantReplayed: what was revoked stays revoked, on this link and on a new one.
func TestRevokedGrantReplayed(t *testing.T) {
	l := newLiars(t)
	tn, ref, resp := l.ann.open("wiki", carrier.TLS)
	l.revoke(resp)
	if code, _ := tn.awaitClosed(ref); code != frame.Revoked {
		t.Errorf("the micro-tunnel ended with %v", code)
	}
	for _, kind := range bothCarriers {
		_, err := l.ann.link(resp.Connectors[0], kind).present(resp.Grant)
		l.want("the revoked grant over "+string(kind), err, frame.Revoked)
	}
	l.untouched()
	again := l.ann.granted("wiki") // the rule still stands: a new decision, a new grant
	if again.GrantId == resp.GrantId {
		t.Error("the revoked grant was given again")
	}
	tn2 := l.ann.link(again.Connectors[0], carrier.TLS)
	tn2.tcp(tn2.accepted(again.Grant), l.wiki.port()).Close()
}

func (w *world) revoke(resp *controlv1.AuthorizeResponse) *adminv1.EffectResponse {
	w.t.Helper()
	r, err := w.admin.sessions.RevokeGrant(w.ctx(), connect.NewRequest(&adminv1.GrantRef{Grant: resp.GrantId}))
	return must(w.t, r, err)
}

// TestExpiredGrant: a grant ends at its hard end although nobody tells the connector, and
// is not accepted after it.
func TestExpiredGrant(t *testing.T) {
	l := newLiars(t)
	tn, _, resp := l.ann.open("wiki", carrier.TLS)
	end := time.Now().Add(time.Second)
	short := l.forge(resp, func(g *grant.Grant) { g.HardEnd = end })
	ref := tn.accepted(short)
	f := tn.tcp(ref, l.wiki.port())
	defer f.Close()
	if code, at := tn.awaitClosed(ref); code != frame.GrantExpired || at.Before(end.Add(-time.Millisecond)) {
		t.Errorf("the micro-tunnel ended with %v, %s after its hard end", code, at.Sub(end))
	}
	if _, err := f.Read(make([]byte, 1)); frame.CodeOf(err) != frame.GrantExpired {
		t.Errorf("the flow after the hard end: %v", err)
	}
	l.wiki.awaitEnds(t, 1)
	_, err := tn.present(short)
	l.want("the expired grant", err, frame.GrantExpired)
	if l.wiki.hits() != 1 {
		t.Errorf("the app saw %d connections", l.wiki.hits())
	}
}

// TestForgedGrant: even a grant with the broker's own signature opens only what a
// connector can vouch for by its assignment and by what it understands.
func TestForgedGrant(t *testing.T) {
	l := newLiars(t)
	resp := l.ann.granted("wiki")
	tn := l.ann.link(resp.Connectors[0], carrier.TLS)
	now := time.Now()
	for name, c := range map[string]struct {
		change func(g *grant.Grant)
		want   frame.Code
	}{
		"expired":               {func(g *grant.Grant) { g.NotBefore, g.HardEnd = now.Add(-time.Hour), now.Add(-time.Second) }, frame.GrantExpired},
		"not yet valid":         {func(g *grant.Grant) { g.NotBefore = now.Add(time.Hour); g.HardEnd = now.Add(2 * time.Hour) }, frame.GrantInvalid},
		"too long":              {func(g *grant.Grant) { g.HardEnd = now.Add(1000 * time.Hour) }, frame.UnsupportedConstraint},
		"another site's app":    {func(g *grant.Grant) { g.App = l.appID("munich") }, frame.NotAssigned},
		"an app that never was": {func(g *grant.Grant) { g.App = ids.New[ids.AppID]() }, frame.NotAssigned},
		"no connector of ours":  {func(g *grant.Grant) { g.Connectors = []ids.ConnectorID{ids.New[ids.ConnectorID]()} }, frame.GrantForeign},
		"for the browser door":  {func(g *grant.Grant) { g.PeerKind = grant.PeerGateway }, frame.UnsupportedConstraint},
		"for a workload":        {func(g *grant.Grant) { g.PeerKind = grant.PeerWorkload }, frame.GrantForeign},
		"without a peer":        {func(g *grant.Grant) { g.PeerKey = ids.KeyID{} }, frame.GrantInvalid},
	} {
		if _, err := tn.present(l.forge(resp, c.change)); frame.CodeOf(err) != c.want {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	// More ports than the app has: the assignment is what counts.
	wide := tn.accepted(l.forge(resp, func(g *grant.Grant) { g.Ports = []grant.Ports{{Network: grant.TCP, First: 1, Last: 65535}} }))
	l.want("a port outside the assignment", errOf(tn.client.OpenTCP(l.ctx(), wide, l.git.port())), frame.NotAssigned)
	l.untouched()
}

func errOf[T any](_ T, err error) error { return err }

// TestStolenIdentity: tokens are bound to the device key, and a session to its device
// (decisions rules 28 and 35).
func TestStolenIdentity(t *testing.T) {
	l := newLiars(t)
	thief := l.stranger("thief")
	if err := thief.redeem(l.tokens("ann", l.ann)); err == nil {
		t.Error(errEnrolled)
	}
	if _, err := thief.authorize("wiki"); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("a device that was never enrolled: %v", err)
	}
	resp := l.ann.granted("wiki")
	tn := thief.link(resp.Connectors[0], carrier.TLS)
	_, err := tn.present(resp.Grant)
	l.want("ann's grant with an unknown key", err, frame.GrantForeign)
	l.untouched()
}
