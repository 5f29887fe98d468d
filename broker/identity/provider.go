package identity

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// Paths of the provider.
const (
	discoveryPath   = "/.well-known/openid-configuration"
	authorizePath   = "/oauth/authorize"
	callbackPath    = "/oauth/authorize/callback"
	tokenPath       = "/oauth/token"
	deviceAuthzPath = "/oauth/device_authorization"
	revokePath      = "/oauth/revoke"
	keysPath        = "/oauth/keys"
)

// newProvider builds the library's provider. Its own router is not used: only the handlers
// below are mounted, so what is not named here cannot be reached.
func newProvider(s *Service) (*op.Provider, error) {
	cfg := &op.Config{
		CodeMethodS256:        true,
		GrantTypeRefreshToken: true,
		DeviceAuthorization: op.DeviceAuthorizationConfig{
			Lifetime: deviceLifetime, PollInterval: devicePoll, UserFormPath: devicePath, UserCode: op.UserCodeBase20,
		},
	}
	// The library's default also decrypts an older, unauthenticated form, which takes one
	// random token in twenty for something it is not.
	crypto := op.NewAES256GCMCrypto([32]byte(deriveKey(s.cfg.Secret, "authorization code")), "code")
	opts := []op.Option{op.WithCORSOptions(nil), op.WithCrypto(crypto)}
	if s.url.Scheme == "http" { // checkConfig allows it on loopback only
		opts = append(opts, op.WithAllowInsecure())
	}
	return op.NewProvider(cfg, opStorage{s}, op.StaticIssuer(s.Issuer()), opts...)
}

// deriveKey makes one key per purpose out of the installation's secret.
func deriveKey(secret []byte, purpose string) []byte {
	key, err := hkdf.Key(sha256.New, secret, nil, "postern identity "+purpose, 32)
	if err != nil {
		panic(err) // only for lengths beyond 255 hashes
	}
	return key
}

func (s *Service) mountProvider(mux *http.ServeMux) {
	mux.HandleFunc("GET "+discoveryPath, s.serveDiscovery)
	mux.HandleFunc("GET "+authorizePath, s.serveAuthorize)
	mux.HandleFunc("GET "+callbackPath, s.serveCallback)
	mux.HandleFunc("POST "+tokenPath, s.serveToken)
	mux.HandleFunc("POST "+deviceAuthzPath, s.serveDeviceAuthorization)
	mux.HandleFunc("POST "+revokePath, func(w http.ResponseWriter, r *http.Request) { op.Revoke(w, r, s.provider) })
	mux.HandleFunc("GET "+keysPath, func(w http.ResponseWriter, r *http.Request) { op.Keys(w, r, opStorage{s}) })
}

// serveDiscovery lists what is mounted, no more.
func (s *Service) serveDiscovery(w http.ResponseWriter, r *http.Request) {
	algs, err := opStorage{s}.SignatureAlgorithms(r.Context())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	doc := oidc.DiscoveryConfiguration{
		Issuer:                            s.Issuer(),
		AuthorizationEndpoint:             s.Issuer() + authorizePath,
		TokenEndpoint:                     s.Issuer() + tokenPath,
		RevocationEndpoint:                s.Issuer() + revokePath,
		DeviceAuthorizationEndpoint:       s.Issuer() + deviceAuthzPath,
		JwksURI:                           s.Issuer() + keysPath,
		ScopesSupported:                   []string{oidc.ScopeOpenID, oidc.ScopeProfile, oidc.ScopeEmail, oidc.ScopeOfflineAccess},
		ResponseTypesSupported:            []string{string(oidc.ResponseTypeCode)},
		ResponseModesSupported:            []string{string(oidc.ResponseModeQuery)},
		GrantTypesSupported:               cliClient{}.GrantTypes(),
		SubjectTypesSupported:             []string{"public"},
		TokenEndpointAuthMethodsSupported: []oidc.AuthMethod{oidc.AuthMethodNone},
		CodeChallengeMethodsSupported:     []oidc.CodeChallengeMethod{oidc.CodeChallengeMethodS256},
	}
	for _, alg := range algs {
		doc.IDTokenSigningAlgValuesSupported = append(doc.IDTokenSigningAlgValuesSupported, string(alg))
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(doc) // the browser may be gone
}

// serveAuthorize ties the flow that the library is about to create to this browser.
func (s *Service) serveAuthorize(w http.ResponseWriter, r *http.Request) {
	if !s.admitStart(w, r) {
		return
	}
	ctx := withCaller(r.Context(), caller{browser: s.ensureBrowser(w, r)})
	op.Authorize(w, r.WithContext(ctx), s.provider)
}

// serveCallback hands the code out, to the browser that started and to no other.
func (s *Service) serveCallback(w http.ResponseWriter, r *http.Request) {
	f, err := s.ownFlow(r.Context(), r.FormValue("id"), s.browserOf(r))
	if err != nil || f.Proof == nil {
		s.gone(w, r)
		return
	}
	op.AuthorizeCallback(w, r, s.provider)
}

// serveToken lets the grants pass that the client has, and opens the exchange in which the
// storage notes whose tokens are made.
func (s *Service) serveToken(w http.ResponseWriter, r *http.Request) {
	grant := oidc.GrantType(r.PostFormValue("grant_type"))
	if !slices.Contains(cliClient{}.GrantTypes(), grant) {
		op.RequestError(w, r, oidc.ErrUnsupportedGrantType(), nil)
		return
	}
	// The library says invalid_grant for whatever fails, and a client then forgets its
	// sign-in. A database that does not answer must not look like that.
	if _, err := s.store.Record(r.Context(), kindRefresh, ""); !errors.Is(err, ErrNotFound) {
		s.log.ErrorContext(r.Context(), "tokens cannot be made", "error", err)
		http.Error(w, `{"error":"temporarily_unavailable"}`, http.StatusServiceUnavailable)
		return
	}
	op.Exchange(w, r.WithContext(withExchange(r.Context())), s.provider)
}

// serveDeviceAuthorization notes what the person at the device page will be shown.
func (s *Service) serveDeviceAuthorization(w http.ResponseWriter, r *http.Request) {
	if !s.admitStart(w, r) {
		return
	}
	ctx := withCaller(r.Context(), caller{
		deviceName: displayName(r.PostFormValue("device_name")), place: remoteAddr(r).String(),
	})
	op.DeviceAuthorizationHandler(s.provider)(w, r.WithContext(ctx))
}

// admitStart counts sign-ins that an address starts, and refuses far too many.
func (s *Service) admitStart(w http.ResponseWriter, r *http.Request) bool {
	key := startKey(remoteAddr(r))
	if s.throttle.shut(s.now(), key) {
		s.metrics.AuthFailure(ReasonThrottled)
		http.Error(w, "too many sign-ins from this address, wait a minute", http.StatusTooManyRequests)
		return false
	}
	s.throttle.failed(s.now(), key)
	return true
}
