package identity_test

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/broker/identity"
	"github.com/postern-zt/postern/broker/identity/identitytest"
)

func TestDeviceFlow(t *testing.T) {
	w := newWorld(t)
	w.ann()
	tokens, err := identitytest.SignInDevice(t.Context(), w.target, annPerson(), true)
	if err != nil {
		t.Fatal(err)
	}
	who, err := w.svc.Verifier().Verify(t.Context(), tokens.Access, w.target.Device)
	if err != nil || who.ACR == "" || len(who.AMR) == 0 {
		t.Errorf("identity = %+v, %v", who, err)
	}
	if tokens, err = identitytest.Refresh(t.Context(), w.target, tokens.Refresh); err != nil || w.verify(tokens.Access, w.target.Device) != "" {
		t.Errorf("refresh: %v", err)
	}
	if _, err := identitytest.SignInDevice(t.Context(), w.target, annPerson(), false); err == nil {
		t.Error("a refused device got tokens")
	}
}

func TestDeviceCodeWorksOnce(t *testing.T) {
	w := newWorld(t)
	w.ann()
	client, ctx := w.target.Client(), w.target.Context(t.Context())
	code, err := client.DeviceAuth(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := identitytest.Decide(ctx, w.target, annPerson(), code.VerificationURIComplete, true); err != nil {
		t.Fatal(err)
	}
	if err := identitytest.Decide(ctx, w.target, annPerson(), code.VerificationURIComplete, false); err == nil {
		t.Error("a decided code could be decided again")
	}
	code.Interval = 1
	if _, err := client.DeviceAccessToken(ctx, code); err != nil {
		t.Fatal(err)
	}
	if _, err := client.DeviceAccessToken(ctx, code); err == nil {
		t.Error("a device code gave tokens twice")
	}
}

func TestDevicePageShowsDevicePlaceAndCode(t *testing.T) {
	w := newWorld(t)
	w.ann()
	w.target.DeviceName = "build\nserver <b>7</b>"
	form := url.Values{"client_id": {identity.ClientID}, "device_name": {w.target.DeviceName}, "scope": {"openid postern:device:" + w.target.Device.String()}}
	userCode := w.deviceCode(form)
	b := identitytest.NewBrowser(w.target.Transport)
	page, err := b.Open(t.Context(), w.target.Issuer+"/device")
	if err == nil {
		page, err = page.Submit(t.Context(), map[string]string{"user_code": strings.ToLower(strings.ReplaceAll(userCode, "-", " "))})
	}
	if err == nil {
		page, err = annPerson().FillIn(t.Context(), page)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"buildserver <b>7</b>", "127.0.0.1", userCode, "Ann Example (ann)"} {
		if !strings.Contains(page.Text, want) {
			t.Errorf("the page does not show %q: %s", want, page.Text)
		}
	}
	stolen, err := identitytest.NewBrowser(w.target.Transport).Open(t.Context(), page.URL.String())
	if err != nil || stolen.Status != http.StatusBadRequest {
		t.Errorf("another browser sees the decision: %v, %+v", err, stolen)
	}
}

// deviceCode starts a device flow and returns the user code.
func (w *world) deviceCode(form url.Values) string {
	w.t.Helper()
	client, ctx := w.target.Client(), w.target.Context(w.t.Context())
	client.Scopes = strings.Fields(form.Get("scope"))
	code, err := client.DeviceAuth(ctx, deviceName(form.Get("device_name")))
	if err != nil {
		w.t.Fatal(err)
	}
	return code.UserCode
}

func TestDeviceAuthorizationNeedsADeviceKey(t *testing.T) {
	w := newWorld(t)
	client := w.target.Client()
	for _, scopes := range [][]string{{"openid"}, {"openid", "postern:device:xyz"}, {"openid", "admin", "postern:device:" + w.target.Device.String()}} {
		client.Scopes = scopes
		if _, err := client.DeviceAuth(w.target.Context(t.Context())); err == nil {
			t.Errorf("scopes %q were accepted", scopes)
		}
	}
}

func TestWrongDeviceCodesAreThrottled(t *testing.T) {
	w := newWorld(t)
	w.ann()
	code := w.deviceCode(url.Values{"scope": {"openid postern:device:" + w.target.Device.String()}})
	page, err := identitytest.NewBrowser(w.target.Transport).Open(t.Context(), w.target.Issuer+"/device")
	for range 25 {
		if err == nil {
			page, err = page.Submit(t.Context(), map[string]string{"user_code": "BBBB-BBBB"})
		}
	}
	if err == nil {
		page, err = page.Submit(t.Context(), map[string]string{"user_code": code})
	}
	if err != nil || page.Status != http.StatusBadRequest {
		t.Errorf("after 25 guesses: %v, status %d", err, page.Status)
	}
}

func TestSetUpMakesAnOwnerAndInvites(t *testing.T) {
	w := newWorld(t)
	code, err := w.svc.NewOwnerCode(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if link := w.svc.OwnerLink(code); link.Reveal() != w.target.Issuer+"/setup#"+code.Reveal() || strings.Contains(link.String(), code.Reveal()) {
		t.Errorf("link = %s", link.Reveal())
	}
	codes, err := identitytest.SetUp(t.Context(), w.target, w.svc.OwnerLink(code).Reveal(), identitytest.Owner{
		Login: "Root", Password: password, Suffix: "Corp.Internal.", People: "ann Ann Example ann@example.com\n\nbob\nann\n",
	})
	if err != nil || len(codes) != 2 {
		t.Fatalf("set up: %v, codes %d", err, len(codes))
	}
	owner, err := w.dir.UserByLogin(t.Context(), "root")
	if err != nil || owner.Admin != directory.RoleOwner || w.suffix != "corp.internal" {
		t.Errorf("owner %+v, suffix %q, %v", owner, w.suffix, err)
	}
	ann, err := w.dir.UserByLogin(t.Context(), "ann")
	if err != nil || ann.Name != "Ann Example" || ann.Mail != "ann@example.com" || ann.Admin != directory.RoleNone {
		t.Errorf("ann %+v, %v", ann, err)
	}
	w.mustSignIn(identitytest.Person{Login: "root", Password: password})
	if err := identitytest.AcceptInvite(t.Context(), w.target, codes[0], password); err != nil {
		t.Fatal(err)
	}
	w.mustSignIn(annPerson())
	if err := identitytest.AcceptInvite(t.Context(), w.target, codes[0], "another good password"); err == nil {
		t.Error("an invitation worked twice")
	}
	if _, err := identitytest.SetUp(t.Context(), w.target, code.Reveal(), identitytest.Owner{Login: "mallory", Password: password}); err == nil {
		t.Error("an owner code worked twice")
	}
}

// TestSetUpSaysWhatIsOdd: each on the page, in words for people.
func TestSetUpSaysWhatIsOdd(t *testing.T) {
	w := newWorld(t)
	code, err := w.svc.NewOwnerCode(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	page, err := identitytest.NewBrowser(w.target.Transport).Open(t.Context(), w.target.Issuer+"/setup")
	if err == nil {
		page, err = page.Submit(t.Context(), map[string]string{
			"code": code.Reveal(), "login": "root", "password": password, "again": password,
			"suffix": "co.uk", "people": "ann\nAnn again@example.com\nroot\n",
		})
	}
	if err != nil || page.Status != http.StatusOK {
		t.Fatalf("set up: %v, %+v", err, page)
	}
	for _, want := range []string{"co.uk: a public suffix", "Ann stands here twice.", "There is a user with this login already."} {
		if !strings.Contains(page.Text, want) {
			t.Errorf("the page does not say %q: %s", want, page.Text)
		}
	}
	if text := strings.ToLower(page.Text); strings.Contains(text, "unique") || strings.Contains(text, "sql") {
		t.Errorf("the page shows the database: %s", page.Text)
	}
}

func TestSetUpKeepsTheCodeWhenTheFormIsWrong(t *testing.T) {
	w := newWorld(t)
	code, err := w.svc.NewOwnerCode(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]identitytest.Owner{
		"short password": {Login: "root", Password: "short"},
		"own login":      {Login: "root", Password: "my root password"},
		"bad login":      {Login: "ro ot", Password: password},
		"no login":       {Password: password},
		"bad suffix":     {Login: "root", Password: password, Suffix: "corp..internal"},
		"resolver's":     {Login: "root", Password: password, Suffix: "localhost"},
		"script suffix":  {Login: "root", Password: password, Suffix: "<script>"},
	} {
		if _, err := identitytest.SetUp(t.Context(), w.target, code.Reveal(), o); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if _, err := identitytest.SetUp(t.Context(), w.target, strings.ToLower(code.Reveal()), identitytest.Owner{Login: "root", Password: password}); err != nil {
		t.Errorf("the code is gone: %v", err)
	}
}

func TestCodesExpireAndNewOnesEndOldOnes(t *testing.T) {
	w := newWorld(t)
	first, err := w.svc.NewOwnerCode(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second, err := w.svc.NewOwnerCode(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	root := identitytest.Owner{Login: "root", Password: password}
	if _, err := identitytest.SetUp(t.Context(), w.target, first.Reveal(), root); err == nil {
		t.Error("an earlier owner code works")
	}
	w.later(61 * time.Minute)
	if _, err := identitytest.SetUp(t.Context(), w.target, second.Reveal(), root); err == nil {
		t.Error("an expired owner code works")
	}
	u, code, err := w.svc.CreateUser(t.Context(), "ann", "", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.svc.Disable(t.Context(), u.ID); err != nil {
		t.Fatal(err)
	}
	if err := identitytest.AcceptInvite(t.Context(), w.target, code.Reveal(), password); err == nil {
		t.Error("a disabled user accepted an invitation")
	}
}

func TestOwnerCodeUsedTwiceAtOnceMakesOneOwner(t *testing.T) {
	w := newWorld(t)
	code, err := w.svc.NewOwnerCode(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var won atomic.Int32
	var group sync.WaitGroup
	for _, login := range []string{"one", "two", "three", "four"} {
		group.Go(func() {
			if _, err := identitytest.SetUp(t.Context(), w.target, code.Reveal(), identitytest.Owner{Login: login, Password: password}); err == nil {
				won.Add(1)
			}
		})
	}
	group.Wait()
	if won.Load() != 1 {
		t.Errorf("%d owners from one code", won.Load())
	}
}

func TestRecoverBringsADisabledOwnerBack(t *testing.T) {
	w := newWorld(t)
	u := w.ann()
	bob, _, err := w.svc.CreateUser(t.Context(), "bob", "", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.dir.SetRole(t.Context(), u.ID, directory.RoleOwner); err != nil {
		t.Fatal(err)
	}
	wantErr(t, w.svc.Disable(t.Context(), u.ID), directory.ErrLastOwner)
	_, err = w.dir.SetRole(t.Context(), u.ID, directory.RoleNone)
	wantErr(t, err, directory.ErrLastOwner)
	if _, err := w.dir.SetRole(t.Context(), bob.ID, directory.RoleOwner); err != nil {
		t.Fatal(err)
	}
	if err := w.svc.Disable(t.Context(), u.ID); err != nil {
		t.Fatal(err)
	}
	code, err := w.svc.NewOwnerCode(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := identitytest.SetUp(t.Context(), w.target, code.Reveal(), identitytest.Owner{Login: "ann", Password: "another good password"}); err != nil {
		t.Fatal(err)
	}
	w.mustSignIn(identitytest.Person{Login: "ann", Password: "another good password"})
}

func TestFormsNeedTheirToken(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{"/login", "/device", "/device/confirm", "/setup", "/invite"} {
		resp := w.post(path, url.Values{"code": {"x"}}, nil)
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s without cookie: status %d", path, resp.StatusCode)
		}
		resp = w.post(path, url.Values{}, http.Header{"Origin": {"https://evil.example"}})
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s from another origin: status %d", path, resp.StatusCode)
		}
		page, err := identitytest.NewBrowser(w.target.Transport).Open(t.Context(), w.target.Issuer+"/setup")
		if err == nil {
			page, err = page.Submit(t.Context(), map[string]string{"csrf": strings.Repeat("0", 64)})
		}
		if err != nil || page.Status != http.StatusForbidden {
			t.Errorf("%s with a wrong token: %v, status %d", path, err, page.Status)
		}
	}
	if resp := w.post("/setup", url.Values{"people": {strings.Repeat("a", 1<<17)}}, nil); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("too long form: status %d", resp.StatusCode)
	}
}

func (w *world) post(path string, form url.Values, header http.Header) *http.Response {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, w.target.Issuer+path, strings.NewReader(form.Encode()))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header = header.Clone()
	if req.Header == nil {
		req.Header = http.Header{}
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := (&http.Client{Transport: w.target.Transport}).Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	if err := resp.Body.Close(); err != nil {
		w.t.Fatal(err)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return resp
}

// TestPagesAreStrict reads each page as the browser gets it: headers, no scripts, no inline
// style, every field with a label.
func TestPagesAreStrict(t *testing.T) {
	w := newWorld(t)
	_, login, _ := w.begin()
	b := identitytest.NewBrowser(w.target.Transport)
	pages := []*identitytest.Page{login}
	for _, path := range []string{"/", "/device", "/setup", "/invite", "/login?request=unknown"} {
		page, err := b.Open(t.Context(), w.target.Issuer+path)
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, page)
	}
	for _, page := range pages {
		csp := page.Header.Get("Content-Security-Policy")
		if !strings.HasPrefix(csp, "default-src 'none'; style-src 'self';") || strings.Contains(csp, "unsafe") || strings.Contains(csp, "script-src") {
			t.Errorf("%s: policy %q", page.URL.Path, csp)
		}
		if page.Header.Get("X-Frame-Options") != "DENY" || page.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: headers %v", page.URL.Path, page.Header)
		}
		checkMarkup(t, page)
	}
	if csp := login.Header.Get("Content-Security-Policy"); !strings.HasSuffix(csp, "form-action 'self' http://127.0.0.1:49152") {
		t.Errorf("sign-in page: policy %q", csp)
	}
}

func checkMarkup(t *testing.T, page *identitytest.Page) {
	t.Helper()
	root, err := html.Parse(strings.NewReader(page.Source))
	if err != nil {
		t.Fatal(err)
	}
	labels, fields := map[string]bool{}, []string{}
	for n := range root.Descendants() {
		if n.Data == "script" || n.Data == "style" {
			t.Errorf("%s has a <%s>", page.URL.Path, n.Data)
		}
		a := map[string]string{}
		for _, at := range n.Attr {
			a[at.Key] = at.Val
			if at.Key == "style" || strings.HasPrefix(at.Key, "on") {
				t.Errorf("%s has the attribute %s", page.URL.Path, at.Key)
			}
		}
		switch {
		case n.Data == "label":
			labels[a["for"]] = true
		case n.Data == "textarea", n.Data == "input" && a["type"] != "hidden":
			fields = append(fields, a["id"])
		}
	}
	for _, id := range fields {
		if !labels[id] {
			t.Errorf("%s: the field %q has no label", page.URL.Path, id)
		}
	}
}

func TestHomeSaysWhereToGo(t *testing.T) {
	w := newWorld(t)
	page, err := identitytest.NewBrowser(w.target.Transport).Open(t.Context(), w.target.Issuer+"/")
	if err != nil || page.Status != http.StatusOK {
		t.Fatalf("home: %v, %+v", err, page)
	}
	for _, want := range []string{"This is Postern", "postern up 'URL#pin'", "invitation link", "postern admin"} {
		if !strings.Contains(page.Text, want) {
			t.Errorf("home does not say %q: %s", want, page.Text)
		}
	}
}

func TestOnlyMountedPathsAnswer(t *testing.T) {
	w := newWorld(t)
	b := identitytest.NewBrowser(w.target.Transport)
	for _, path := range []string{"/index.html", "/authorize", "/userinfo", "/oauth/introspect", "/end_session", "/healthz", "/ready", "/keys", "/static/", "/static/../identity.go"} {
		page, err := b.Open(t.Context(), w.target.Issuer+path)
		if err != nil || page.Status != http.StatusNotFound {
			t.Errorf("%s: %v, status %d", path, err, page.Status)
		}
	}
	for _, grant := range []string{"client_credentials", "password", "urn:ietf:params:oauth:grant-type:jwt-bearer", "urn:ietf:params:oauth:grant-type:token-exchange", ""} {
		resp := w.post("/oauth/token", url.Values{"grant_type": {grant}, "client_id": {identity.ClientID}}, nil)
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("grant %q: status %d", grant, resp.StatusCode)
		}
	}
}
