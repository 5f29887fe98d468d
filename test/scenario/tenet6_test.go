package scenario

import (
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker"
	"github.com/postern-zt/postern/broker/identity/identitytest"
	"github.com/postern-zt/postern/connector"
	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/proto/chain"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
	"github.com/postern-zt/postern/test/fakeidp"
)

// decidedFlows are opened in the story of the order of decision and dial.
const decidedFlows = 200

// defaultDeny: without a rule not one connection reaches the app; with one, each flow's
// decision is older than its dial.
func defaultDeny(t *testing.T) {
	wiki := echo(t)
	w := newWorld(t, "ann")
	w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	d := w.device("ann", "ann-laptop")
	for range 20 {
		if r := d.denied("wiki"); r.Verdict != controlv1.Verdict_VERDICT_DENY {
			t.Errorf("an empty policy says %v", r)
		}
	}
	if wiki.hits() != 0 {
		t.Fatalf("under an empty policy the app saw %d connections", wiki.hits())
	}
	w.allow("ann", "wiki")
	tn, ref, _ := d.open("wiki", carrier.TLS)
	for range decidedFlows {
		tn.tcp(ref, wiki.port()).Close()
	}
	var opens []chain.Record
	eventually(t, "all flows are recorded", func() bool { opens = w.records(chain.FlowOpened); return len(opens) >= decidedFlows })
	if len(opens) != wiki.hits() {
		t.Errorf("%d flows recorded, the app saw %d", len(opens), wiki.hits())
	}
	decided := map[ids.ReceiptID]int64{}
	for _, r := range opens {
		at, known := decided[r.Receipt]
		if !known {
			rec := w.decision(string(r.Receipt))
			if at = rec.TimeMs; rec.Verdict != "allow" {
				t.Errorf("flow under the verdict %q", rec.Verdict)
			}
			decided[r.Receipt] = at
		}
		if at > r.TimeMS {
			t.Errorf("decided at %d, opened at %d", at, r.TimeMS)
		}
	}
}

// tokenAttacks: no token that the identity provider did not make for this sign-in, for us and
// for now lets anybody in, and tokens are worth nothing on another device.
func tokenAttacks(t *testing.T) {
	w := newWorld(t, "ann")
	idp := w.company("Corp", "carol", "engineering")
	d := w.stranger("carol-laptop")
	try := func() error {
		_, err := identitytest.SignIn(w.ctx(), w.signInAt(d.member.KeyID()), identitytest.Person{Provider: "Corp"})
		return err
	}
	for _, fault := range []fakeidp.Fault{
		fakeidp.AlgNone, fakeidp.AlgSymmetric, fakeidp.WrongKey, fakeidp.WrongAudience, fakeidp.WrongIssuer, fakeidp.WrongNonce,
		fakeidp.Expired, fakeidp.NotYet, fakeidp.WrongParty, fakeidp.NoIDToken,
	} {
		idp.Misbehave(fault)
		if err := try(); err == nil {
			t.Errorf("signed in with a token with this fault: %s", fault)
		}
	}
	idp.Misbehave(fakeidp.None)
	if err := try(); err != nil {
		t.Errorf("a good token: %v", err)
	}
	idp.Down(true)
	if err := try(); err == nil {
		t.Error("signed in while the provider is away")
	}
	idp.Down(false)
	idp.RotateKeys()
	slowly(t, "sign-in under the new key", func() bool { return try() == nil })

	ann, thief := w.device("ann", "ann-laptop"), w.stranger("thief")
	if err := thief.redeem(w.tokens("ann", ann)); err == nil {
		t.Error(errEnrolled)
	}
	if _, err := thief.authorize("wiki"); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("the thief's device asks: %v", err)
	}
}

// enforcementCannotBePassed: there is no way around the connector's own check: not without a
// session, not past the relay, not with a grant that the broker did not sign, not with the
// state of before.
func enforcementCannotBePassed(t *testing.T) {
	l := newLiars(t)
	resp := l.ann.granted("wiki")
	path := resp.Connectors[0]

	stranger := l.stranger("stranger")
	if _, err := stranger.authorize("wiki"); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("a decision without a session: %v", err)
	}
	l.answersOnlyTickets(path.Relays[0])
	forged, err := grant.Open(seal.NewKeys(l.signer().Public()), resp.Grant)
	if err != nil {
		t.Fatal(err)
	}
	tn := l.ann.link(path, carrier.TLS)
	l.want("a grant by another signer", errOf(tn.present(grant.Seal(newSigner(t), forged))), frame.GrantInvalid)
	l.berlin1.net.set(true) // a broker that is gone revokes nothing; the connector must not live on
	l.revoke(resp)
	l.berlin1.stop()
	l.berlin1.start()
	if l.berlin1.conn.Live() {
		t.Error("a connector that has heard nothing serves by the state of before")
	}
	l.berlin1.net.set(false)
	l.berlin1.await()
	tn = l.ann.link(path, carrier.TLS)
	l.want("the revoked grant", errOf(tn.present(resp.Grant)), frame.Revoked)
	l.untouched()
	good := l.ann.granted("wiki")
	tn.tcp(tn.accepted(good.Grant), l.wiki.port()).Close()
}

// failClosed: whatever of the decision is away or broken, nobody new gets in, and who is in
// goes on by the app's outage mode.
func failClosed(t *testing.T) {
	wiki, other := echo(t), echo(t)
	off := false
	w := newWorldWith(t, func(c *broker.Config) { c.Relay = &off }, "ann")
	w.relayNode("relay-1") // bytes do not depend on the broker's process
	s, c := w.joined("berlin-1", w.site("berlin")), &clocks{}
	s.startWith(func(cfg *connector.Config) { cfg.Now = c.now })
	s.await()
	w.publish("wiki", "berlin", wiki.target())
	w.publish("other", "berlin", other.target())
	w.allow("ann", "wiki")
	w.allow("ann", "other")
	d := w.device("ann", "ann-laptop")
	l := goLive(d, "wiki", carrier.TLS, wiki.port())
	nothingNew := func(when string) {
		t.Helper()
		if resp, err := d.authorize("other"); err == nil && len(resp.Grant) != 0 {
			t.Errorf("%s: a grant was given", when)
		}
		moves(t, when, l, wiki)
	}
	heal := w.refuseWrites(w.tables()...)
	nothingNew("the disk is full")
	heal()
	w.stopBroker()
	nothingNew("nobody decides")
	c.set(2*time.Minute, 0)
	if got := l.tn.tcpCode(l.ref, wiki.port()); got != frame.NotLive {
		t.Errorf("a new flow after the clock jumped over the lease: %v, want %v", got, frame.NotLive)
	}
	moves(t, "the clock jumped", l, wiki)
	c.set(0, 0)
	w.startBroker()
	s.serves()
	eventually(t, "the other app is allowed again", func() bool {
		resp, err := d.authorize("other")
		return err == nil && len(resp.Grant) != 0
	})
	if wiki.hits() != 1 || other.hits() != 0 {
		t.Errorf("hits: %d and %d", wiki.hits(), other.hits())
	}
	l.flow.Close()
}
