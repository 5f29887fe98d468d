package identity_test

import (
	"net/http"
	"net/url"
	"slices"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/broker/identity"
	"github.com/postern-zt/postern/broker/identity/identitytest"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/test/fakeidp"
)

func deviceName(name string) oauth2.AuthCodeOption {
	return oauth2.SetAuthURLParam("device_name", name)
}

// company adds a fake identity provider with one employee who is signed in there.
func (w *world) company() (*fakeidp.Server, identity.Issuer) {
	w.t.Helper()
	idp := fakeidp.Start(w.t, carol())
	idp.SignInAs("carol-1")
	i, err := w.svc.SaveIssuer(w.t.Context(), identity.Issuer{
		Name: "Example Corp", URL: idp.URL(), ClientID: fakeidp.ClientID, ClientSecret: identity.NewSecret(fakeidp.ClientSecret),
		Claims: directory.ClaimMap{Attributes: map[string]string{"department": "org.unit"}},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return idp, i
}

func carol() fakeidp.User {
	return fakeidp.User{Subject: "carol-1", Groups: []string{"engineering", "on-call"}, Claims: map[string]any{
		"name": "Carol", "email": "carol@example.com", "preferred_username": "carol", "org": map[string]any{"unit": "R&D"},
	}}
}

func atCompany() identitytest.Person { return identitytest.Person{Provider: "Example Corp"} }

// carolNow returns the directory's view and the names of the groups.
func (w *world) carolNow(issuer ids.IssuerID) (directory.User, []string) {
	w.t.Helper()
	u, err := w.dir.UserBySubject(w.t.Context(), issuer, "carol-1")
	if err != nil {
		w.t.Fatal(err)
	}
	var names []string
	for _, id := range u.Groups {
		g, err := w.dir.Group(w.t.Context(), id)
		if err != nil {
			w.t.Fatal(err)
		}
		names = append(names, g.Name)
	}
	slices.Sort(names)
	return u, names
}

func TestExternalSignIn(t *testing.T) {
	w := newWorld(t)
	_, issuer := w.company()
	tokens := w.mustSignIn(atCompany())
	who, err := w.svc.Verifier().Verify(t.Context(), tokens.Access, w.target.Device)
	if err != nil || who.Issuer != issuer.ID || who.ACR != "mfa" || !slices.Equal(who.AMR, []string{"pwd", "otp"}) {
		t.Fatalf("identity = %+v, %v", who, err)
	}
	u, groups := w.carolNow(issuer.ID)
	if u.ID != who.User || u.Name != "Carol" || u.Mail != "carol@example.com" || u.Login != "carol" || u.GroupsIncomplete ||
		!slices.Equal(groups, []string{"engineering", "on-call"}) || !slices.Equal(u.Attributes["department"], []string{"R&D"}) {
		t.Errorf("user = %+v, groups %v", u, groups)
	}
	again := w.mustSignIn(atCompany())
	if who2, err := w.svc.Verifier().Verify(t.Context(), again.Access, w.target.Device); err != nil || who2.User != who.User {
		t.Errorf("second sign-in is another user: %+v, %v", who2, err)
	}
	if tokens, err := identitytest.SignInDevice(t.Context(), w.target, atCompany(), true); err != nil || w.verify(tokens.Access, w.target.Device) != "" {
		t.Errorf("device flow: %v", err)
	}
}

func TestExternalTokenFaultsHaveTheirReasons(t *testing.T) {
	w := newWorld(t)
	idp, issuer := w.company()
	for fault, want := range map[fakeidp.Fault]identity.Reason{
		fakeidp.WrongAudience: identity.ReasonTokenAudience,
		fakeidp.WrongParty:    identity.ReasonTokenAudience,
		fakeidp.WrongIssuer:   identity.ReasonTokenIssuer,
		fakeidp.WrongNonce:    identity.ReasonTokenNonce,
		fakeidp.AlgNone:       identity.ReasonTokenAlgorithm,
		fakeidp.AlgSymmetric:  identity.ReasonTokenAlgorithm,
		fakeidp.WrongKey:      identity.ReasonTokenSignature,
		fakeidp.Expired:       identity.ReasonTokenExpired,
		fakeidp.NotYet:        identity.ReasonTokenNotYet,
		fakeidp.NoIDToken:     identity.ReasonTokenMalformed,
		fakeidp.ClientUnknown: identity.ReasonIdPRefused,
	} {
		idp.Misbehave(fault)
		if _, err := identitytest.SignIn(t.Context(), w.target, atCompany()); err == nil {
			t.Errorf("%s: signed in", fault)
		}
		if got := w.metrics.last(); got != want {
			t.Errorf("%s: reason %q, want %q", fault, got, want)
		}
	}
	if _, err := w.dir.UserBySubject(t.Context(), issuer.ID, "carol-1"); err == nil {
		t.Error("a refused sign-in left a user behind")
	}
	idp.Misbehave(fakeidp.None)
	w.mustSignIn(atCompany())
}

func TestExternalStateWorksOnceAndInItsBrowser(t *testing.T) {
	w := newWorld(t)
	w.company()
	b, page, _ := w.begin()
	page, err := page.Follow(t.Context(), "Sign in with Example Corp")
	if err != nil || page.Callback == nil {
		t.Fatalf("sign in: %v", err)
	}
	for name, query := range map[string]url.Values{
		"unknown state": {"state": {"x"}, "code": {"y"}},
		"no state":      {"code": {"y"}},
	} {
		page, err := b.Open(t.Context(), w.target.Issuer+"/login/return?"+query.Encode())
		if err != nil || page.Status != http.StatusBadRequest {
			t.Errorf("%s: %v, status %d", name, err, page.Status)
		}
	}
	// A state that one browser started does nothing in another.
	back := w.externalReturn()
	stolen, err := identitytest.NewBrowser(w.target.Transport).Open(t.Context(), back)
	if err != nil || stolen.Status != http.StatusBadRequest || stolen.Callback != nil {
		t.Errorf("another browser: %v, %+v", err, stolen)
	}
}

// externalReturn walks to the provider and stops before coming back: the address that the
// provider sends the browser to.
func (w *world) externalReturn() string {
	w.t.Helper()
	transport := &stopAtReturn{next: w.target.Transport}
	target := w.target
	target.Transport = transport
	_, err := identitytest.SignIn(w.t.Context(), target, atCompany())
	if err == nil || transport.seen == "" {
		w.t.Fatalf("the browser did not come back: %v", err)
	}
	return transport.seen
}

type stopAtReturn struct {
	next http.RoundTripper
	seen string
}

func (s *stopAtReturn) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Path == "/login/return" {
		s.seen = r.URL.String()
		return nil, http.ErrAbortHandler
	}
	return s.next.RoundTrip(r)
}

func TestTooManyGroupsIsNotNoGroups(t *testing.T) {
	w := newWorld(t)
	idp, issuer := w.company()
	w.mustSignIn(atCompany())
	idp.Misbehave(fakeidp.GroupsOverage)
	w.mustSignIn(atCompany())
	u, groups := w.carolNow(issuer.ID)
	if !u.GroupsIncomplete || len(groups) != 2 {
		t.Errorf("after an overage: incomplete %v, groups %v", u.GroupsIncomplete, groups)
	}
	idp.Misbehave(fakeidp.None)
	w.mustSignIn(atCompany())
	if u, _ := w.carolNow(issuer.ID); u.GroupsIncomplete {
		t.Error("a complete list did not end the state")
	}
}

func TestReverifySeesWhoMovedAndWhoLeft(t *testing.T) {
	w := newWorld(t)
	idp, issuer := w.company()
	tokens := w.mustSignIn(atCompany())
	u, _ := w.carolNow(issuer.ID)
	moved := carol()
	moved.Groups = []string{"sales"}
	idp.SetUser(moved)
	for range 2 { // the provider rotates its refresh tokens: the kept one is always the newest
		if got, err := w.svc.Reverify(t.Context(), u.ID); got != identity.OutcomeFresh || err != nil {
			t.Fatalf("Reverify = %s, %v", got, err)
		}
	}
	if _, groups := w.carolNow(issuer.ID); !slices.Equal(groups, []string{"sales"}) {
		t.Errorf("groups = %v", groups)
	}
	idp.Misbehave(fakeidp.NoIDToken) // then userinfo answers
	moved.Groups = []string{"support"}
	idp.SetUser(moved)
	if got, err := w.svc.Reverify(t.Context(), u.ID); got != identity.OutcomeFresh || err != nil {
		t.Fatalf("by userinfo: %s, %v", got, err)
	}
	if _, groups := w.carolNow(issuer.ID); !slices.Equal(groups, []string{"support"}) {
		t.Errorf("groups = %v", groups)
	}
	moved.Disabled = true
	idp.SetUser(moved)
	if got, err := w.svc.Reverify(t.Context(), u.ID); got != identity.OutcomeRefused || err != nil {
		t.Fatalf("disabled there: %s, %v", got, err)
	}
	if got := w.verify(tokens.Access, w.target.Device); got != identity.ReasonRevoked {
		t.Errorf("access token: reason %q", got)
	}
	if _, err := identitytest.Refresh(t.Context(), w.target, tokens.Refresh); err == nil {
		t.Error("refresh was accepted")
	}
	idp.SetUser(carol())
	idp.Misbehave(fakeidp.None)
	if got := w.verify(w.mustSignIn(atCompany()).Access, w.target.Device); got != "" {
		t.Errorf("after coming back: reason %q", got)
	}
}

func TestReverifyWhileTheIssuerIsDownIsStale(t *testing.T) {
	w := newWorld(t)
	idp, issuer := w.company()
	tokens := w.mustSignIn(atCompany())
	u, _ := w.carolNow(issuer.ID)
	idp.Down(true)
	if got, err := w.svc.AskedOf(t.Context(), u.ID); got != issuer.ID || err != nil {
		t.Fatalf("asked of %q, %v", got, err)
	}
	if got, err := w.svc.Reverify(t.Context(), u.ID); got != identity.OutcomeStale || err != nil {
		t.Fatalf("down: %s, %v", got, err)
	}
	if u, _ := w.carolNow(issuer.ID); u.Identity != directory.IdentityStale || !u.Usable() {
		t.Errorf("user = %+v", u)
	}
	if got := w.verify(tokens.Access, w.target.Device); got != "" {
		t.Errorf("the session does not go on: reason %q", got)
	}
	if _, err := identitytest.SignIn(t.Context(), w.target, atCompany()); err == nil {
		t.Error("signed in at an issuer that is down")
	}
	idp.Down(false)
	for _, fault := range []fakeidp.Fault{fakeidp.ClientUnknown, fakeidp.WrongKey, fakeidp.Expired} {
		idp.Misbehave(fault) // says nothing about the person
		if got, err := w.svc.Reverify(t.Context(), u.ID); got != identity.OutcomeStale || err != nil {
			t.Errorf("%s: %s, %v", fault, got, err)
		}
	}
	idp.Misbehave(fakeidp.None)
	w.later(time.Minute)
	if got, err := w.svc.Reverify(t.Context(), u.ID); got != identity.OutcomeFresh || err != nil {
		t.Fatalf("up again: %s, %v", got, err)
	}
	if u, _ := w.carolNow(issuer.ID); u.Identity != directory.IdentityFresh {
		t.Errorf("user = %+v", u)
	}
	idp.Misbehave(fakeidp.WrongSubject)
	if got, err := w.svc.Reverify(t.Context(), u.ID); got != identity.OutcomeRefused || err != nil {
		t.Errorf("another subject: %s, %v", got, err)
	}
}

func TestReverifyOfLocalAndUnknownUsers(t *testing.T) {
	w := newWorld(t)
	u := w.ann()
	if got, err := w.svc.Reverify(t.Context(), u.ID); got != identity.OutcomeFresh || err != nil {
		t.Errorf("local: %s, %v", got, err)
	}
	if got, err := w.svc.AskedOf(t.Context(), u.ID); got != "" || err != nil {
		t.Errorf("local: asked of %q, %v", got, err)
	}
	if err := w.svc.Disable(t.Context(), u.ID); err != nil {
		t.Fatal(err)
	}
	for _, id := range []ids.UserID{u.ID, ids.New[ids.UserID]()} {
		if got, err := w.svc.Reverify(t.Context(), id); got != identity.OutcomeRefused || err != nil {
			t.Errorf("%s: %s, %v", id, got, err)
		}
	}
}

func TestIssuerKeysRotate(t *testing.T) {
	w := newWorld(t)
	idp, _ := w.company()
	w.mustSignIn(atCompany())
	reads := idp.KeyReads()
	w.mustSignIn(atCompany())
	if idp.KeyReads() != reads {
		t.Error("known keys were read again")
	}
	idp.RotateKeys()
	w.later(time.Minute)
	w.mustSignIn(atCompany())
	reads = idp.KeyReads()
	idp.Misbehave(fakeidp.WrongKey)
	for range 5 { // useless reads pause
		_, _ = identitytest.SignIn(t.Context(), w.target, atCompany()) // each one is refused
	}
	if idp.KeyReads() > reads+1 {
		t.Errorf("%d reads for invented signatures", idp.KeyReads()-reads)
	}
}

func TestIssuersAreTestedBeforeTheyAreSaved(t *testing.T) {
	w := newWorld(t)
	idp, saved := w.company()
	second := fakeidp.Start(t)
	good := identity.Issuer{Name: "Second", URL: second.URL(), ClientID: "c", ClientSecret: identity.NewSecret("s")}
	for name, change := range map[string]func(*identity.Issuer){
		"nobody there":        func(i *identity.Issuer) { i.URL = "http://127.0.0.1:1" },
		"other spelling":      func(i *identity.Issuer) { i.URL += "/" },
		"not https":           func(i *identity.Issuer) { i.URL = "http://idp.example" },
		"no URL":              func(i *identity.Issuer) { i.URL = "" },
		"a known one":         func(i *identity.Issuer) { i.URL = idp.URL() },
		"no name":             func(i *identity.Issuer) { i.Name = "" },
		"no client":           func(i *identity.Issuer) { i.ClientID = "" },
		"unknown id":          func(i *identity.Issuer) { i.ID = ids.New[ids.IssuerID]() },
		"attribute of no one": func(i *identity.Issuer) { i.Claims.Attributes = map[string]string{"a": ""} },
	} {
		i := good
		change(&i)
		if _, err := w.svc.SaveIssuer(t.Context(), i); err == nil {
			t.Errorf("%s was saved", name)
		}
	}
	saved.Name, saved.ClientSecret = "Renamed", identity.Secret{} // the stored secret stays
	if _, err := w.svc.SaveIssuer(t.Context(), saved); err != nil {
		t.Fatal(err)
	}
	w.mustSignIn(identitytest.Person{Provider: "Renamed"})
	list, err := w.svc.Issuers(t.Context())
	if err != nil || len(list) != 1 || !list[0].ClientSecret.IsZero() {
		t.Fatalf("Issuers = %v, %v", list, err)
	}
	if err := w.svc.DeleteIssuer(t.Context(), saved.ID); err != nil {
		t.Fatal(err)
	}
	u, _ := w.carolNow(saved.ID)
	if got, err := w.svc.Reverify(t.Context(), u.ID); got != identity.OutcomeStale || err != nil {
		t.Errorf("deleted issuer: %s, %v", got, err)
	}
}
