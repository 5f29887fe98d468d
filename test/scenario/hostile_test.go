package scenario

import (
	"net/http"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/connector/enroll"
	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/control"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/control/v1/controlv1connect"
	"github.com/postern-zt/postern/proto/frame"
)

// TestDeviceChangesHands: when somebody else signs in on a device, nothing of the person
// before is left on it, and nothing comes back when the second one is signed out.
func TestDeviceChangesHands(t *testing.T) {
	wiki := echo(t)
	w := newWorld(t, "ann", "bob")
	w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	w.allow("ann", "wiki")
	d := w.device("ann", "shared-desk")
	tn, ref, resp := d.open("wiki", carrier.TLS)
	tn.tcp(ref, wiki.port())
	if err := d.redeem(w.tokens("bob", d)); err != nil {
		t.Fatal(err)
	}
	if code, _ := tn.awaitClosed(ref); code != frame.Revoked {
		t.Errorf("ann's micro-tunnel ended with %v, want revoked", code)
	}
	if _, err := tn.present(resp.Grant); frame.CodeOf(err) != frame.Revoked {
		t.Errorf("ann's grant in bob's hands: %v, want revoked", err)
	}
	d.denied("wiki")
	why, err := d.api.Why(w.ctx(), connectRequest(resp.Receipt.GetId()))
	if connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("bob asks for ann's receipt: %v, %v", why, err)
	}
	live, err := w.admin.sessions.ListSessions(w.ctx(), connect.NewRequest(&adminv1.ListSessionsRequest{}))
	for _, s := range must(t, live, err).Sessions {
		if s.User != "bob" {
			t.Errorf("%s is still signed in", s.User)
			continue
		}
		ended, err := w.admin.sessions.EndSession(w.ctx(), connect.NewRequest(&adminv1.SessionRef{Session: s.Id}))
		must(t, ended, err)
	}
	if resp, err := d.authorize("wiki"); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("after bob was signed out the device gets %v, %v", resp, err)
	}
}

// TestHiddenAppStaysHidden: the answer about an app that the user may not know of does not
// differ from the one about an app that does not exist.
func TestHiddenAppStaysHidden(t *testing.T) {
	w := newWorld(t, "ann")
	w.connector("berlin-1", w.site("berlin"))
	secret := w.publishAs(&adminv1.PublishAppRequest{
		Name: "merger", Visibility: "hidden", Placements: []*adminv1.Placement{{Site: "berlin", Targets: []string{"10.9.9.9:80"}}},
	})
	d := w.device("ann", "ann-laptop")
	_, unknown := d.authorize("nothing")
	_, hidden := d.authorize("merger")
	_, byID := d.api.Authorize(w.ctx(), connect.NewRequest(&controlv1.AuthorizeRequest{AppId: secret.Id}))
	for what, err := range map[string]error{"by name": hidden, "by id": byID} {
		if err == nil || err.Error() != unknown.Error() {
			t.Errorf("a hidden app %s: %v, an unknown one: %v", what, err, unknown)
		}
	}
}

// TestStrangersSendLittle: whoever has no certificate of the broker cannot make it take
// large messages into memory, whichever call it names.
func TestStrangersSendLittle(t *testing.T) {
	w := newWorld(t)
	d := w.stranger("nobody")
	large := strings.Repeat("x", 1<<20)
	enrolment := controlv1connect.NewEnrollServiceClient(d.http, w.where().BaseURL())
	_, err := enrolment.JoinConnector(w.ctx(), connect.NewRequest(&controlv1.JoinConnectorRequest{Name: large}))
	if connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("a join of 1 MiB: %v", err)
	}
	_, err = d.api.Why(w.ctx(), connect.NewRequest(&controlv1.WhyRequest{Query: large}))
	if connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("a question of 1 MiB: %v", err)
	}
}

// TestHealthIsBounded: a connector cannot fill the row that every decision reads.
func TestHealthIsBounded(t *testing.T) {
	w := newWorld(t)
	s := w.connector("berlin-1", w.site("berlin"))
	joined, err := s.store.Load()
	if err != nil {
		t.Fatal(err)
	}
	api := controlv1connect.NewConnectorServiceClient(memberClient(t, w, s.store, joined), w.where().BaseURL())
	_, err = api.Health(w.ctx(), connect.NewRequest(&controlv1.HealthRequest{Version: strings.Repeat("x", 1<<20)}))
	if connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("a report of 1 MiB: %v", err)
	}
}

// memberClient calls the broker as a connector that has joined.
func memberClient(t *testing.T, w *world, store *enroll.Store, joined enroll.Membership) *http.Client {
	t.Helper()
	m, err := control.NewMember(store.Key(), joined.Chain, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := control.NewClient(control.ClientConfig{Broker: w.where(), Certificate: m.Certificate})
	t.Cleanup(c.CloseIdleConnections)
	return c
}
