package auth_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-zt/postern/client/auth"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/proto/ids"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// provider is a broker's sign-in service: it signs everybody in who opens its page.
type provider struct {
	*httptest.Server
	pin ids.KeyID

	mu sync.Mutex // guards the fields below
	// endpoint replaces where the document says the tokens are.
	endpoint string
	// deny refuses at the token endpoint with this code.
	deny      string
	challenge string
	scope     string
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	p := &provider{}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", p.document)
	mux.HandleFunc("GET /authorize", p.authorize)
	mux.HandleFunc("GET /login", p.login)
	mux.HandleFunc("POST /token", p.token)
	mux.HandleFunc("POST /device", p.device)
	p.Server = httptest.NewUnstartedServer(mux)
	p.TLS, p.pin = certificate(t)
	p.StartTLS()
	t.Cleanup(p.Close)
	return p
}

func certificate(t *testing.T) (*tls.Config, ids.KeyID) {
	t.Helper()
	ca, leaf := key(t), key(t)
	now := time.Now()
	caTemplate := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER := sign(t, caTemplate, caTemplate, ca.Public(), ca)
	leafDER := sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), BasicConstraintsValid: true,
		URIs: []*url.URL{{Scheme: "spiffe", Host: "org", Path: "/broker/brk_1"}}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, caTemplate, leaf.Public(), ca)
	parsed, err := x509.ParseCertificate(caDER)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{leafDER, caDER}, PrivateKey: leaf}},
	}, ids.KeyIDOf(parsed.RawSubjectPublicKeyInfo)
}

func key(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sign(t *testing.T, tmpl, parent *x509.Certificate, pub any, by *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, by)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (p *provider) document(w http.ResponseWriter, _ *http.Request) {
	p.mu.Lock()
	token := p.endpoint
	p.mu.Unlock()
	if token == "" {
		token = p.URL + "/token"
	}
	answer(w, http.StatusOK, map[string]any{
		"issuer": p.URL, "authorization_endpoint": p.URL + "/authorize", "token_endpoint": token, "device_authorization_endpoint": p.URL + "/device",
	})
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// authorize sends the browser to the login page by an absolute address, as the broker may.
func (p *provider) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	p.mu.Lock()
	p.challenge, p.scope = q.Get("code_challenge"), q.Get("scope")
	p.mu.Unlock()
	http.SetCookie(w, &http.Cookie{Name: "signin", Value: "1", Path: "/"})
	http.Redirect(w, r, p.URL+"/login?"+url.Values{"back": {q.Get("redirect_uri") + "?code=good&state=" + q.Get("state")}}.Encode(), http.StatusFound)
}

// login needs the cookie of authorize: it must have passed the loopback proxy.
func (p *provider) login(w http.ResponseWriter, r *http.Request) {
	if _, err := r.Cookie("signin"); err != nil {
		http.Error(w, "no cookie", http.StatusForbidden)
		return
	}
	fmt.Fprintf(w, `<a href="%s">go on</a>`, r.URL.Query().Get("back"))
}

func (p *provider) token(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	sum := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
	proved := base64.RawURLEncoding.EncodeToString(sum[:]) == p.challenge && r.PostFormValue("code") == "good"
	switch {
	case p.deny != "":
		answer(w, http.StatusBadRequest, map[string]any{"error": p.deny})
	case proved, r.PostFormValue("device_code") == "dc":
		answer(w, http.StatusOK, map[string]any{"access_token": "secret-access", "refresh_token": "secret-refresh", "token_type": "Bearer"})
	default:
		answer(w, http.StatusBadRequest, map[string]any{"error": "invalid_grant"})
	}
}

func (p *provider) device(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, map[string]any{
		"device_code": "dc", "user_code": "BCDF-GHJK", "verification_uri": p.URL + "/device", "expires_in": 300, "interval": 1,
	})
}

func (p *provider) config(show func(auth.Prompt)) auth.Config {
	return auth.Config{
		Broker: control.Broker{Address: p.Listener.Addr().String(), Pin: p.pin}, Issuer: p.URL, ClientID: "postern-cli",
		Key: ids.KeyIDOf([]byte("device")), DeviceName: "laptop", Show: show,
	}
}

// browser follows redirects and keeps cookies.
func browser(t *testing.T) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Jar: jar, Transport: tr}
}

func open(t *testing.T, b *http.Client, page string) (int, string) {
	t.Helper()
	resp, err := b.Get(page)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

// signIn runs SignIn beside what person does with the page.
func signIn(t *testing.T, p *provider, person func(page string)) (auth.Tokens, error) {
	t.Helper()
	var acts sync.WaitGroup
	defer acts.Wait()
	return auth.SignIn(t.Context(), p.config(func(prompt auth.Prompt) {
		acts.Go(func() { person(prompt.URL) })
	}))
}

// callback returns the address that the login page leads to.
func callback(t *testing.T, page string) string {
	t.Helper()
	_, rest, ok := strings.Cut(page, `href="`)
	link, _, ok2 := strings.Cut(rest, `"`)
	if !ok || !ok2 {
		t.Errorf("no link on %q", page)
	}
	return link
}

func TestSignInThroughTheLoopback(t *testing.T) {
	p := newProvider(t)
	tokens, err := signIn(t, p, func(page string) {
		b := browser(t)
		_, login := open(t, b, page)
		if status, text := open(t, b, callback(t, login)); status != http.StatusOK || !strings.Contains(text, "You are signed in") {
			t.Errorf("callback: %d %s", status, text)
		}
	})
	if err != nil || string(tokens.Access) != "secret-access" || string(tokens.Refresh) != "secret-refresh" {
		t.Fatalf("SignIn: %v", err)
	}
	want := "openid offline_access postern:device:" + ids.KeyIDOf([]byte("device")).String()
	if p.scope != want {
		t.Errorf("scope %q, want %q", p.scope, want)
	}
	if text := fmt.Sprintf("%v %+v %#v", tokens, tokens, tokens); strings.Contains(text, "secret") {
		t.Errorf("printed: %s", text)
	}
	if b, _ := json.Marshal(tokens); strings.Contains(string(b), "secret") {
		t.Errorf("marshalled: %s", b)
	}
}

func TestForeignAnswersChangeNothing(t *testing.T) {
	p := newProvider(t)
	_, err := signIn(t, p, func(page string) {
		own, other := browser(t), browser(t)
		_, login := open(t, own, page)
		back := callback(t, login)
		if status, _ := open(t, other, page); status != http.StatusGone {
			t.Errorf("another browser took the sign-in over: %d", status)
		}
		if status, _ := open(t, other, back); status != http.StatusBadRequest {
			t.Errorf("another browser's answer was taken: %d", status)
		}
		wrong := back[:strings.Index(back, "state=")] + "state=guessed"
		if status, _ := open(t, own, wrong); status != http.StatusBadRequest {
			t.Errorf("an answer with another state was taken: %d", status)
		}
		u, _ := url.Parse(page)
		u.Path = "/start/guessed"
		if status, _ := open(t, own, u.String()); status != http.StatusGone {
			t.Errorf("a guessed page was served: %d", status)
		}
		rebound(t, u.Host)
		open(t, own, back)
	})
	if err != nil {
		t.Errorf("the real answer: %v", err)
	}
}

// rebound asks as a page does that gave its own name our address.
func rebound(t *testing.T, addr string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /login HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
	if got, _ := io.ReadAll(conn); !strings.HasPrefix(string(got), "HTTP/1.1 421") {
		t.Errorf("another host name was served: %.40q", got)
	}
}

func TestRefusalAndPatience(t *testing.T) {
	p := newProvider(t)
	p.deny = "access_denied"
	_, err := signIn(t, p, func(page string) {
		b := browser(t)
		_, login := open(t, b, page)
		open(t, b, callback(t, login))
	})
	if !errors.Is(err, auth.ErrRefused) {
		t.Errorf("refused: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err = auth.SignIn(ctx, p.config(func(auth.Prompt) { cancel(auth.ErrTooLong) }))
	if !errors.Is(err, auth.ErrTooLong) {
		t.Errorf("nobody came: %v", err)
	}
}

func TestSignInDevice(t *testing.T) {
	p := newProvider(t)
	var prompt auth.Prompt
	tokens, err := auth.SignInDevice(t.Context(), p.config(func(pr auth.Prompt) { prompt = pr }))
	if err != nil || string(tokens.Access) != "secret-access" || prompt.Code != "BCDF-GHJK" || prompt.URL != p.URL+"/device" {
		t.Fatalf("SignInDevice: %+v, %v", prompt, err)
	}
	p.deny = "access_denied"
	if _, err := auth.SignInDevice(t.Context(), p.config(func(auth.Prompt) {})); !errors.Is(err, auth.ErrRefused) {
		t.Errorf("refused: %v", err)
	}
	p.deny = "expired_token"
	if _, err := auth.SignInDevice(t.Context(), p.config(func(auth.Prompt) {})); !errors.Is(err, auth.ErrTooLong) {
		t.Errorf("expired: %v", err)
	}
}

func TestOnlyThePinnedBrokerIsAsked(t *testing.T) {
	p, other := newProvider(t), newProvider(t)
	cfg := p.config(func(auth.Prompt) { t.Error("a page was shown") })
	cfg.Broker.Pin = other.pin
	if _, err := auth.SignIn(t.Context(), cfg); !errors.Is(err, control.ErrPin) {
		t.Errorf("another broker: %v", err)
	}
	cfg = p.config(func(auth.Prompt) { t.Error("a page was shown") })
	p.endpoint = "https://evil.example/token"
	if _, err := auth.SignIn(t.Context(), cfg); !errors.Is(err, auth.ErrProvider) {
		t.Errorf("tokens elsewhere: %v", err)
	}
	for _, issuer := range []string{"http://" + p.Listener.Addr().String(), "", "https://", other.URL} {
		cfg.Issuer = issuer
		if _, err := auth.SignIn(t.Context(), cfg); !errors.Is(err, auth.ErrProvider) {
			t.Errorf("issuer %q: %v", issuer, err)
		}
	}
}
