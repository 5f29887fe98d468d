package identity

import (
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"

	"github.com/postern-zt/postern/proto/ids"
)

// cliClient is the one OpenID client: public, native, PKCE.
type cliClient struct{}

var _ op.Client = cliClient{}

func (cliClient) GetID() string { return ClientID }

// RedirectURIs names one loopback address; the library lets a native client choose port and
// loopback host, and checkRedirect narrows that again.
func (cliClient) RedirectURIs() []string              { return []string{"http://127.0.0.1" + CallbackPath} }
func (cliClient) PostLogoutRedirectURIs() []string    { return nil }
func (cliClient) ApplicationType() op.ApplicationType { return op.ApplicationTypeNative }
func (cliClient) AuthMethod() oidc.AuthMethod         { return oidc.AuthMethodNone }
func (cliClient) ResponseTypes() []oidc.ResponseType {
	return []oidc.ResponseType{oidc.ResponseTypeCode}
}
func (cliClient) GrantTypes() []oidc.GrantType {
	return []oidc.GrantType{oidc.GrantTypeCode, oidc.GrantTypeRefreshToken, oidc.GrantTypeDeviceCode}
}
func (cliClient) LoginURL(id string) string           { return loginPath + "?request=" + url.QueryEscape(id) }
func (cliClient) AccessTokenType() op.AccessTokenType { return op.AccessTokenTypeJWT }
func (cliClient) IDTokenLifetime() time.Duration      { return accessLifetime }
func (cliClient) DevMode() bool                       { return false }
func (cliClient) RestrictAdditionalIdTokenScopes() func([]string) []string {
	return keepScopes
}
func (cliClient) RestrictAdditionalAccessTokenScopes() func([]string) []string {
	return keepScopes
}
func (cliClient) IsScopeAllowed(scope string) bool {
	return strings.HasPrefix(scope, ScopeDevicePrefix)
}
func (cliClient) IDTokenUserinfoClaimsAssertion() bool { return true }
func (cliClient) ClockSkew() time.Duration             { return 0 }

func keepScopes(scopes []string) []string { return scopes }

// deviceKey returns the key that the scopes bind the tokens to: exactly one is needed.
func deviceKey(scopes []string) (ids.KeyID, error) {
	var key ids.KeyID
	for _, scope := range scopes {
		text, ok := strings.CutPrefix(scope, ScopeDevicePrefix)
		if !ok {
			continue
		}
		if !key.IsZero() {
			return ids.KeyID{}, oidc.ErrInvalidScope().WithDescription("more than one %s scope", ScopeDevicePrefix)
		}
		var err error
		if key, err = ids.ParseKeyID(text); err != nil {
			return ids.KeyID{}, oidc.ErrInvalidScope().WithDescription("the scope %s needs a key id", ScopeDevicePrefix).WithParent(err)
		}
	}
	if key.IsZero() {
		return ids.KeyID{}, oidc.ErrInvalidScope().WithDescription("the scope %s<key id> is missing", ScopeDevicePrefix)
	}
	return key, nil
}

// checkRedirect accepts http on a loopback host with the callback path alone.
func checkRedirect(raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "http" || u.Path != CallbackPath || u.RawQuery != "" || u.Fragment != "" || u.User != nil || !loopbackHost(u.Hostname()) {
		return oidc.ErrInvalidRequestRedirectURI().WithDescription("redirect_uri must be http://127.0.0.1:PORT" + CallbackPath)
	}
	return nil
}

func loopbackHost(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}
