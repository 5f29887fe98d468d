package identitytest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"

	"golang.org/x/oauth2"

	"github.com/postern-zt/postern/proto/ids"
)

// Person is who signs in. With a Provider the page's link "Sign in with PROVIDER" is used,
// and the external provider is expected to send the browser straight back; else Login and
// Password go into the form.
type Person struct {
	Login, Password string
	Provider        string
}

// Target is the broker to sign in at.
type Target struct {
	// Issuer is the broker's public URL.
	Issuer string
	// Transport may be nil; it is where a test trusts the broker's certificate.
	Transport http.RoundTripper
	// Device is the key that the tokens are bound to.
	Device ids.KeyID
	// DeviceName is what the device calls itself in the device flow.
	DeviceName string
}

// Tokens are what a client gets.
type Tokens struct{ Access, ID, Refresh string }

// redirect is a loopback address that nobody listens on: the browser stops before it.
const redirect = "http://127.0.0.1:49152/callback"

// Client returns the OpenID client of Postern's own programs at the target.
func (t Target) Client() *oauth2.Config {
	return &oauth2.Config{
		ClientID: "postern-cli", RedirectURL: redirect,
		Scopes: []string{"openid", "profile", "email", "offline_access", "postern:device:" + t.Device.String()},
		Endpoint: oauth2.Endpoint{
			AuthURL: t.Issuer + "/oauth/authorize", TokenURL: t.Issuer + "/oauth/token",
			DeviceAuthURL: t.Issuer + "/oauth/device_authorization", AuthStyle: oauth2.AuthStyleInParams,
		},
	}
}

// Context returns ctx with the target's transport for requests of the oauth2 package.
func (t Target) Context(ctx context.Context) context.Context {
	return context.WithValue(ctx, oauth2.HTTPClient, &http.Client{Transport: t.Transport})
}

// SignIn runs the authorization code flow with PKCE.
func SignIn(ctx context.Context, t Target, who Person) (Tokens, error) {
	client, verifier, state := t.Client(), oauth2.GenerateVerifier(), oauth2.GenerateVerifier()
	page, err := NewBrowser(t.Transport).Open(ctx, client.AuthCodeURL(state, oauth2.S256ChallengeOption(verifier)))
	if err != nil {
		return Tokens{}, err
	}
	if page, err = who.FillIn(ctx, page); err != nil {
		return Tokens{}, err
	}
	if page.Callback == nil {
		return Tokens{}, fmt.Errorf("not signed in, status %d: %s", page.Status, page.Text)
	}
	query := page.Callback.Query()
	if query.Get("state") != state {
		return Tokens{}, errors.New("the callback has another state")
	}
	if code := query.Get("error"); code != "" {
		return Tokens{}, fmt.Errorf("the callback has the error %q", code)
	}
	token, err := client.Exchange(t.Context(ctx), query.Get("code"), oauth2.VerifierOption(verifier))
	if err != nil {
		return Tokens{}, err
	}
	return tokensOf(token), nil
}

// FillIn signs in on the sign-in page.
func (who Person) FillIn(ctx context.Context, page *Page) (*Page, error) {
	if who.Provider != "" {
		return page.Follow(ctx, "Sign in with "+who.Provider)
	}
	return page.Submit(ctx, map[string]string{"login": who.Login, "password": who.Password})
}

// SignInDevice runs the device code flow: it asks for a code, lets who decide about it in a
// browser, and polls. Without allow the person refuses, and the error says so.
func SignInDevice(ctx context.Context, t Target, who Person, allow bool) (Tokens, error) {
	client, ctx := t.Client(), t.Context(ctx)
	code, err := client.DeviceAuth(ctx, oauth2.SetAuthURLParam("device_name", t.DeviceName))
	if err != nil {
		return Tokens{}, err
	}
	if err := Decide(ctx, t, who, code.VerificationURIComplete, allow); err != nil {
		return Tokens{}, err
	}
	code.Interval = 1 // the person has decided already
	token, err := client.DeviceAccessToken(ctx, code)
	if err != nil {
		return Tokens{}, err
	}
	return tokensOf(token), nil
}

// Decide opens the page of a device code, signs in and allows or refuses.
func Decide(ctx context.Context, t Target, who Person, verification string, allow bool) error {
	page, err := NewBrowser(t.Transport).Open(ctx, verification)
	if err != nil {
		return err
	}
	if page, err = page.Submit(ctx, nil); err != nil {
		return err
	}
	if page, err = who.FillIn(ctx, page); err != nil {
		return err
	}
	decision := "deny"
	if allow {
		decision = "allow"
	}
	page, err = page.Submit(ctx, map[string]string{"decision": decision})
	if err != nil {
		return err
	}
	if page.Status != http.StatusOK {
		return fmt.Errorf("not decided, status %d: %s", page.Status, page.Text)
	}
	return nil
}

// Refresh exchanges a refresh token.
func Refresh(ctx context.Context, t Target, refresh string) (Tokens, error) {
	token, err := t.Client().TokenSource(t.Context(ctx), &oauth2.Token{RefreshToken: refresh}).Token()
	if err != nil {
		return Tokens{}, err
	}
	return tokensOf(token), nil
}

func tokensOf(t *oauth2.Token) Tokens {
	id, _ := t.Extra("id_token").(string)
	return Tokens{Access: t.AccessToken, ID: id, Refresh: t.RefreshToken}
}

// Owner is what is filled in on the set-up page. People has a line per first user.
type Owner struct {
	Login, Password, Suffix, People string
}

// codePattern finds invitation codes on the page after the set-up.
var codePattern = regexp.MustCompile(`#((?:[0-9A-Z]{5}-){3}[0-9A-Z]{5})`)

// SetUp uses an owner code and returns the invitation codes of the first users, in their order.
func SetUp(ctx context.Context, t Target, code string, o Owner) ([]string, error) {
	page, err := submitAt(ctx, t, "/setup", map[string]string{
		"code": code, "login": o.Login, "password": o.Password, "again": o.Password, "suffix": o.Suffix, "people": o.People,
	})
	if err != nil {
		return nil, err
	}
	var codes []string
	for _, m := range codePattern.FindAllStringSubmatch(page.Text, -1) {
		codes = append(codes, m[1])
	}
	return codes, nil
}

// AcceptInvite sets a password with an invitation code.
func AcceptInvite(ctx context.Context, t Target, code, password string) error {
	_, err := submitAt(ctx, t, "/invite", map[string]string{"code": code, "password": password, "again": password})
	return err
}

func submitAt(ctx context.Context, t Target, path string, values map[string]string) (*Page, error) {
	page, err := NewBrowser(t.Transport).Open(ctx, t.Issuer+path)
	if err != nil {
		return nil, err
	}
	if page, err = page.Submit(ctx, values); err != nil {
		return nil, err
	}
	if page.Status != http.StatusOK {
		return nil, fmt.Errorf("%s: status %d: %s", path, page.Status, page.Text)
	}
	return page, nil
}
