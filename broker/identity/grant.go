package identity

import (
	"context"
	"time"

	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"

	"github.com/postern-zt/postern/proto/ids"
)

// proof is how and when somebody proved who they are. It travels from the sign-in page into
// the tokens, and from one refresh to the next.
type proof struct {
	User     ids.UserID `json:"user"`
	ACR      string     `json:"acr,omitempty"`
	AMR      []string   `json:"amr,omitempty"`
	AuthTime time.Time  `json:"auth_time"`
}

// flow is a sign-in under way in one browser. Either it serves an authorization request, or
// it approves a device code (Device set).
//
//	start --(password or issuer)--> proven --(callback)--> code --(token endpoint)--> gone
//	                                  \----(device page)--> device record approved or denied
type flow struct {
	// Browser is the hash of the cookie of the browser that started the flow.
	Browser   string   `json:"browser"`
	Scopes    []string `json:"scopes,omitempty"`
	Redirect  string   `json:"redirect,omitempty"`
	State     string   `json:"state,omitempty"`
	Nonce     string   `json:"nonce,omitempty"`
	Challenge string   `json:"challenge,omitempty"`
	LoginHint string   `json:"login_hint,omitempty"`
	ACRValues []string `json:"acr_values,omitempty"`
	// Device is the key of the device record that this flow decides about.
	Device string `json:"device,omitempty"`
	// Proof is nil until somebody has signed in.
	Proof *proof `json:"proof,omitempty"`
}

// deviceGrant is a device code waiting for a person.
type deviceGrant struct {
	Scopes []string `json:"scopes"`
	// Name and Place are shown to the person who decides: what the device calls itself, and
	// the address it asked from.
	Name     string `json:"name"`
	Place    string `json:"place"`
	UserCode string `json:"user_code"`
	Denied   bool   `json:"denied,omitempty"`
	Proof    *proof `json:"proof,omitempty"`
}

// refreshGrant is the data of a refresh token. Used tokens stay until they expire, so that a
// second use is noticed and ends the family.
type refreshGrant struct {
	Proof  proof    `json:"proof"`
	Scopes []string `json:"scopes"`
	Used   bool     `json:"used,omitempty"`
}

// authRequest shows a flow to the OpenID library.
type authRequest struct {
	id string
	flow
	audience []string
}

var _ op.AuthRequest = (*authRequest)(nil)

func (a *authRequest) GetID() string          { return a.id }
func (a *authRequest) GetACR() string         { return a.proof().ACR }
func (a *authRequest) GetAMR() []string       { return a.proof().AMR }
func (a *authRequest) GetAudience() []string  { return a.audience }
func (a *authRequest) GetAuthTime() time.Time { return a.proof().AuthTime }
func (a *authRequest) GetClientID() string    { return ClientID }
func (a *authRequest) GetCodeChallenge() *oidc.CodeChallenge {
	return &oidc.CodeChallenge{Challenge: a.Challenge, Method: oidc.CodeChallengeMethodS256}
}
func (a *authRequest) GetNonce() string                   { return a.Nonce }
func (a *authRequest) GetRedirectURI() string             { return a.Redirect }
func (a *authRequest) GetResponseType() oidc.ResponseType { return oidc.ResponseTypeCode }
func (a *authRequest) GetResponseMode() oidc.ResponseMode { return "" }
func (a *authRequest) GetScopes() []string                { return a.Scopes }
func (a *authRequest) GetState() string                   { return a.State }
func (a *authRequest) GetSubject() string                 { return string(a.proof().User) }
func (a *authRequest) Done() bool                         { return a.Proof != nil }

// proof is never nil, so that a flow without one reads as nobody.
func (a *authRequest) proof() proof {
	if a.Proof == nil {
		return proof{}
	}
	return *a.Proof
}

// refreshRequest shows a refresh token to the OpenID library.
type refreshRequest struct {
	refreshGrant
	key      string
	family   string
	expires  time.Time
	audience []string
}

var _ op.RefreshTokenRequest = (*refreshRequest)(nil)

func (r *refreshRequest) GetAMR() []string       { return r.Proof.AMR }
func (r *refreshRequest) GetAudience() []string  { return r.audience }
func (r *refreshRequest) GetAuthTime() time.Time { return r.Proof.AuthTime }
func (r *refreshRequest) GetClientID() string    { return ClientID }
func (r *refreshRequest) GetScopes() []string    { return r.Scopes }
func (r *refreshRequest) GetSubject() string     { return string(r.Proof.User) }

// SetCurrentScopes ignores a narrower list: a token without the device scope must not exist.
func (r *refreshRequest) SetCurrentScopes([]string) {}

// exchange carries what the library's fixed types cannot from the loading of a grant to the
// claims of its tokens, within one request to the token endpoint.
type exchange struct {
	proof  proof
	scopes []string
}

type exchangeKey struct{}

func withExchange(ctx context.Context) context.Context {
	return context.WithValue(ctx, exchangeKey{}, &exchange{})
}

func exchangeOf(ctx context.Context) *exchange {
	e, _ := ctx.Value(exchangeKey{}).(*exchange)
	return e
}

// remember notes whose tokens this request makes.
func remember(ctx context.Context, p proof, scopes []string) {
	if e := exchangeOf(ctx); e != nil {
		e.proof, e.scopes = p, scopes
	}
}

// caller is what a request to the provider says about itself beyond OpenID's parameters.
type caller struct {
	browser    string // hash of the browser cookie
	deviceName string
	place      string
}

type callerKey struct{}

func withCaller(ctx context.Context, c caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}
