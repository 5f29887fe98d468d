package identity

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/zitadel/oidc/v3/pkg/op"

	"github.com/postern-zt/postern/broker/directory"
)

// ClientID is the public OpenID client of all Postern programs.
const ClientID = "postern-cli"

// CallbackPath is the path of the loopback redirect: http://127.0.0.1:PORT/callback.
const CallbackPath = "/callback"

// ScopeDevicePrefix is followed by the hexadecimal KeyID of the device; each request needs
// exactly one such scope.
const ScopeDevicePrefix = "postern:device:"

// Lifetimes. Access tokens only open a session, so minutes are enough; the session itself is
// bound to the device key and has its own end.
const (
	accessLifetime  = 10 * time.Minute
	refreshLifetime = 30 * 24 * time.Hour
	flowLifetime    = 15 * time.Minute
	codeLifetime    = time.Minute
	deviceLifetime  = 10 * time.Minute
	ownerLifetime   = time.Hour
	inviteLifetime  = 48 * time.Hour
	cleanInterval   = 10 * time.Minute
)

// SigningKey signs tokens. The signer is ECDSA P-256 or Ed25519.
type SigningKey struct {
	ID     string
	Signer crypto.Signer
}

// VerifyKey is a public key under which tokens still count.
type VerifyKey struct {
	ID     string
	Public crypto.PublicKey
}

// SigningKeys hands in the keys. After a rotation the former key stays in VerifyKeys until
// the last token signed with it has expired.
type SigningKeys interface {
	SigningKey(ctx context.Context) (SigningKey, error)
	VerifyKeys(ctx context.Context) ([]VerifyKey, error)
}

// Sealer encrypts secrets at rest; purpose is authenticated with them, so that a sealed text
// cannot be moved to another place.
type Sealer interface {
	Seal(ctx context.Context, purpose string, plain []byte) ([]byte, error)
	Open(ctx context.Context, purpose string, sealed []byte) ([]byte, error)
}

// Settings is where the set-up page keeps what is not about a person.
type Settings interface {
	// CheckNameSuffix returns what will hurt with this suffix, or why it cannot be taken.
	CheckNameSuffix(suffix string) (warnings []string, err error)
	SetNameSuffix(ctx context.Context, suffix string) error
}

// Metrics counts sign-ins. Labels have few values: idp is "local" or an issuer's id.
type Metrics interface {
	AuthAttempt(idp, result string)
	AuthFailure(reason Reason)
	AuthLatency(d time.Duration)
}

// Config is what a Service needs. Fields without a note are required.
type Config struct {
	// URL is the public address, "https://broker.example:8443" or with an IP address; it is
	// the issuer of all tokens. Only https, except on loopback for tests.
	URL       string
	Directory *directory.Directory
	Store     Store
	Keys      SigningKeys
	Sealer    Sealer
	// JoinURL is what people pass to `postern up`: the URL with its pin. Empty means URL.
	JoinURL string
	// Secret is random, at least 32 bytes, and the same on all brokers of an installation:
	// form tokens and authorization codes derive from it.
	Secret   []byte
	Settings Settings
	Log      *slog.Logger

	// Audit records who became owner and which sign-ins were refused; nil, which is for
	// tests, records nothing.
	Audit Auditor
	// Metrics may be nil.
	Metrics Metrics
	// HTTPClient talks to external issuers; nil means one with 10 s timeouts.
	HTTPClient *http.Client
	// Hash is the cost of argon2id; zero means DefaultHash.
	Hash HashParams
	// Now is the clock; nil means time.Now. The OpenID library stamps tokens with time.Now.
	Now func() time.Time
}

// Service is the identity part of one broker.
type Service struct {
	cfg      Config
	url      *url.URL
	dir      *directory.Directory
	store    Store
	log      *slog.Logger
	metrics  Metrics
	provider *op.Provider
	hasher   *hasher
	throttle *throttle
	issuers  *issuerCache
	reverify *keyedLock
	csrf     []byte
}

// New checks cfg and builds a Service. It starts nothing and calls nobody.
func New(cfg Config) (*Service, error) {
	u, err := checkConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	s := &Service{
		cfg: withDefaults(cfg), url: u, dir: cfg.Directory, store: cfg.Store,
		log: cfg.Log.With("component", "identity"),
	}
	s.metrics = s.cfg.Metrics
	s.hasher = newHasher(s.cfg.Hash)
	s.throttle = newThrottle()
	s.issuers = newIssuerCache(s.cfg.HTTPClient, s.cfg.Now)
	s.reverify = newKeyedLock()
	s.csrf = deriveKey(cfg.Secret, "form token")
	if s.provider, err = newProvider(s); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	return s, nil
}

func checkConfig(cfg Config) (*url.URL, error) {
	if cfg.Directory == nil || cfg.Store == nil || cfg.Keys == nil || cfg.Sealer == nil || cfg.Settings == nil || cfg.Log == nil {
		return nil, errors.New("config lacks one of Directory, Store, Keys, Sealer, Settings, Log")
	}
	if len(cfg.Secret) < 32 {
		return nil, errors.New("config Secret has less than 32 bytes")
	}
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Host == "" || (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, fmt.Errorf("config URL %q is not of the form https://host:port", cfg.URL)
	}
	if u.Scheme != "https" && !(u.Scheme == "http" && loopbackHost(u.Hostname())) {
		return nil, fmt.Errorf("config URL %q is not https", cfg.URL)
	}
	return u, nil
}

func withDefaults(cfg Config) Config {
	cfg.URL = strings.TrimSuffix(cfg.URL, "/")
	if cfg.JoinURL == "" {
		cfg.JoinURL = cfg.URL
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.HTTPClient == nil {
		cfg.HTTPClient = &http.Client{Timeout: idpTimeout}
	}
	if cfg.Metrics == nil {
		cfg.Metrics = noMetrics{}
	}
	if cfg.Audit == nil {
		cfg.Audit = noAudit{}
	}
	if cfg.Hash == (HashParams{}) {
		cfg.Hash = DefaultHash()
	}
	return cfg
}

func (s *Service) now() time.Time { return s.cfg.Now() }

// Issuer returns the issuer of the tokens: the public URL.
func (s *Service) Issuer() string { return s.cfg.URL }

// Run removes expired records until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	tick := time.NewTicker(cleanInterval)
	defer tick.Stop()
	for {
		if err := s.store.DeleteExpired(ctx, s.now()); err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "expired records stay", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// noMetrics counts nothing.
type noMetrics struct{}

func (noMetrics) AuthAttempt(string, string) {}
func (noMetrics) AuthFailure(Reason)         {}
func (noMetrics) AuthLatency(time.Duration)  {}
