package identity

import (
	"context"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"

	"github.com/postern-zt/postern/proto/ids"
)

// Names of our own claims.
const (
	claimKey    = "postern_key"    // inside cnf: hexadecimal KeyID of the device
	claimIssuer = "postern_issuer" // the directory's issuer of the user
	claimUse    = "postern_use"
	useAccess   = "access" // an id token lacks it and cannot stand in for an access token
)

const (
	// maxToken bounds a token before it is parsed; ours have about 1 KiB, those of large
	// directories a few.
	maxToken = 64 << 10
	// clockLeeway is how far clocks may differ: 5 min still works.
	clockLeeway = 5 * time.Minute
)

// Identity is a verified person on a verified device key.
type Identity struct {
	User ids.UserID
	// Issuer is where the person signed in: directory.Local or an external issuer.
	Issuer   ids.IssuerID
	ACR      string
	AMR      []string
	AuthTime time.Time
	// Key is the device key that the token is bound to and the peer has shown.
	Key     ids.KeyID
	Expires time.Time
}

// Verifier checks access tokens of this Service.
type Verifier struct{ s *Service }

// Verifier returns the verifier of the tokens that s issues.
func (s *Service) Verifier() *Verifier { return &Verifier{s} }

// Verify returns who holds the token, or an *Error with the reason. peer is the key that the
// TLS peer has proven to hold; a token bound to another key is refused.
func (v *Verifier) Verify(ctx context.Context, token string, peer ids.KeyID) (Identity, error) {
	id, err := v.verify(ctx, token, peer)
	if err != nil {
		v.s.metrics.AuthFailure(ReasonOf(err))
		return Identity{}, err
	}
	return id, nil
}

func (v *Verifier) verify(ctx context.Context, token string, peer ids.KeyID) (Identity, error) {
	algs, keys, err := v.s.localKeys(ctx)
	if err != nil {
		return Identity{}, err
	}
	payload, err := verifySignature(ctx, token, v.s.Issuer(), algs, keys)
	if err != nil {
		return Identity{}, err
	}
	c, err := parseClaims(payload)
	if err != nil {
		return Identity{}, err
	}
	if err := c.check(v.s.Issuer(), v.s.Issuer(), v.s.now(), 0); err != nil {
		return Identity{}, err
	}
	if c.Use != useAccess {
		return Identity{}, refuse(ReasonTokenAudience, errors.New("not an access token"))
	}
	if err := c.checkKey(peer); err != nil {
		return Identity{}, err
	}
	return v.s.identityOf(ctx, c, peer)
}

// identityOf asks the directory: a disabled user is refused with a token still valid.
func (s *Service) identityOf(ctx context.Context, c tokenClaims, peer ids.KeyID) (Identity, error) {
	id, err := ids.Parse[ids.UserID](c.Subject)
	if err != nil {
		return Identity{}, refuse(ReasonTokenSubject, err)
	}
	u, err := s.usableUser(ctx, id)
	if err != nil {
		return Identity{}, err
	}
	return Identity{
		User: u.ID, Issuer: u.Issuer, ACR: c.ACR, AMR: c.AMR,
		AuthTime: unixTime(c.AuthTime), Key: peer, Expires: unixTime(c.Expiry),
	}, nil
}

func (s *Service) localKeys(ctx context.Context) (algs []string, set gooidc.KeySet, err error) {
	keys, err := opStorage{s}.KeySet(ctx)
	if err != nil {
		return nil, nil, err
	}
	static := &gooidc.StaticKeySet{}
	for _, k := range keys {
		static.PublicKeys = append(static.PublicKeys, k.Key())
		algs = append(algs, string(k.Algorithm()))
	}
	return algs, static, nil
}

// tokenClaims are the claims that decide, of our own tokens and of external id tokens.
type tokenClaims struct {
	Issuer    string          `json:"iss"`
	Subject   string          `json:"sub"`
	Audience  audience        `json:"aud"`
	Party     string          `json:"azp"`
	Expiry    float64         `json:"exp"`
	NotBefore float64         `json:"nbf"`
	IssuedAt  float64         `json:"iat"`
	AuthTime  float64         `json:"auth_time"`
	Nonce     string          `json:"nonce"`
	ACR       string          `json:"acr"`
	AMR       []string        `json:"amr"`
	Use       string          `json:"postern_use"`
	Confirm   json.RawMessage `json:"cnf"`
}

// audience is a text or a list of texts.
type audience []string

// UnmarshalJSON reads both forms.
func (a *audience) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*a = audience{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(a))
}

func parseClaims(payload []byte) (tokenClaims, error) {
	var c tokenClaims
	if err := json.Unmarshal(payload, &c); err != nil {
		return c, refuse(ReasonTokenMalformed, err)
	}
	return c, nil
}

// check compares issuer, audience and times; each failure has its own reason.
func (c tokenClaims) check(issuer, aud string, now time.Time, leeway time.Duration) error {
	switch {
	case c.Issuer != issuer:
		return refuse(ReasonTokenIssuer, fmt.Errorf("issued by %q", c.Issuer))
	case !slices.Contains(c.Audience, aud):
		return refuse(ReasonTokenAudience, fmt.Errorf("issued for %q", c.Audience))
	case c.Expiry == 0 || !now.Before(unixTime(c.Expiry).Add(leeway)):
		return refuse(ReasonTokenExpired, nil)
	case c.NotBefore != 0 && now.Add(clockLeeway).Before(unixTime(c.NotBefore)):
		return refuse(ReasonTokenNotYet, nil)
	case c.IssuedAt != 0 && now.Add(clockLeeway).Before(unixTime(c.IssuedAt)):
		return refuse(ReasonTokenNotYet, errors.New("issued in the future"))
	case c.Subject == "":
		return refuse(ReasonTokenSubject, nil)
	}
	return nil
}

// checkKey compares the bound key with the peer's; a token without a key is nobody's.
func (c tokenClaims) checkKey(peer ids.KeyID) error {
	var cnf struct {
		Key string `json:"postern_key"`
	}
	if err := json.Unmarshal(c.Confirm, &cnf); err != nil {
		return refuse(ReasonTokenKey, errors.New("the token is bound to no key"))
	}
	bound, err := ids.ParseKeyID(cnf.Key)
	if err != nil || peer.IsZero() || subtle.ConstantTimeCompare(bound[:], peer[:]) != 1 {
		return refuse(ReasonTokenKey, errors.New("the token is bound to another key"))
	}
	return nil
}

// verifySignature returns the payload of a token signed under keys with one of algs. It
// checks nothing else.
func verifySignature(ctx context.Context, token, issuer string, algs []string, keys gooidc.KeySet) ([]byte, error) {
	if len(token) > maxToken {
		return nil, refuse(ReasonTokenMalformed, errors.New("the token is too long"))
	}
	alg, err := algOf(token)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(algs, alg) {
		return nil, refuse(ReasonTokenAlgorithm, fmt.Errorf("algorithm %q is not accepted", alg))
	}
	watched := &watchedKeys{KeySet: keys}
	v := gooidc.NewVerifier(issuer, watched, &gooidc.Config{
		SkipClientIDCheck: true, SkipIssuerCheck: true, SkipExpiryCheck: true, // tokenClaims.check follows
		SupportedSigningAlgs: algs,
	})
	verified, err := v.Verify(ctx, token)
	if err != nil {
		return nil, signatureError(errors.Join(watched.err, err))
	}
	var payload json.RawMessage
	if err := verified.Claims(&payload); err != nil {
		return nil, refuse(ReasonTokenMalformed, err)
	}
	return payload, nil
}

// watchedKeys remembers the error of a key set, of which go-oidc passes on only the text.
type watchedKeys struct {
	gooidc.KeySet
	err error
}

// VerifySignature implements go-oidc's KeySet.
func (w *watchedKeys) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	payload, err := w.KeySet.VerifySignature(ctx, token)
	w.err = err
	return payload, err
}

// signatureError keeps the reason of a key set that could not be fetched.
func signatureError(err error) error {
	var refused *Error
	if errors.As(err, &refused) {
		return refused
	}
	return refuse(ReasonTokenSignature, err)
}

// algOf reads the algorithm that a token claims, before anything is believed.
func algOf(token string) (string, error) {
	head, _, ok := strings.Cut(token, ".")
	raw, err := base64.RawURLEncoding.DecodeString(head)
	if !ok || err != nil {
		return "", refuse(ReasonTokenMalformed, err)
	}
	var header struct {
		Alg string `json:"alg"`
	}
	if err := json.Unmarshal(raw, &header); err != nil {
		return "", refuse(ReasonTokenMalformed, err)
	}
	return header.Alg, nil
}

func unixTime(seconds float64) time.Time {
	if seconds <= 0 || seconds > 1e11 {
		return time.Time{}
	}
	return time.Unix(int64(seconds), 0)
}
