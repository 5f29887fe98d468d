package authorize

import (
	"net/netip"
	"testing"
	"time"

	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/session"
	"github.com/postern-zt/postern/proto/ids"
)

var (
	office = netip.MustParseAddr("203.0.113.7")
	cafe   = netip.MustParseAddr("198.51.100.9")
)

// atTheOffice is a world in which the session that holds the grant may use the app from the
// office alone.
func atTheOffice(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	doc := policy.NewDocument()
	doc.Rules = []policy.Rule{{
		ID: "rul_00000000000000000000000001", Name: "office", Effect: policy.Allow, Who: policy.Who{SignedIn: true},
		Apps: policy.Apps{Any: true}, Conditions: policy.Conditions{Networks: []string{"203.0.113.0/24"}},
	}}
	doc.Baseline[policy.Internal] = doc.Baseline[policy.Public] // facts are not the subject
	var err error
	w.rev, err = policy.Compile(policy.Meta{Number: 1}, doc)
	w.must(err)
	w.user = directory.User{ID: w.grant.User}
	w.row = registry.Device{ID: "dev_x", State: registry.Active}
	w.ses = session.Session{
		ID: w.grant.Session, User: w.grant.User, Device: "dev_x", DeviceKey: laptop, Created: day, AuthTime: day,
		LastVerified: day, LastActive: day, MaxAge: time.Hour, Source: office.String(), AMR: []string{"pwd"},
	}
	w.grant = w.reissue()
	return w
}

// reissue replaces the world's grant by the one that the policy gives at the office.
func (w *world) reissue() *grants.Grant {
	w.t.Helper()
	app, _ := w.catalog.App(w.grant.App)
	in, err := w.input(w.t.Context(), w.ses, app, office, "")
	w.must(err)
	rec, err := w.Decide(w.t.Context(), in)
	w.must(err)
	if !rec.Decision.Verdict.Grants() {
		w.t.Fatalf("not allowed at the office: %v", rec.Decision.Reasons)
	}
	rec.Receipt = ids.NewReceipt()
	w.Revoke(grants.One(w.grant.ID), grants.CauseReplacedGrant, "")
	w.takeRevoked()
	g, _, err := w.ledger.Issue(w.t.Context(), grantOf(Request{Session: w.ses, App: app}, rec, []registry.Connector{{ID: w.grant.Connectors[0]}}), w.ledger.Sequence(), day)
	w.must(err)
	return g
}

// A laptop that leaves the office loses what it was given there, and only then.
func TestMovedSessionIsJudgedAnew(t *testing.T) {
	w := atTheOffice(t)
	if ended := w.Seen(t.Context(), w.ses, office); len(ended) != 0 || !w.live() {
		t.Fatalf("at the office: %d ended: %v", len(ended), ended[0].Record.Decision.Reasons)
	}
	if ended := w.Seen(t.Context(), w.ses, netip.MustParseAddr("203.0.113.8")); len(ended) != 0 || !w.live() {
		t.Fatalf("another desk: %d ended", len(ended))
	}
	ended := w.Seen(t.Context(), w.ses, cafe)
	if len(ended) != 1 || ended[0].Grant.ID != w.grant.ID || w.live() {
		t.Fatalf("at the cafe: %d ended, live %v", len(ended), w.live())
	}
	w.pass(acknowledgeWithin + time.Second)
	if len(w.cut) != 1 {
		t.Errorf("%d grants were handed to the relays, want the one that ended", len(w.cut))
	}
}

// What was given elsewhere is not given again from memory, also when nobody said that the
// session has moved.
func TestAnswerOfAnotherPlaceIsNotRepeated(t *testing.T) {
	w := atTheOffice(t)
	_ = w.Seen(t.Context(), w.ses, office)
	app, _ := w.catalog.App(w.grant.App)
	if _, ok := w.Authorizer.live(t.Context(), Request{Session: w.ses, App: app, Source: cafe}); ok {
		t.Error("the answer for the office was given at the cafe")
	}
	ans, err := w.Authorize(t.Context(), Request{Session: w.ses, App: app, Source: cafe})
	if err != nil || ans.Grant != nil {
		t.Errorf("Authorize at the cafe = %+v, %v", ans, err)
	}
}

// A change of policy after a restart finds people where their devices were noted last, not
// where they signed in.
func TestPlaceIsTheLastOneKnown(t *testing.T) {
	w := atTheOffice(t)
	w.ses.Source = cafe.String()
	if got := w.place(w.ses, w.row); got != cafe {
		t.Errorf("after the sign-in: %s, want %s", got, cafe)
	}
	w.row.Seen.Address = office
	if got := w.place(w.ses, w.row); got != office {
		t.Errorf("after a note: %s, want %s", got, office)
	}
	_ = w.Seen(t.Context(), w.ses, cafe)
	if got := w.place(w.ses, w.row); got != cafe {
		t.Errorf("after a call: %s, want %s", got, cafe)
	}
}
