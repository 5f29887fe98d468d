package identity

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"

	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/proto/ids"
)

// maxPending bounds the sign-ins and device codes that wait at one time; each is about 1 KiB
// in the database and anybody may start one.
const maxPending = 10000

// opStorage is the only place where tokens are made. It implements the library's Storage for
// the flows that the Service mounts; what is not mounted is refused.
type opStorage struct{ s *Service }

var (
	_ op.Storage                        = opStorage{}
	_ op.DeviceAuthorizationStorage     = opStorage{}
	_ op.CanGetPrivateClaimsFromRequest = opStorage{}
	_ op.CanSetUserinfoFromRequest      = opStorage{}
)

var errNotOffered = errors.New("not offered by this provider")

// CreateAuthRequest starts a flow. PKCE with S256 and the device scope are required here,
// before anybody types a password.
func (o opStorage) CreateAuthRequest(ctx context.Context, req *oidc.AuthRequest, _ string) (op.AuthRequest, error) {
	if err := checkAuthRequest(req); err != nil {
		return nil, err
	}
	f := flow{
		Browser: callerOf(ctx).browser, Scopes: req.Scopes, Redirect: req.RedirectURI, State: req.State,
		Nonce: req.Nonce, Challenge: req.CodeChallenge, LoginHint: req.LoginHint, ACRValues: req.ACRValues,
	}
	id, err := o.s.startFlow(ctx, f)
	if err != nil {
		return nil, err
	}
	return o.authRequest(id, f), nil
}

func checkAuthRequest(req *oidc.AuthRequest) error {
	if req.CodeChallengeMethod != oidc.CodeChallengeMethodS256 || len(req.CodeChallenge) != 43 {
		return oidc.ErrInvalidRequest().WithDescription("PKCE with code_challenge_method S256 is required")
	}
	if req.ResponseMode != "" && req.ResponseMode != oidc.ResponseModeQuery {
		return oidc.ErrInvalidRequest().WithDescription("response_mode is not offered")
	}
	if !slices.Contains(req.Scopes, oidc.ScopeOpenID) {
		return oidc.ErrInvalidScope().WithDescription("the scope openid is missing")
	}
	if slices.Contains(req.Prompt, oidc.PromptNone) {
		return oidc.ErrInteractionRequired()
	}
	if len(req.State)+len(req.Nonce)+len(req.LoginHint)+len(req.ACRValues.String()) > 2048 {
		return oidc.ErrInvalidRequest().WithDescription("parameters are too long")
	}
	if _, err := deviceKey(req.Scopes); err != nil {
		return err
	}
	return checkRedirect(req.RedirectURI)
}

func (o opStorage) authRequest(id string, f flow) *authRequest {
	return &authRequest{id: id, flow: f, audience: []string{o.s.Issuer()}}
}

// AuthRequestByID returns a flow whose sign-in may not have happened yet.
func (o opStorage) AuthRequestByID(ctx context.Context, id string) (op.AuthRequest, error) {
	f, err := o.s.loadFlow(ctx, id)
	if err != nil || f.Device != "" {
		return nil, oidc.ErrInvalidRequest().WithDescription("the sign-in has expired, start again")
	}
	return o.authRequest(id, f), nil
}

// SaveAuthCode gives the flow its code, once, and a minute to use it.
func (o opStorage) SaveAuthCode(ctx context.Context, id, code string) error {
	_, err := o.s.store.ChangeRecord(ctx, kindFlow, hashKey(id), func(r *Record) error {
		f, err := decode[flow](*r)
		if err != nil || f.Proof == nil || r.Alt != "" {
			return oidc.ErrInvalidRequest().WithDescription("the sign-in is over, start again").WithParent(err)
		}
		r.Alt, r.Expires = hashKey(code), o.s.now().Add(codeLifetime)
		return nil
	})
	return err
}

// AuthRequestByCode takes the flow of a code: a code works once, also with a wrong verifier.
func (o opStorage) AuthRequestByCode(ctx context.Context, code string) (op.AuthRequest, error) {
	r, err := o.s.live(o.s.store.RecordByAlt(ctx, kindFlow, hashKey(code)))
	if err != nil {
		return nil, err
	}
	if r, err = o.s.store.TakeRecord(ctx, kindFlow, r.Key); err != nil {
		return nil, err
	}
	f, err := decode[flow](r)
	if err != nil {
		return nil, err
	}
	if f.Proof == nil || f.Device != "" {
		return nil, ErrNotFound
	}
	if _, err := o.s.usableUser(ctx, f.Proof.User); err != nil {
		return nil, err
	}
	remember(ctx, *f.Proof, f.Scopes)
	return o.authRequest("", f), nil
}

// DeleteAuthRequest has nothing to do: the code took the flow.
func (opStorage) DeleteAuthRequest(context.Context, string) error { return nil }

// StoreDeviceAuthorization keeps a device code until a person decides about it.
func (o opStorage) StoreDeviceAuthorization(ctx context.Context, _, deviceCode, userCode string, expires time.Time, scopes []string) error {
	if _, err := deviceKey(scopes); err != nil {
		return err
	}
	for _, scope := range scopes {
		if scope != oidc.ScopeOpenID && scope != oidc.ScopeProfile && scope != oidc.ScopeEmail &&
			scope != oidc.ScopeOfflineAccess && !(cliClient{}).IsScopeAllowed(scope) {
			return oidc.ErrInvalidScope().WithDescription("a requested scope is not offered")
		}
	}
	if err := o.s.roomFor(ctx, kindDevice); err != nil {
		return o.s.hide(ctx, err)
	}
	c := callerOf(ctx)
	err := o.s.addJSON(ctx, Record{
		Kind: kindDevice, Key: hashKey(deviceCode), Alt: hashKey(canonicalUserCode(userCode)), Expires: expires,
	}, deviceGrant{Scopes: scopes, Name: c.deviceName, Place: c.place, UserCode: userCode})
	if errors.Is(err, ErrExists) {
		return op.ErrDuplicateUserCode
	}
	return o.s.hide(ctx, err)
}

// GetDeviceAuthorizatonState answers a poll. An approved code is taken: it works once.
func (o opStorage) GetDeviceAuthorizatonState(ctx context.Context, _, deviceCode string) (*op.DeviceAuthorizationState, error) {
	r, err := o.s.store.Record(ctx, kindDevice, hashKey(deviceCode))
	if err != nil {
		return nil, err
	}
	g, err := decode[deviceGrant](r)
	if err != nil {
		return nil, err
	}
	state := &op.DeviceAuthorizationState{
		ClientID: ClientID, Audience: []string{o.s.Issuer()}, Scopes: g.Scopes, Expires: r.Expires, Denied: g.Denied,
	}
	if g.Proof == nil || g.Denied || !o.s.now().Before(r.Expires) {
		return state, nil
	}
	if _, err := o.s.usableUser(ctx, g.Proof.User); err != nil {
		return nil, err
	}
	if _, err := o.s.store.TakeRecord(ctx, kindDevice, r.Key); err != nil {
		return nil, err
	}
	remember(ctx, *g.Proof, g.Scopes)
	state.Done, state.Subject, state.AMR, state.AuthTime = true, string(g.Proof.User), g.Proof.AMR, g.Proof.AuthTime
	return state, nil
}

// CreateAccessToken names a token; it is a signed JWT and not stored.
func (o opStorage) CreateAccessToken(context.Context, op.TokenRequest) (string, time.Time, error) {
	return newToken(), o.s.now().Add(accessLifetime), nil
}

// CreateAccessAndRefreshTokens makes a refresh token: the first of a family, or the next one
// in exchange for current.
func (o opStorage) CreateAccessAndRefreshTokens(ctx context.Context, req op.TokenRequest, current string) (string, string, time.Time, error) {
	family, expires := newToken(), o.s.now().Add(refreshLifetime)
	if r, ok := req.(*refreshRequest); ok {
		if err := o.s.useRefresh(ctx, hashKey(current)); err != nil {
			return "", "", time.Time{}, o.s.hide(ctx, err)
		}
		family, expires = r.family, r.expires // rotation does not prolong a sign-in
	}
	e := exchangeOf(ctx)
	if e == nil || e.proof.User == "" {
		return "", "", time.Time{}, errors.New("token request without a sign-in")
	}
	token := newToken()
	err := o.s.addJSON(ctx, Record{
		Kind: kindRefresh, Key: hashKey(token), User: e.proof.User, Family: family, Expires: expires,
	}, refreshGrant{Proof: e.proof, Scopes: e.scopes})
	if err != nil {
		return "", "", time.Time{}, o.s.hide(ctx, err)
	}
	id, exp, err := o.CreateAccessToken(ctx, req)
	return id, token, exp, err
}

// hide keeps our errors out of answers: the library writes the text of any error that is not
// one of OpenID's to the client.
func (s *Service) hide(ctx context.Context, err error) error {
	var known *oidc.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	var refused *Error
	if errors.As(err, &refused) {
		return oidc.ErrInvalidGrant().WithDescription("%s", refused.Reason).WithParent(err)
	}
	s.log.ErrorContext(ctx, "tokens cannot be made", "error", err)
	return oidc.ErrServerError().WithDescription("the cause is in the broker's log").WithParent(err)
}

// useRefresh marks a refresh token used. Whoever comes second holds a stolen or a copied
// token; nobody can say which, so the whole family ends.
func (s *Service) useRefresh(ctx context.Context, key string) error {
	var family string
	_, err := s.store.ChangeRecord(ctx, kindRefresh, key, func(r *Record) error {
		g, err := decode[refreshGrant](*r)
		if err != nil {
			return err
		}
		if g.Used {
			family = r.Family
			return op.ErrInvalidRefreshToken
		}
		g.Used = true
		r.Data, err = json.Marshal(g)
		return err
	})
	if family != "" {
		return s.endFamily(ctx, family)
	}
	return err
}

func (s *Service) endFamily(ctx context.Context, family string) error {
	s.log.WarnContext(ctx, "refresh token used twice")
	s.metrics.AuthFailure(ReasonRevoked)
	err := s.store.DeleteRecords(ctx, Filter{Kind: kindRefresh, Family: family})
	return oidc.ErrInvalidGrant().WithDescription("the sign-in has ended").WithParent(err)
}

// TokenRequestByRefreshToken loads a refresh token; rotation follows when the tokens are made.
func (o opStorage) TokenRequestByRefreshToken(ctx context.Context, token string) (op.RefreshTokenRequest, error) {
	r, err := o.s.live(o.s.store.Record(ctx, kindRefresh, hashKey(token)))
	if err != nil {
		return nil, err
	}
	g, err := decode[refreshGrant](r)
	if err != nil {
		return nil, err
	}
	if g.Used {
		return nil, o.s.endFamily(ctx, r.Family)
	}
	if _, err := o.s.usableUser(ctx, g.Proof.User); err != nil {
		return nil, err
	}
	remember(ctx, g.Proof, g.Scopes)
	return &refreshRequest{
		refreshGrant: g, key: r.Key, family: r.Family, expires: r.Expires, audience: []string{o.s.Issuer()},
	}, nil
}

// RevokeToken ends the family of a refresh token. Access tokens live for minutes and are
// checked against the directory at each use.
func (o opStorage) RevokeToken(ctx context.Context, tokenOrID, _, _ string) *oidc.Error {
	r, err := o.s.store.Record(ctx, kindRefresh, hashKey(tokenOrID))
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err == nil {
		err = o.s.store.DeleteRecords(ctx, Filter{Kind: kindRefresh, Family: r.Family})
	}
	if err != nil {
		return oidc.ErrServerError().WithParent(err)
	}
	return nil
}

// GetRefreshTokenInfo recognises a refresh token. It returns the token itself as its id, so
// that RevokeToken gets it unchanged.
func (o opStorage) GetRefreshTokenInfo(ctx context.Context, _, token string) (user, id string, err error) {
	r, err := o.s.store.Record(ctx, kindRefresh, hashKey(token))
	if errors.Is(err, ErrNotFound) {
		return "", "", op.ErrInvalidRefreshToken
	}
	return string(r.User), token, err
}

// GetPrivateClaimsFromRequest gives the access token its binding and its proof.
func (o opStorage) GetPrivateClaimsFromRequest(ctx context.Context, req op.TokenRequest, _ []string) (map[string]any, error) {
	claims, _, err := o.claims(ctx, req.GetSubject(), req.GetScopes())
	if err != nil {
		return nil, o.s.hide(ctx, err)
	}
	claims[claimUse] = useAccess
	return claims, nil
}

// SetUserinfoFromRequest gives the id token the same claims and the person's names.
func (o opStorage) SetUserinfoFromRequest(ctx context.Context, info *oidc.UserInfo, req op.IDTokenRequest, _ []string) error {
	claims, u, err := o.claims(ctx, req.GetSubject(), req.GetScopes())
	if err != nil {
		return o.s.hide(ctx, err)
	}
	info.Subject, info.Name, info.PreferredUsername, info.Email = string(u.ID), u.Name, u.Login, u.Mail
	for name, v := range claims {
		info.AppendClaims(name, v)
	}
	return nil
}

// claims are common to access and id token. The subject must be the one who signed in during
// this exchange.
func (o opStorage) claims(ctx context.Context, subject string, scopes []string) (map[string]any, directory.User, error) {
	e := exchangeOf(ctx)
	if e == nil || e.proof.User == "" || string(e.proof.User) != subject {
		return nil, directory.User{}, errors.New("token request without a sign-in")
	}
	key, err := deviceKey(scopes)
	if err != nil {
		return nil, directory.User{}, err
	}
	u, err := o.s.usableUser(ctx, e.proof.User)
	if err != nil {
		return nil, directory.User{}, err
	}
	return map[string]any{
		"cnf":       map[string]any{claimKey: key.String()},
		"acr":       e.proof.ACR,
		"amr":       e.proof.AMR,
		"auth_time": e.proof.AuthTime.Unix(),
		claimIssuer: string(u.Issuer),
	}, u, nil
}

// usableUser returns a user who may have tokens.
func (s *Service) usableUser(ctx context.Context, id ids.UserID) (directory.User, error) {
	u, err := s.dir.User(ctx, id)
	switch {
	case errors.Is(err, directory.ErrNotFound):
		return directory.User{}, refuse(ReasonUnverified, err)
	case err != nil:
		return directory.User{}, err
	case u.Disabled:
		return directory.User{}, refuse(ReasonUserDisabled, nil)
	case !u.Usable():
		return directory.User{}, refuse(ReasonRevoked, nil)
	}
	return u, nil
}

// GetClientByClientID knows one client.
func (opStorage) GetClientByClientID(_ context.Context, id string) (op.Client, error) {
	if id != ClientID {
		return nil, oidc.ErrInvalidClient().WithDescription("unknown client")
	}
	return cliClient{}, nil
}

// AuthorizeClientIDSecret refuses: the client is public.
func (opStorage) AuthorizeClientIDSecret(context.Context, string, string) error { return errNotOffered }

// SetUserinfoFromScopes is superseded by SetUserinfoFromRequest.
func (opStorage) SetUserinfoFromScopes(context.Context, *oidc.UserInfo, string, string, []string) error {
	return nil
}

// SetUserinfoFromToken refuses: the userinfo endpoint is not mounted.
func (opStorage) SetUserinfoFromToken(context.Context, *oidc.UserInfo, string, string, string) error {
	return errNotOffered
}

// SetIntrospectionFromToken refuses: introspection is not mounted.
func (opStorage) SetIntrospectionFromToken(context.Context, *oidc.IntrospectionResponse, string, string, string) error {
	return errNotOffered
}

// GetPrivateClaimsFromScopes refuses: claims need the request.
func (opStorage) GetPrivateClaimsFromScopes(context.Context, string, string, []string) (map[string]any, error) {
	return nil, errNotOffered
}

// GetKeyByIDAndClientID refuses: no client signs assertions.
func (opStorage) GetKeyByIDAndClientID(context.Context, string, string) (*jose.JSONWebKey, error) {
	return nil, errNotOffered
}

// ValidateJWTProfileScopes refuses: the grant is not offered.
func (opStorage) ValidateJWTProfileScopes(context.Context, string, []string) ([]string, error) {
	return nil, errNotOffered
}

// TerminateSession refuses: the end-session endpoint is not mounted.
func (opStorage) TerminateSession(context.Context, string, string) error { return errNotOffered }

// Health is the store's own affair.
func (opStorage) Health(context.Context) error { return nil }
