package scenario

import (
	"bytes"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/oauth2"

	"github.com/postern-zt/postern/broker/identity/identitytest"
	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/platform/ipc"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	"github.com/postern-zt/postern/proto/admin/v1/adminv1connect"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/test/fakeidp"
)

// reverifyPatience is how long the broker has to ask issuers again: it looks every 30 s.
const reverifyPatience = 3 * patience

// slowly is eventually for what takes longer and must not be asked often.
func slowly(t testing.TB, what string, ok func() bool) {
	t.Helper()
	late := time.After(reverifyPatience)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("never: %s", what)
		}
	}
}

func (w *world) issuers() adminv1connect.IssuerServiceClient {
	transport := ipc.Transport(w.cfg.AdminSocket)
	w.t.Cleanup(transport.CloseIdleConnections)
	return adminv1connect.NewIssuerServiceClient(&http.Client{Transport: transport}, "http://broker")
}

// company is an issuer with one employee, who is signed in there.
func (w *world) company(name, employee, group string) *fakeidp.Server {
	w.t.Helper()
	idp := fakeidp.Start(w.t, employeeOf(employee, group, false))
	idp.SignInAs(employee)
	resp, err := w.issuers().AddIssuer(w.ctx(), connect.NewRequest(companyRequest(name, idp.URL())))
	made := must(w.t, resp, err)
	if at := w.where().BaseURL() + "/login/return"; made.ReturnUrl != at || made.Issuer.Id == "" {
		w.t.Errorf("added %v, want the return URL %s", made, at)
	}
	return idp
}

func employeeOf(subject, group string, disabled bool) fakeidp.User {
	return fakeidp.User{Subject: subject, Disabled: disabled, Claims: map[string]any{
		"name": subject, "preferred_username": subject, "realm": map[string]any{"roles": []string{group}},
	}}
}

func companyRequest(name, at string) *adminv1.AddIssuerRequest {
	return &adminv1.AddIssuerRequest{
		Name: name, Url: at, ClientId: fakeidp.ClientID, ClientSecret: fakeidp.ClientSecret,
		Claims: &adminv1.ClaimMap{Groups: "realm.roles"},
	}
}

// employee enrols a device of whoever is signed in at an issuer.
func (w *world) employee(issuer, name string) *device {
	w.t.Helper()
	d := w.stranger(name)
	tokens, err := identitytest.SignIn(w.ctx(), w.signInAt(d.member.KeyID()), identitytest.Person{Provider: issuer})
	if err != nil {
		w.t.Fatalf("sign in with %s: %v", issuer, err)
	}
	if err := d.redeem(tokens); err != nil {
		w.t.Fatalf("enrol %s: %v", name, err)
	}
	d.report(map[string]string{})
	d.watch()
	return d
}

func (w *world) allowGroup(group, app string) {
	w.t.Helper()
	resp, err := w.admin.rules.PutRule(w.ctx(), connect.NewRequest(&adminv1.PutRuleRequest{
		Effect: "allow", Groups: []string{group}, Apps: []string{app},
	}))
	must(w.t, resp, err)
}

// sessionsAge lets every session's last confirmation be older than a confirmation lasts.
func (w *world) sessionsAge() {
	w.t.Helper()
	w.exec(`UPDATE sessions SET last_verified = last_verified - 360000`)
}

// TestFaultIssuer: people of two identity providers use an app by groups from claims. Then
// one provider is down and its people go on; the other one has disabled somebody, whose
// access ends by itself; at last keys are rotated.
func TestFaultIssuer(t *testing.T) {
	wiki := echo(t)
	w := newWorld(t)
	w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	corp, partner := w.company("Corp", "carol", "engineering"), w.company("Partner", "dave", "contractors")
	carol, dave := w.employee("Corp", "carol-laptop"), w.employee("Partner", "dave-laptop")
	carol.denied("wiki")
	w.allowGroup("engineering", "wiki")
	w.allowGroup("contractors", "wiki")
	ones, others := goLive(carol, "wiki", carrier.TLS, wiki.port()), goLive(dave, "wiki", carrier.QUIC, wiki.port())

	corp.Down(true)
	partner.SetUser(employeeOf("dave", "contractors", true))
	w.sessionsAge()
	w.run("down: sign-in", func(t *testing.T) { downAtSignIn(t, w) })
	w.run("disabled: access ends", func(t *testing.T) { disabledThere(t, w, others) })
	w.run("down: the session goes on", func(t *testing.T) {
		slowly(t, "the session is marked stale", func() bool { return w.count("sessions WHERE ended_at = 0 AND stale LIKE '%identity_stale%'") == 1 })
		ones.alive()
		carol.granted("wiki")
	})
	corp.Down(false)
	w.run("keys rotated", func(t *testing.T) {
		corp.RotateKeys()
		target := w.signInAt(carol.member.KeyID())
		slowly(t, "sign-in under the new key", func() bool {
			_, err := identitytest.SignIn(w.ctx(), target, identitytest.Person{Provider: "Corp"})
			return err == nil
		})
	})
	w.secretIsNowhere(fakeidp.ClientSecret)
}

// downAtSignIn tells what a person sees when the provider stops answering: before it has
// seen them, and after it sent them back.
func downAtSignIn(t *testing.T, w *world) {
	target := w.signInAt(ids.KeyID{1})
	b := identitytest.NewBrowser(target.Transport)
	page, err := b.Open(w.ctx(), target.Client().AuthCodeURL("s", oauth2.S256ChallengeOption(oauth2.GenerateVerifier())))
	if err != nil {
		t.Fatal(err)
	}
	if page, err = page.Follow(w.ctx(), "Sign in with Corp"); err != nil || page.Status != http.StatusServiceUnavailable {
		t.Fatalf("the provider that is down: %+v, %v", page, err)
	}
	back := url.Values{"state": {page.URL.Query().Get("state")}, "code": {"a code that nobody can exchange"}}
	page, err = b.Open(w.ctx(), target.Issuer+"/login/return?"+back.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if page.Callback != nil || page.Status != http.StatusForbidden ||
		!strings.Contains(page.Text, "The identity provider does not answer") || !strings.Contains(page.Text, "Sessions that are open go on") {
		t.Errorf("status %d, callback %v: %s", page.Status, page.Callback, page.Text)
	}
}

// disabledThere waits until the broker has asked the provider and ended what was open.
func disabledThere(t *testing.T, w *world, l *live) {
	select {
	case <-l.dead:
	case <-time.After(reverifyPatience):
		t.Fatal("the flow of somebody who was disabled never ended")
	}
	if frame.CodeOf(l.err) != frame.Revoked {
		t.Errorf("the device heard %v", l.err)
	}
	l.refused("wiki", frame.Revoked)
	_, err := identitytest.SignIn(w.ctx(), w.signInAt(l.d.member.KeyID()), identitytest.Person{Provider: "Partner"})
	says(t, "sign-in of somebody disabled", err, "You could not be signed in")
}

// secretIsNowhere looks for a text in all files of the world and in the audit.
func (w *world) secretIsNowhere(secret string) {
	w.t.Helper()
	err := filepath.WalkDir(w.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(secret)) {
			w.t.Errorf("%s holds the client secret in the clear", filepath.Base(path))
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	resp, err := w.issuers().ListIssuers(w.ctx(), connect.NewRequest(&adminv1.ListIssuersRequest{}))
	if list := must(w.t, resp, err); len(list.Issuers) == 0 || strings.Contains(list.String(), secret) {
		w.t.Error("the list of issuers is empty or holds the client secret")
	}
}

// TestFaultIssuerSettings: settings that cannot work are refused with what is wrong, and
// leave nothing behind.
func TestFaultIssuerSettings(t *testing.T) {
	w := newWorld(t)
	idp := fakeidp.Start(t)
	api := w.issuers()
	add := func(change func(*adminv1.AddIssuerRequest)) error {
		m := companyRequest("Corp", idp.URL())
		change(m)
		_, err := api.AddIssuer(w.ctx(), connect.NewRequest(m))
		if err != nil && strings.Contains(err.Error(), fakeidp.ClientSecret) {
			t.Errorf("the error holds the client secret: %v", err)
		}
		return err
	}
	at := func(u string) func(*adminv1.AddIssuerRequest) {
		return func(m *adminv1.AddIssuerRequest) { m.Url = u }
	}
	says(t, "nobody there", add(at("http://127.0.0.1:1")), "failed_precondition", "cannot read its discovery", "http://127.0.0.1:1/.well-known/openid-configuration")
	says(t, "no issuer there", add(at(idp.URL()+"/elsewhere")), "failed_precondition", "404")
	says(t, "other spelling", add(at(idp.URL()+"/")), "invalid_argument", "exactly", idp.URL())
	says(t, "not https", add(at("http://idp.example")), "invalid_argument", "must be https")
	if err := add(at("https://me:hunter2@idp.example")); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a URL with a password: %v", err)
	}
	says(t, "no client", add(func(m *adminv1.AddIssuerRequest) { m.ClientId = "" }), "invalid_argument", "client id")
	idp.Down(true)
	says(t, "down", add(func(*adminv1.AddIssuerRequest) {}), "failed_precondition", "503")
	idp.Down(false)
	if resp, err := api.ListIssuers(w.ctx(), connect.NewRequest(&adminv1.ListIssuersRequest{})); len(must(t, resp, err).Issuers) != 0 {
		t.Errorf("kept: %v", resp.Msg)
	}
	if err := add(func(*adminv1.AddIssuerRequest) {}); err != nil {
		t.Fatal(err)
	}
	says(t, "the name again", add(at("https://idp.example")), "already_exists")
	w.changeIssuer(api, idp)
}

// changeIssuer changes, tests and removes the one issuer.
func (w *world) changeIssuer(api adminv1connect.IssuerServiceClient, idp *fakeidp.Server) {
	w.t.Helper()
	resp, err := api.UpdateIssuer(w.ctx(), connect.NewRequest(&adminv1.UpdateIssuerRequest{Issuer: "corp", Name: "Renamed", Scopes: []string{"groups"}}))
	if i := must(w.t, resp, err).Issuer; i.Name != "Renamed" || i.ClientId != fakeidp.ClientID || i.Claims.Groups != "realm.roles" || len(i.Scopes) != 1 {
		w.t.Errorf("updated: %v", i)
	}
	ref := connect.NewRequest(&adminv1.IssuerRef{Issuer: "Renamed"})
	resp, err = api.TestIssuer(w.ctx(), ref)
	must(w.t, resp, err)
	idp.Down(true)
	_, err = api.TestIssuer(w.ctx(), ref)
	says(w.t, "test while it is down", err, "cannot read its discovery")
	gone, err := api.RemoveIssuer(w.ctx(), ref)
	if must(w.t, gone, err).Text == "" {
		w.t.Error("removal says nothing of what stays open")
	}
	_, err = api.TestIssuer(w.ctx(), ref)
	says(w.t, "test of a removed one", err, "not_found")
}
