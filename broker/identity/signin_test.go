package identity_test

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/broker/identity"
	"github.com/postern-zt/postern/broker/identity/identitytest"
	"github.com/postern-zt/postern/proto/ids"
)

func TestPasswordSignInGivesTokensForTheDeviceOnly(t *testing.T) {
	w := newWorld(t)
	u := w.ann()
	tokens := w.mustSignIn(annPerson())
	who, err := w.svc.Verifier().Verify(t.Context(), tokens.Access, w.target.Device)
	if err != nil {
		t.Fatal(err)
	}
	if who.User != u.ID || who.Issuer != directory.Local || who.Key != w.target.Device || len(who.AMR) != 1 || who.AMR[0] != "pwd" || who.ACR == "" {
		t.Errorf("identity = %+v", who)
	}
	if age := w.now().Sub(who.AuthTime); age < 0 || age > time.Minute {
		t.Errorf("auth_time is %v ago", age)
	}
	for name, c := range map[string]struct {
		token string
		peer  ids.KeyID
		want  identity.Reason
	}{
		"another device":      {tokens.Access, ids.KeyIDOf([]byte("thief")), identity.ReasonTokenKey},
		"no device":           {tokens.Access, ids.KeyID{}, identity.ReasonTokenKey},
		"id token":            {tokens.ID, w.target.Device, identity.ReasonTokenAudience},
		"refresh token":       {tokens.Refresh, w.target.Device, identity.ReasonTokenMalformed},
		"nothing":             {"", w.target.Device, identity.ReasonTokenMalformed},
		"too long":            {strings.Repeat("a", 1<<17), w.target.Device, identity.ReasonTokenMalformed},
		"changed payload":     {flip(tokens.Access, 1), w.target.Device, identity.ReasonTokenSignature},
		"changed signature":   {flip(tokens.Access, 2), w.target.Device, identity.ReasonTokenSignature},
		"alg none":            {"eyJhbGciOiJub25lIn0." + strings.Split(tokens.Access, ".")[1] + ".", w.target.Device, identity.ReasonTokenAlgorithm},
		"alg HS256 by header": {"eyJhbGciOiJIUzI1NiJ9." + strings.Split(tokens.Access, ".")[1] + ".AAAA", w.target.Device, identity.ReasonTokenAlgorithm},
	} {
		if got := w.verify(c.token, c.peer); got != c.want {
			t.Errorf("%s: reason %q, want %q", name, got, c.want)
		}
	}
	w.later(11 * time.Minute)
	if got := w.verify(tokens.Access, w.target.Device); got != identity.ReasonTokenExpired {
		t.Errorf("after its time: reason %q", got)
	}
}

// flip changes a character in the middle of one part of a token.
func flip(token string, part int) string {
	parts := strings.Split(token, ".")
	b := []byte(parts[part])
	if b[len(b)/2] == 'A' {
		b[len(b)/2] = 'B'
	} else {
		b[len(b)/2] = 'A'
	}
	parts[part] = string(b)
	return strings.Join(parts, ".")
}

func TestTokenOfAnotherBrokerIsRefused(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	other.ann()
	tokens := other.mustSignIn(annPerson())
	if got := w.verify(tokens.Access, w.target.Device); got != identity.ReasonTokenSignature {
		t.Errorf("foreign key: reason %q", got)
	}
	w.keys.use("other", other.keys.signer) // even a shared key does not make a shared issuer
	if got := w.verify(tokens.Access, w.target.Device); got != identity.ReasonTokenIssuer {
		t.Errorf("foreign issuer: reason %q", got)
	}
}

func TestSigningKeyRotates(t *testing.T) {
	w := newWorld(t)
	w.ann()
	before := w.mustSignIn(annPerson())
	w.keys.rotate(t, "second")
	after := w.mustSignIn(annPerson())
	for name, token := range map[string]string{"old": before.Access, "new": after.Access} {
		if got := w.verify(token, w.target.Device); got != "" {
			t.Errorf("%s key: reason %q", name, got)
		}
	}
	w.keys.forget("first")
	if got := w.verify(before.Access, w.target.Device); got == "" {
		t.Error("a token under a key that is gone was accepted")
	}
	if got := w.verify(after.Access, w.target.Device); got != "" {
		t.Errorf("new key alone: reason %q", got)
	}
}

func TestRefreshRotatesAndReuseEndsTheFamily(t *testing.T) {
	w := newWorld(t)
	w.ann()
	first := w.mustSignIn(annPerson())
	second, err := identitytest.Refresh(t.Context(), w.target, first.Refresh)
	if err != nil || second.Refresh == first.Refresh || w.verify(second.Access, w.target.Device) != "" {
		t.Fatalf("refresh: %v", err)
	}
	if _, err := identitytest.Refresh(t.Context(), w.target, first.Refresh); err == nil {
		t.Error("a used refresh token was accepted")
	}
	if _, err := identitytest.Refresh(t.Context(), w.target, second.Refresh); err == nil {
		t.Error("the family of a reused token lives on")
	}
}

func TestRefreshDoesNotOutliveTheSignIn(t *testing.T) {
	w := newWorld(t)
	w.ann()
	tokens := w.mustSignIn(annPerson())
	w.later(20 * 24 * time.Hour)
	tokens, err := identitytest.Refresh(t.Context(), w.target, tokens.Refresh)
	if err != nil {
		t.Fatal(err)
	}
	w.later(11 * 24 * time.Hour)
	if _, err := identitytest.Refresh(t.Context(), w.target, tokens.Refresh); err == nil {
		t.Error("rotation prolonged the sign-in")
	}
}

func TestDisabledUserIsRefusedEverywhere(t *testing.T) {
	w := newWorld(t)
	u := w.ann()
	tokens := w.mustSignIn(annPerson())
	if err := w.svc.Disable(t.Context(), u.ID); err != nil {
		t.Fatal(err)
	}
	if got := w.verify(tokens.Access, w.target.Device); got != identity.ReasonUserDisabled {
		t.Errorf("access token: reason %q", got)
	}
	if _, err := identitytest.Refresh(t.Context(), w.target, tokens.Refresh); err == nil {
		t.Error("refresh was accepted")
	}
	if _, err := identitytest.SignIn(t.Context(), w.target, annPerson()); err == nil {
		t.Error("sign-in was accepted")
	}
	if err := w.svc.Enable(t.Context(), u.ID); err != nil {
		t.Fatal(err)
	}
	w.mustSignIn(annPerson())
}

func TestAuthorizeRefuses(t *testing.T) {
	w := newWorld(t)
	good := url.Values{
		"client_id": {identity.ClientID}, "response_type": {"code"}, "redirect_uri": {"http://127.0.0.1:4000/callback"},
		"scope": {"openid postern:device:" + w.target.Device.String()}, "state": {"s"}, "nonce": {"n"},
		"code_challenge": {oauth2.S256ChallengeFromVerifier("v")}, "code_challenge_method": {"S256"},
	}
	cases := map[string]struct{ field, value string }{
		"as it should be":         {"state", "t"},
		"no PKCE":                 {"code_challenge", ""},
		"plain PKCE":              {"code_challenge_method", "plain"},
		"no device":               {"scope", "openid"},
		"two devices":             {"scope", "openid postern:device:" + w.target.Device.String() + " postern:device:" + strings.Repeat("0", 64)},
		"short device":            {"scope", "openid postern:device:00"},
		"no openid":               {"scope", "postern:device:" + w.target.Device.String()},
		"redirect elsewhere":      {"redirect_uri", "http://192.0.2.1:4000/callback"},
		"redirect to https":       {"redirect_uri", "https://127.0.0.1:4000/callback"},
		"redirect to other path":  {"redirect_uri", "http://127.0.0.1:4000/other"},
		"redirect to userinfo":    {"redirect_uri", "http://a@127.0.0.1:4000/callback"},
		"redirect to a subdomain": {"redirect_uri", "http://127.0.0.1.example.com/callback"},
		"another client":          {"client_id", "somebody"},
		"implicit":                {"response_type", "id_token token"},
		"form post":               {"response_mode", "form_post"},
		"prompt none":             {"prompt", "none"},
	}
	for name, c := range cases {
		q := url.Values{}
		for k, v := range good {
			q[k] = v
		}
		q.Set(c.field, c.value)
		page, err := identitytest.NewBrowser(w.target.Transport).Open(t.Context(), w.target.Issuer+"/oauth/authorize?"+q.Encode())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		accepted := page.Callback == nil && page.Status == http.StatusOK && page.URL.Path == "/login"
		if accepted != (name == "as it should be") {
			t.Errorf("%s: accepted = %v, status %d, %s", name, accepted, page.Status, page.Text)
		}
		if strings.HasPrefix(name, "redirect") && page.Callback != nil {
			t.Errorf("%s: the browser was sent to %s", name, page.Callback)
		}
	}
}

// begin opens the sign-in page of a fresh flow.
func (w *world) begin() (*identitytest.Browser, *identitytest.Page, string) {
	w.t.Helper()
	b, verifier := identitytest.NewBrowser(w.target.Transport), oauth2.GenerateVerifier()
	page, err := b.Open(w.t.Context(), w.target.Client().AuthCodeURL("state", oauth2.S256ChallengeOption(verifier)))
	if err != nil {
		w.t.Fatal(err)
	}
	return b, page, verifier
}

func TestFlowBelongsToItsBrowser(t *testing.T) {
	w := newWorld(t)
	w.ann()
	thief, page, _ := w.begin()
	login := page.URL.String()
	victim := identitytest.NewBrowser(w.target.Transport)
	opened, err := victim.Open(t.Context(), login)
	if err != nil || opened.Status != http.StatusBadRequest {
		t.Fatalf("another browser sees the sign-in: %v, %+v", err, opened)
	}
	// The browser that started may go on, and nobody else gets the code.
	if page, err = annPerson().FillIn(t.Context(), page); err != nil || page.Callback == nil {
		t.Fatalf("own browser: %v", err)
	}
	_, page, _ = w.begin()
	id := page.URL.Query().Get("request")
	early, err := thief.Open(t.Context(), w.target.Issuer+"/oauth/authorize/callback?id="+id)
	if err != nil || early.Callback != nil || early.Status != http.StatusBadRequest {
		t.Errorf("callback of another browser's flow: %v, %+v", err, early)
	}
}

func TestCodeWorksOnceAndNeedsItsVerifier(t *testing.T) {
	w := newWorld(t)
	w.ann()
	client, ctx := w.target.Client(), w.target.Context(t.Context())
	code := func() (string, string) {
		_, page, verifier := w.begin()
		page, err := annPerson().FillIn(t.Context(), page)
		if err != nil || page.Callback == nil {
			t.Fatalf("sign in: %v", err)
		}
		return page.Callback.Query().Get("code"), verifier
	}
	c, verifier := code()
	if _, err := client.Exchange(ctx, c, oauth2.VerifierOption(verifier)); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Exchange(ctx, c, oauth2.VerifierOption(verifier)); err == nil {
		t.Error("a code worked twice")
	}
	c, _ = code()
	if _, err := client.Exchange(ctx, c, oauth2.VerifierOption(oauth2.GenerateVerifier())); err == nil {
		t.Error("a code worked with another verifier")
	}
	c, verifier = code()
	w.later(2 * time.Minute)
	if _, err := client.Exchange(ctx, c, oauth2.VerifierOption(verifier)); err == nil {
		t.Error("a code worked after its minute")
	}
}

// csrfField differs between browsers by design.
var csrfField = regexp.MustCompile(`request=\S+`)

func TestWrongPasswordAndUnknownUserLookTheSame(t *testing.T) {
	w := newWorld(t)
	u := w.ann()
	if _, _, err := w.svc.CreateUser(t.Context(), "bob", "", ""); err != nil { // invited, no password yet
		t.Fatal(err)
	}
	disabled, _, err := w.svc.CreateUser(t.Context(), "eve", "", "")
	if err == nil {
		err = w.svc.SetPassword(t.Context(), disabled.ID, identity.NewSecret(password))
	}
	if err == nil {
		err = w.svc.Disable(t.Context(), disabled.ID)
	}
	if err != nil {
		t.Fatal(err)
	}
	var seen string
	for name, who := range map[string]identitytest.Person{
		"wrong password": {Login: "ann", Password: "incorrect horse"},
		"unknown":        {Login: "nobody", Password: password},
		"no password":    {Login: "bob", Password: password},
		"disabled":       {Login: "eve", Password: password},
		"empty":          {Login: "bob", Password: ""},
		"by id":          {Login: string(u.ID), Password: password},
	} {
		_, page, _ := w.begin()
		page, err := who.FillIn(t.Context(), page)
		if err != nil {
			t.Fatal(err)
		}
		got := csrfField.ReplaceAllString(http.StatusText(page.Status)+" "+page.Text, "")
		if !strings.Contains(got, "password is wrong") || strings.Contains(got, "too many") {
			t.Errorf("%s: %q", name, got)
		}
		if page.Status != http.StatusUnauthorized || (seen != "" && got != seen) {
			t.Errorf("%s: %q, want %q", name, got, seen)
		}
		seen = got
		if reason := w.metrics.last(); reason != identity.ReasonUnverified {
			t.Errorf("%s: reason %q", name, reason)
		}
	}
}

func TestGuessingIsThrottledAndDecays(t *testing.T) {
	w := newWorld(t)
	w.ann()
	wrong := identitytest.Person{Login: "ANN ", Password: "incorrect horse"}
	for range 7 {
		_, _ = identitytest.SignIn(t.Context(), w.target, wrong) // each one is refused
	}
	if _, err := identitytest.SignIn(t.Context(), w.target, annPerson()); err == nil {
		t.Error("the right password worked during the lockout")
	}
	if got := w.metrics.last(); got != identity.ReasonThrottled {
		t.Errorf("reason %q", got)
	}
	w.later(2 * time.Minute)
	w.mustSignIn(annPerson())
}

// TestThrottledSignInSaysSo: whether the login exists or not, and whatever the password.
func TestThrottledSignInSaysSo(t *testing.T) {
	w := newWorld(t)
	w.ann()
	for _, who := range []identitytest.Person{annPerson(), {Login: "nobody", Password: password}} {
		for range 7 {
			_, _ = identitytest.SignIn(t.Context(), w.target, identitytest.Person{Login: who.Login, Password: "incorrect horse"})
		}
		_, page, _ := w.begin()
		page, err := who.FillIn(t.Context(), page)
		if err != nil {
			t.Fatal(err)
		}
		if page.Status != http.StatusUnauthorized || !strings.Contains(page.Text, "too many attempts. Wait") || strings.Contains(page.Text, "is wrong") {
			t.Errorf("%s: status %d: %s", who.Login, page.Status, page.Text)
		}
	}
}

func TestSetPasswordSignsOutElsewhere(t *testing.T) {
	w := newWorld(t)
	u := w.ann()
	tokens := w.mustSignIn(annPerson())
	wantErr(t, w.svc.SetPassword(t.Context(), u.ID, identity.NewSecret("short")), identity.ErrPassword)
	wantErr(t, w.svc.SetPassword(t.Context(), u.ID, identity.NewSecret("aaaaaaaaaaaaaaaa")), identity.ErrPassword)
	if err := w.svc.SetPassword(t.Context(), u.ID, identity.NewSecret("another good password")); err != nil {
		t.Fatal(err)
	}
	if _, err := identitytest.Refresh(t.Context(), w.target, tokens.Refresh); err == nil {
		t.Error("a refresh token outlived the password")
	}
	if _, err := identitytest.SignIn(t.Context(), w.target, annPerson()); err == nil {
		t.Error("the old password works")
	}
}

func TestRevokeEndsARefreshToken(t *testing.T) {
	w := newWorld(t)
	w.ann()
	tokens := w.mustSignIn(annPerson())
	c := &http.Client{Transport: w.target.Transport}
	resp, err := c.PostForm(w.target.Issuer+"/oauth/revoke", url.Values{"token": {tokens.Refresh}, "client_id": {identity.ClientID}})
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("revoke: %v, %v", err, resp)
	}
	if err := resp.Body.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := identitytest.Refresh(t.Context(), w.target, tokens.Refresh); err == nil {
		t.Error("a revoked token works")
	}
}
