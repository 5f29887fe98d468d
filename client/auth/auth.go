// Package auth signs a person in: OpenID Connect code flow with PKCE, or a device code,
// against the broker's own provider, over connections that are pinned to the broker. The
// root package uses it and redeems the tokens, which are bound to the device key.
//
//	browser -> http://127.0.0.1:PORT/start/... -> pages of the broker, through loopback
//	        <- code at /callback               -> token endpoint, pinned
//
// A broker without a public name has no certificate that a browser trusts; then its pages
// are served through a proxy on the loopback address that ends here (decisions rule 4).
// With an operator's certificate the browser goes to the broker itself.
//
// No password ever passes through our own code paths: the proxy moves bytes between the
// browser and the broker. Tokens are Secrets and appear in no log, URL or argument.
// SignIn and SignInDevice own every goroutine and socket they open.
package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"golang.org/x/oauth2"

	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/proto/ids"
)

// Patience is how long a person may take.
const Patience = 5 * time.Minute

// requestTimeout bounds one request to the provider.
const requestTimeout = 30 * time.Second

// Errors that callers branch on.
var (
	// ErrTooLong says that nobody finished the sign-in in time.
	ErrTooLong = errors.New("nobody signed in within 5 minutes; start again")
	// ErrRefused says that the person, or the broker, refused.
	ErrRefused = errors.New("the sign-in was refused")
	// ErrProvider says that the broker's provider gives answers that cannot be trusted.
	ErrProvider = errors.New("the broker's sign-in service gave an unusable answer")
)

// Secret is a token. It redacts itself wherever it is printed.
type Secret string

// String hides the token.
func (Secret) String() string { return "[token]" }

// GoString hides the token.
func (Secret) GoString() string { return "[token]" }

// LogValue hides the token.
func (Secret) LogValue() slog.Value { return slog.StringValue("[token]") }

// MarshalJSON hides the token.
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"[token]"`), nil }

// Tokens are what a sign-in gives.
type Tokens struct{ Access, Refresh Secret }

// Prompt asks the person for something.
type Prompt struct {
	// URL is the page to open.
	URL string
	// Code is to be compared or typed there; empty in the flow with a browser here.
	Code string
}

// Config describes one sign-in; all fields but Dialer and Now are required.
type Config struct {
	Broker control.Broker
	// Dialer is a plain *net.Dialer when nil.
	Dialer control.Dialer
	// Issuer and ClientID come from the broker's hello.
	Issuer   string
	ClientID string
	// Key is the device key that the tokens are bound to.
	Key ids.KeyID
	// DeviceName is shown on the page of a device code.
	DeviceName string
	// Show is called once, when the page can be opened. It must not block.
	Show func(Prompt)
	// Now is time.Now when nil.
	Now func() time.Time
}

// devicePrefix starts the scope that binds tokens to a device key.
const devicePrefix = "postern:device:"

// SignIn lets the person sign in with a browser on this machine.
func SignIn(ctx context.Context, cfg Config) (Tokens, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, Patience, ErrTooLong)
	defer cancel()
	p, err := discover(ctx, cfg)
	if err != nil {
		return Tokens{}, err
	}
	defer p.close()
	b, err := newLoopback(ctx, p)
	if err != nil {
		return Tokens{}, err
	}
	defer b.close(ctx)
	cfg.Show(Prompt{URL: b.startURL()})
	code, err := b.wait(ctx)
	if err != nil {
		return Tokens{}, err
	}
	token, err := p.oauth(b.redirectURL()).Exchange(p.context(ctx), string(code), oauth2.VerifierOption(b.verifier))
	if err != nil {
		return Tokens{}, p.explain(ctx, err)
	}
	return tokensOf(token)
}

// SignInDevice lets the person sign in with a browser on any machine.
func SignInDevice(ctx context.Context, cfg Config) (Tokens, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, Patience, ErrTooLong)
	defer cancel()
	p, err := discover(ctx, cfg)
	if err != nil {
		return Tokens{}, err
	}
	defer p.close()
	client, ctx := p.oauth(""), p.context(ctx)
	code, err := client.DeviceAuth(ctx, oauth2.SetAuthURLParam("device_name", cfg.DeviceName))
	if err != nil {
		return Tokens{}, p.explain(ctx, err)
	}
	cfg.Show(Prompt{URL: code.VerificationURI, Code: code.UserCode})
	token, err := client.DeviceAccessToken(ctx, code)
	if err != nil {
		return Tokens{}, p.explain(ctx, err)
	}
	return tokensOf(token)
}

func tokensOf(t *oauth2.Token) (Tokens, error) {
	if t.AccessToken == "" {
		return Tokens{}, fmt.Errorf("%w: no access token", ErrProvider)
	}
	return Tokens{Access: Secret(t.AccessToken), Refresh: Secret(t.RefreshToken)}, nil
}

// context makes the oauth2 package use the pinned client.
func (p *provider) context(ctx context.Context) context.Context {
	return context.WithValue(ctx, oauth2.HTTPClient, &http.Client{Transport: p.transport, Timeout: requestTimeout})
}

func (p *provider) oauth(redirect string) *oauth2.Config {
	return &oauth2.Config{
		ClientID: p.cfg.ClientID, RedirectURL: redirect,
		Scopes: []string{"openid", "offline_access", devicePrefix + p.cfg.Key.String()},
		Endpoint: oauth2.Endpoint{
			AuthURL: p.doc.Authorization, TokenURL: p.doc.Token, DeviceAuthURL: p.doc.Device, AuthStyle: oauth2.AuthStyleInParams,
		},
	}
}

// explain turns an error of the oauth2 package into one that quotes no answer.
func (p *provider) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var answer *oauth2.RetrieveError
	if !errors.As(err, &answer) {
		return err
	}
	switch answer.ErrorCode {
	case "access_denied":
		return ErrRefused
	case "expired_token":
		return ErrTooLong
	case "":
		return fmt.Errorf("%w: status %d", ErrProvider, answer.Response.StatusCode)
	default:
		return fmt.Errorf("%w: %.64q", ErrRefused, answer.ErrorCode)
	}
}
