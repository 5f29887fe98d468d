package identity

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/proto/ids"
)

const (
	// idpTimeout bounds each request to an external issuer.
	idpTimeout = 10 * time.Second
	// discoveryAge is how long a discovery document is used before it is read again.
	discoveryAge = time.Hour
	maxIssuers   = 16
	maxDocument  = 1 << 20
)

// Issuer is an external OpenID provider whose people may sign in.
type Issuer struct {
	ID   ids.IssuerID
	Name string // shown as "Sign in with NAME"
	URL  string // the issuer, exactly as its tokens say
	// ClientID and ClientSecret are what the issuer gave out for this broker; the redirect
	// address to register there is Service.ReturnURL.
	ClientID     string
	ClientSecret Secret
	// Scopes beyond openid, profile, email and offline_access.
	Scopes []string
	Claims directory.ClaimMap
}

// ReturnURL is the redirect address to register at external issuers.
func (s *Service) ReturnURL() string { return s.Issuer() + returnPath }

// SaveIssuer tests an issuer and stores it. An empty ID makes a new one; an empty secret
// keeps the stored one.
func (s *Service) SaveIssuer(ctx context.Context, i Issuer) (Issuer, error) {
	if i.ID == "" {
		i.ID = ids.New[ids.IssuerID]()
	} else if err := s.fillSecret(ctx, &i); err != nil {
		return Issuer{}, err
	}
	if err := s.TestIssuer(ctx, i); err != nil {
		return Issuer{}, err
	}
	sealed, err := s.cfg.Sealer.Seal(ctx, purposeClient(i.ID), []byte(i.ClientSecret.Reveal()))
	if err != nil {
		return Issuer{}, fmt.Errorf("seal client secret: %w", err)
	}
	err = s.store.PutIssuer(ctx, StoredIssuer{
		ID: i.ID, Name: i.Name, URL: i.URL, ClientID: i.ClientID, SealedSecret: sealed,
		Scopes: i.Scopes, Claims: i.Claims, CreatedAt: s.now(),
	})
	s.issuers.forget(i.URL)
	return i, err
}

func (s *Service) fillSecret(ctx context.Context, i *Issuer) error {
	old, err := s.issuer(ctx, i.ID)
	if err != nil {
		return err
	}
	if old.URL != i.URL {
		return fmt.Errorf("%w: the URL of an issuer cannot change, its users belong to it; add a new one", ErrIssuer)
	}
	if i.ClientSecret.IsZero() {
		i.ClientSecret = old.ClientSecret
	}
	return nil
}

// TestIssuer checks settings against the live issuer: discovery answers for exactly this
// URL, the keys can be read, and code with PKCE is offered.
func (s *Service) TestIssuer(ctx context.Context, i Issuer) error {
	if err := checkIssuer(i); err != nil {
		return err
	}
	if err := s.uniqueIssuer(ctx, i); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*idpTimeout)
	defer cancel()
	p, err := s.issuers.discover(ctx, i.URL)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrIssuer, err)
	}
	if len(p.meta.ResponseTypes) > 0 && !slices.Contains(p.meta.ResponseTypes, "code") {
		return fmt.Errorf("%w: it does not offer the code flow", ErrIssuer)
	}
	if len(p.meta.PKCE) > 0 && !slices.Contains(p.meta.PKCE, "S256") {
		return fmt.Errorf("%w: it does not offer PKCE with S256", ErrIssuer)
	}
	if err := p.keys.refresh(ctx); err != nil {
		return fmt.Errorf("%w: its keys cannot be read: %w", ErrIssuer, err)
	}
	return nil
}

func checkIssuer(i Issuer) error {
	u, err := url.Parse(i.URL)
	switch {
	case err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil:
		return fmt.Errorf("%w: %q is no issuer URL", ErrIssuer, i.URL)
	case u.Scheme != "https" && !(u.Scheme == "http" && loopbackHost(u.Hostname())):
		return fmt.Errorf("%w: the URL must be https", ErrIssuer)
	case i.Name == "" || len(i.Name) > 64 || displayName(i.Name) != i.Name:
		return fmt.Errorf("%w: it needs a name of at most 64 printable characters", ErrIssuer)
	case i.ClientID == "" || len(i.ClientID) > 256 || len(i.Scopes) > 32:
		return fmt.Errorf("%w: client id or scopes are missing or too long", ErrIssuer)
	}
	return i.Claims.Validate()
}

// uniqueIssuer keeps one entry per URL: users are keyed by the entry.
func (s *Service) uniqueIssuer(ctx context.Context, i Issuer) error {
	all, err := s.store.Issuers(ctx)
	if err != nil {
		return err
	}
	others := slices.DeleteFunc(all, func(o StoredIssuer) bool { return o.ID == i.ID })
	if slices.ContainsFunc(others, func(o StoredIssuer) bool { return o.URL == i.URL }) {
		return fmt.Errorf("%w: there is an issuer with this URL already", ErrIssuer)
	}
	if len(others) >= maxIssuers {
		return fmt.Errorf("%w: at most %d issuers", ErrIssuer, maxIssuers)
	}
	return nil
}

// Issuers lists the external issuers, without their secrets, sorted by name.
func (s *Service) Issuers(ctx context.Context) ([]Issuer, error) {
	stored, err := s.store.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	var list []Issuer
	for _, i := range stored {
		list = append(list, Issuer{ID: i.ID, Name: i.Name, URL: i.URL, ClientID: i.ClientID, Scopes: i.Scopes, Claims: i.Claims})
	}
	slices.SortFunc(list, func(a, b Issuer) int { return strings.Compare(a.Name+string(a.ID), b.Name+string(b.ID)) })
	return list, nil
}

// DeleteIssuer removes an issuer. Its users stay in the directory, cannot sign in, and are
// stale at the next re-verification.
func (s *Service) DeleteIssuer(ctx context.Context, id ids.IssuerID) error {
	return s.store.DeleteIssuer(ctx, id)
}

// issuer returns one issuer with its secret.
func (s *Service) issuer(ctx context.Context, id ids.IssuerID) (Issuer, error) {
	i, err := s.store.Issuer(ctx, id)
	if err != nil {
		return Issuer{}, err
	}
	secret, err := s.cfg.Sealer.Open(ctx, purposeClient(id), i.SealedSecret)
	if err != nil {
		return Issuer{}, fmt.Errorf("open client secret: %w", err)
	}
	return Issuer{
		ID: i.ID, Name: i.Name, URL: i.URL, ClientID: i.ClientID, ClientSecret: NewSecret(string(secret)),
		Scopes: i.Scopes, Claims: i.Claims,
	}, nil
}

func purposeClient(id ids.IssuerID) string { return "identity client secret " + string(id) }

// metadata is what we read of a discovery document beyond what go-oidc keeps.
type metadata struct {
	Keys          string   `json:"jwks_uri"`
	Algorithms    []string `json:"id_token_signing_alg_values_supported"`
	ResponseTypes []string `json:"response_types_supported"`
	PKCE          []string `json:"code_challenge_methods_supported"`
	Scopes        []string `json:"scopes_supported"`
}

// liveIssuer is what discovery told about an issuer.
type liveIssuer struct {
	url      string
	provider *gooidc.Provider
	meta     metadata
	algs     []string
	keys     *keyCache
	read     time.Time
}

// issuerCache keeps discovery documents and keys per URL. It is safe for concurrent use.
type issuerCache struct {
	client *http.Client
	now    func() time.Time

	mu   sync.Mutex
	live map[string]*liveIssuer
	wait map[string]*backoff
}

func newIssuerCache(client *http.Client, now func() time.Time) *issuerCache {
	bounded := *client
	bounded.Transport = boundedTransport{client.Transport}
	return &issuerCache{client: &bounded, now: now, live: map[string]*liveIssuer{}, wait: map[string]*backoff{}}
}

// get returns the issuer at u: from memory, or by discovery, which after failures is tried
// again only when the back-off is over. An old document serves while the issuer is down.
func (c *issuerCache) get(ctx context.Context, u string) (*liveIssuer, error) {
	c.mu.Lock()
	l, b := c.live[u], c.wait[u]
	if b == nil {
		b = &backoff{}
		c.wait[u] = b
	}
	fresh := l != nil && c.now().Sub(l.read) < discoveryAge
	allowed := b.allowed(c.now())
	c.mu.Unlock()
	if fresh || (l != nil && !allowed) {
		return l, nil
	}
	if !allowed {
		return nil, refuse(ReasonIdPUnreachable, errors.New("waiting before the next attempt"))
	}
	found, err := c.discover(ctx, u)
	return c.settle(u, found, err)
}

func (c *issuerCache) settle(u string, found *liveIssuer, err error) (*liveIssuer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.wait[u]
	if b == nil {
		b = &backoff{}
		c.wait[u] = b
	}
	if err != nil {
		b.failed(c.now())
		if old := c.live[u]; old != nil {
			return old, nil
		}
		return nil, err
	}
	b.succeeded()
	if old := c.live[u]; old != nil && old.meta.Keys == found.meta.Keys {
		found.keys = old.keys // keep known keys and their back-off
	}
	c.live[u] = found
	return found, nil
}

func (c *issuerCache) forget(u string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.live, u)
	delete(c.wait, u)
}

// discover reads the discovery document of exactly this issuer.
func (c *issuerCache) discover(ctx context.Context, u string) (*liveIssuer, error) {
	ctx, cancel := context.WithTimeout(gooidc.ClientContext(ctx, c.client), idpTimeout)
	defer cancel()
	p, err := gooidc.NewProvider(ctx, u)
	if err != nil {
		var mismatch *gooidc.IssuerMismatchError
		if errors.As(err, &mismatch) {
			return nil, refuse(ReasonTokenIssuer, err)
		}
		return nil, refuse(ReasonIdPUnreachable, err)
	}
	l := &liveIssuer{url: u, provider: p, read: c.now()}
	if err := p.Claims(&l.meta); err != nil {
		return nil, refuse(ReasonTokenMalformed, err)
	}
	l.algs = acceptedAlgorithms(l.meta.Algorithms)
	l.keys = newKeyCache(c.client, l.meta.Keys, c.now)
	return l, nil
}

// acceptedAlgorithms leaves the asymmetric ones of those an issuer offers: never none, never
// a shared secret.
func acceptedAlgorithms(offered []string) []string {
	known := []string{"RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "EdDSA"}
	accepted := slices.DeleteFunc(known, func(a string) bool { return !slices.Contains(offered, a) })
	if len(accepted) == 0 {
		return []string{"RS256"} // mandatory in OpenID Connect
	}
	return accepted
}

// oauth returns the client side of the code flow at this issuer.
func (l *liveIssuer) oauth(i Issuer, returnURL string) *oauth2.Config {
	scopes := []string{gooidc.ScopeOpenID, "profile", "email"}
	if len(l.meta.Scopes) == 0 || slices.Contains(l.meta.Scopes, gooidc.ScopeOfflineAccess) {
		scopes = append(scopes, gooidc.ScopeOfflineAccess)
	}
	for _, scope := range i.Scopes {
		if !slices.Contains(scopes, scope) {
			scopes = append(scopes, scope)
		}
	}
	return &oauth2.Config{
		ClientID: i.ClientID, ClientSecret: i.ClientSecret.Reveal(),
		Endpoint: l.provider.Endpoint(), RedirectURL: returnURL, Scopes: scopes,
	}
}

// boundedTransport cuts answers at maxDocument, wherever a library reads them.
type boundedTransport struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t boundedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	next := t.next
	if next == nil {
		next = http.DefaultTransport
	}
	resp, err := next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, maxDocument), resp.Body}
	return resp, nil
}
