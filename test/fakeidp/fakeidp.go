// Package fakeidp is an OpenID provider on loopback that can be told to misbehave: another
// issuer, audience, nonce or algorithm in its tokens, expired ones, keys rotated, people
// disabled or with too many groups, no answer at all. Tests use it in the place of a
// company's identity provider. It signs in whoever SignInAs named, without a page.
//
// A Server is safe for concurrent use; switches act on the next request.
package fakeidp

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
)

// The one client that the provider knows.
const (
	ClientID     = "postern-broker"
	ClientSecret = "fake-client-secret"
)

// User is somebody who can sign in.
type User struct {
	Subject string
	Groups  []string
	// Claims go into the id token and userinfo as they are.
	Claims map[string]any
	// Disabled people are refused at sign-in and at refresh.
	Disabled bool
}

// Fault is a way to misbehave.
type Fault string

// Faults.
const (
	None          Fault = ""
	WrongAudience Fault = "audience"
	WrongIssuer   Fault = "issuer"
	WrongNonce    Fault = "nonce"
	AlgNone       Fault = "alg none"
	AlgSymmetric  Fault = "alg HS256 with the client secret"
	WrongKey      Fault = "signature by another key"
	Expired       Fault = "expired"
	NotYet        Fault = "not yet valid"
	WrongSubject  Fault = "subject"
	WrongParty    Fault = "authorized party"
	NoIDToken     Fault = "no id token"
	GroupsOverage Fault = "groups moved to a distributed claim"
	ClientUnknown Fault = "client unknown"
)

// grant is what a code or a refresh token stands for.
type grant struct {
	subject, nonce, challenge, redirect string
}

// Server is a running provider.
type Server struct {
	http *httptest.Server

	mu       sync.Mutex
	users    map[string]User
	current  string
	fault    Fault
	down     bool
	keys     []jose.JSONWebKey // the last one signs
	codes    map[string]grant
	refresh  map[string]grant
	keyReads int
}

// Start runs a provider until the test ends.
func Start(t testing.TB, users ...User) *Server {
	t.Helper()
	s := &Server{users: map[string]User{}, codes: map[string]grant{}, refresh: map[string]grant{}}
	s.keys = []jose.JSONWebKey{newKey()}
	for _, u := range users {
		s.users[u.Subject] = u
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", s.discovery)
	mux.HandleFunc("GET /authorize", s.authorize)
	mux.HandleFunc("POST /token", s.token)
	mux.HandleFunc("GET /userinfo", s.userinfo)
	mux.HandleFunc("GET /keys", s.keySet)
	s.http = httptest.NewServer(s.up(mux))
	t.Cleanup(s.http.Close)
	return s
}

// URL returns the issuer.
func (s *Server) URL() string { return s.http.URL }

// SignInAs names who is signed in at the provider's side.
func (s *Server) SignInAs(subject string) { s.set(func() { s.current = subject }) }

// SetUser adds or replaces somebody.
func (s *Server) SetUser(u User) { s.set(func() { s.users[u.Subject] = u }) }

// Misbehave chooses the fault of the next answers.
func (s *Server) Misbehave(f Fault) { s.set(func() { s.fault = f }) }

// Down makes each request fail with 503 until it is called with false.
func (s *Server) Down(down bool) { s.set(func() { s.down = down }) }

// RotateKeys signs with a fresh key and forgets the ones before.
func (s *Server) RotateKeys() { s.set(func() { s.keys = []jose.JSONWebKey{newKey()} }) }

// KeyReads returns how often the keys were asked for.
func (s *Server) KeyReads() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keyReads
}

func (s *Server) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// up answers 503 while the provider is down, and serialises everything else.
func (s *Server) up(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.down {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (s *Server) discovery(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, map[string]any{
		"issuer":                                s.http.URL,
		"authorization_endpoint":                s.http.URL + "/authorize",
		"token_endpoint":                        s.http.URL + "/token",
		"userinfo_endpoint":                     s.http.URL + "/userinfo",
		"jwks_uri":                              s.http.URL + "/keys",
		"response_types_supported":              []string{"code"},
		"subject_types_supported":               []string{"public"},
		"scopes_supported":                      []string{"openid", "profile", "email", "offline_access"},
		"code_challenge_methods_supported":      []string{"S256"},
		"id_token_signing_alg_values_supported": []string{"ES256", "HS256", "none"},
	})
}

// authorize sends the browser back with a code for the current user.
func (s *Server) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	back, err := url.Parse(q.Get("redirect_uri"))
	if err != nil || q.Get("client_id") != ClientID || q.Get("code_challenge_method") != "S256" || q.Get("nonce") == "" {
		http.Error(w, "bad request", http.StatusBadRequest)
		return
	}
	out := url.Values{"state": {q.Get("state")}}
	if u, ok := s.users[s.current]; !ok || u.Disabled {
		out.Set("error", "access_denied")
	} else {
		code := random()
		s.codes[code] = grant{s.current, q.Get("nonce"), q.Get("code_challenge"), q.Get("redirect_uri")}
		out.Set("code", code)
	}
	back.RawQuery = out.Encode()
	http.Redirect(w, r, back.String(), http.StatusFound)
}

func (s *Server) token(w http.ResponseWriter, r *http.Request) {
	id, secret, ok := r.BasicAuth()
	if !ok {
		id, secret = r.PostFormValue("client_id"), r.PostFormValue("client_secret")
	}
	if id != ClientID || secret != ClientSecret || s.fault == ClientUnknown {
		refuse(w, http.StatusUnauthorized, "invalid_client")
		return
	}
	g, ok := s.take(r)
	if u, known := s.users[g.subject]; !ok || !known || u.Disabled {
		refuse(w, http.StatusBadRequest, "invalid_grant")
		return
	}
	next := random()
	s.refresh[next] = grant{subject: g.subject}
	out := map[string]any{
		"access_token": "access-" + g.subject, "token_type": "Bearer", "expires_in": 300, "refresh_token": next,
	}
	if s.fault != NoIDToken {
		out["id_token"] = s.idToken(g)
	}
	answer(w, http.StatusOK, out)
}

// take uses a code or a refresh token; each works once.
func (s *Server) take(r *http.Request) (grant, bool) {
	if r.PostFormValue("grant_type") == "refresh_token" {
		token := r.PostFormValue("refresh_token")
		g, ok := s.refresh[token]
		delete(s.refresh, token)
		return g, ok
	}
	code := r.PostFormValue("code")
	g, ok := s.codes[code]
	delete(s.codes, code)
	sum := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
	good := base64.RawURLEncoding.EncodeToString(sum[:]) == g.challenge && g.redirect == r.PostFormValue("redirect_uri")
	return g, ok && good
}

// claims are what the provider says about somebody, with the fault applied.
func (s *Server) claims(g grant) map[string]any {
	now, u := time.Now(), s.users[g.subject]
	c := map[string]any{
		"iss": s.http.URL, "sub": g.subject, "aud": ClientID, "exp": now.Add(5 * time.Minute).Unix(),
		"iat": now.Unix(), "auth_time": now.Unix(), "acr": "mfa", "amr": []string{"pwd", "otp"},
	}
	if g.nonce != "" {
		c["nonce"] = g.nonce
	}
	maps.Copy(c, u.profile(s.fault))
	maps.Copy(c, faultClaims(s.fault, now))
	return c
}

func (u User) profile(f Fault) map[string]any {
	c := maps.Clone(u.Claims)
	if c == nil {
		c = map[string]any{}
	}
	if f == GroupsOverage {
		c["_claim_names"] = map[string]any{"groups": "src1"}
		c["_claim_sources"] = map[string]any{"src1": map[string]any{"endpoint": "https://graph.invalid/groups"}}
	} else if u.Groups != nil {
		c["groups"] = u.Groups
	}
	return c
}

func faultClaims(f Fault, now time.Time) map[string]any {
	switch f {
	case WrongAudience:
		return map[string]any{"aud": "somebody-else"}
	case WrongIssuer:
		return map[string]any{"iss": "https://idp.invalid"}
	case WrongNonce:
		return map[string]any{"nonce": "another"}
	case Expired:
		return map[string]any{"exp": now.Add(-time.Hour).Unix()}
	case NotYet:
		return map[string]any{"nbf": now.Add(time.Hour).Unix()}
	case WrongSubject:
		return map[string]any{"sub": "somebody-else"}
	case WrongParty:
		return map[string]any{"azp": "somebody-else", "aud": []string{ClientID, "somebody-else"}}
	default:
		return nil
	}
}

func (s *Server) idToken(g grant) string {
	payload := encode(s.claims(g))
	switch s.fault {
	case AlgNone:
		return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + base64.RawURLEncoding.EncodeToString(payload) + "."
	case AlgSymmetric:
		secret := sha256.Sum256([]byte(ClientSecret))
		return sign(jose.HS256, secret[:], payload)
	case WrongKey:
		k := newKey()
		k.KeyID = s.keys[0].KeyID
		return sign(jose.ES256, k, payload)
	default:
		return sign(jose.ES256, s.keys[len(s.keys)-1], payload)
	}
}

func (s *Server) userinfo(w http.ResponseWriter, r *http.Request) {
	const prefix = "Bearer access-"
	header := r.Header.Get("Authorization")
	if len(header) <= len(prefix) || header[:len(prefix)] != prefix {
		http.Error(w, "no token", http.StatusUnauthorized)
		return
	}
	subject := header[len(prefix):]
	c := s.users[subject].profile(s.fault)
	c["sub"] = subject
	answer(w, http.StatusOK, c)
}

func (s *Server) keySet(w http.ResponseWriter, _ *http.Request) {
	s.keyReads++
	var set jose.JSONWebKeySet
	for _, k := range s.keys {
		set.Keys = append(set.Keys, k.Public())
	}
	answer(w, http.StatusOK, set)
}

func newKey() jose.JSONWebKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err) // the system's random source is gone
	}
	return jose.JSONWebKey{Key: key, KeyID: random(), Algorithm: string(jose.ES256), Use: "sig"}
}

func sign(alg jose.SignatureAlgorithm, key any, payload []byte) string {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, nil)
	if err != nil {
		panic(err) // keys and algorithms are ours
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		panic(err)
	}
	text, err := jws.CompactSerialize()
	if err != nil {
		panic(err)
	}
	return text
}

func random() string { return rand.Text() }

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // a test put something into claims that JSON does not know
	}
	return b
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(encode(v)) // the client may be gone
}

func refuse(w http.ResponseWriter, status int, code string) {
	answer(w, status, map[string]string{"error": code})
}
