package identity

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/proto/ids"
)

// amrFederated stands in when an issuer says nothing about how somebody signed in.
const amrFederated = "fed"

// externalLogin is a browser that has been sent to an issuer.
type externalLogin struct {
	Request  string       `json:"request"`
	Issuer   ids.IssuerID `json:"issuer"`
	Nonce    string       `json:"nonce"`
	Verifier string       `json:"verifier"`
	Browser  string       `json:"browser"`
}

// serveWith sends the browser to an external issuer, with state, nonce and PKCE of its own.
func (s *Service) serveWith(w http.ResponseWriter, r *http.Request) {
	ctx, id := r.Context(), r.FormValue("request")
	f, err := s.ownFlow(ctx, id, s.browserOf(r))
	if err != nil || f.Proof != nil {
		s.noFlow(w, r, errors.Join(err, ErrNotFound))
		return
	}
	issuerID, err := ids.Parse[ids.IssuerID](r.FormValue("issuer"))
	if err != nil {
		s.gone(w, r)
		return
	}
	i, live, err := s.liveIssuer(ctx, issuerID)
	if err != nil {
		s.refuseExternal(w, r, issuerID, err)
		return
	}
	target, err := s.beginExternal(ctx, live.oauth(i, s.ReturnURL()), externalLogin{
		Request: id, Issuer: issuerID, Nonce: newToken(), Verifier: oauth2.GenerateVerifier(), Browser: f.Browser,
	}, f)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	http.Redirect(w, r, target, http.StatusFound)
}

func (s *Service) beginExternal(ctx context.Context, client *oauth2.Config, e externalLogin, f flow) (string, error) {
	if err := s.roomFor(ctx, kindExternal); err != nil {
		return "", err
	}
	state := newToken()
	err := s.addJSON(ctx, Record{Kind: kindExternal, Key: hashKey(state), Expires: s.now().Add(flowLifetime)}, e)
	if err != nil {
		return "", err
	}
	opts := []oauth2.AuthCodeOption{gooidc.Nonce(e.Nonce), oauth2.S256ChallengeOption(e.Verifier)}
	if len(f.ACRValues) > 0 {
		opts = append(opts, oauth2.SetAuthURLParam("acr_values", strings.Join(f.ACRValues, " ")))
	}
	if f.LoginHint != "" {
		opts = append(opts, oauth2.SetAuthURLParam("login_hint", f.LoginHint))
	}
	return client.AuthCodeURL(state, opts...), nil
}

// liveIssuer returns an issuer's settings and its discovery.
func (s *Service) liveIssuer(ctx context.Context, id ids.IssuerID) (Issuer, *liveIssuer, error) {
	i, err := s.issuer(ctx, id)
	if err != nil {
		return Issuer{}, nil, err
	}
	live, err := s.issuers.get(ctx, i.URL)
	return i, live, err
}

// serveReturn takes the browser back from the issuer and finishes the sign-in.
func (s *Service) serveReturn(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	e, err := s.takeExternal(r)
	if err != nil {
		s.noFlow(w, r, err)
		return
	}
	f, err := s.ownFlow(r.Context(), e.Request, e.Browser)
	if err != nil {
		s.noFlow(w, r, err)
		return
	}
	p, err := s.finishExternal(r, e)
	s.metrics.AuthLatency(time.Since(start))
	if err != nil {
		s.refuseExternal(w, r, e.Issuer, err)
		return
	}
	s.metrics.AuthAttempt(string(e.Issuer), "success")
	if err := s.prove(r.Context(), e.Request, p); err != nil {
		s.noFlow(w, r, err)
		return
	}
	http.Redirect(w, r, nextPage(e.Request, f), http.StatusSeeOther)
}

// takeExternal takes the record of a state; a state works once and in its own browser.
func (s *Service) takeExternal(r *http.Request) (externalLogin, error) {
	rec, err := s.live(s.store.TakeRecord(r.Context(), kindExternal, hashKey(r.FormValue("state"))))
	if err != nil {
		return externalLogin{}, err
	}
	e, err := decode[externalLogin](rec)
	if err == nil && (e.Browser == "" || e.Browser != s.browserOf(r)) {
		err = ErrNotFound
	}
	return e, err
}

// finishExternal exchanges the code, verifies the id token and brings the directory up to date.
func (s *Service) finishExternal(r *http.Request, e externalLogin) (proof, error) {
	ctx := r.Context()
	if code := r.FormValue("error"); code != "" {
		return proof{}, refuse(ReasonIdPRefused, fmt.Errorf("the issuer answered %q", displayName(code)))
	}
	i, live, err := s.liveIssuer(ctx, e.Issuer)
	if err != nil {
		return proof{}, err
	}
	tokenCtx := gooidc.ClientContext(ctx, s.issuers.client)
	token, err := live.oauth(i, s.ReturnURL()).Exchange(tokenCtx, r.FormValue("code"), oauth2.VerifierOption(e.Verifier))
	if err != nil {
		return proof{}, exchangeError(err)
	}
	claims, raw, err := s.verifyExternal(ctx, i, live, token)
	if err != nil {
		return proof{}, err
	}
	if subtle.ConstantTimeCompare([]byte(claims.Nonce), []byte(e.Nonce)) != 1 {
		return proof{}, refuse(ReasonTokenNonce, nil)
	}
	u, err := s.dir.Apply(ctx, i.ID, claims.Subject, i.Claims.Read(raw))
	if err != nil {
		return proof{}, fmt.Errorf("apply claims: %w", err)
	}
	if u.Disabled {
		return proof{}, refuse(ReasonUserDisabled, nil)
	}
	return s.externalProof(claims, u.ID), s.keepUpstream(ctx, u.ID, i.ID, token.RefreshToken)
}

// externalProof passes on what the issuer says about how and when.
func (s *Service) externalProof(c tokenClaims, user ids.UserID) proof {
	p := proof{User: user, ACR: c.ACR, AMR: c.AMR, AuthTime: unixTime(c.AuthTime)}
	if len(p.AMR) == 0 {
		p.AMR = []string{amrFederated}
	}
	if p.AuthTime.IsZero() || p.AuthTime.After(s.now()) {
		p.AuthTime = s.now()
	}
	return p
}

// verifyExternal checks the id token of an answer and returns its claims, typed and raw.
func (s *Service) verifyExternal(ctx context.Context, i Issuer, live *liveIssuer, token *oauth2.Token) (tokenClaims, map[string]any, error) {
	text, ok := token.Extra("id_token").(string)
	if !ok || text == "" {
		return tokenClaims{}, nil, refuse(ReasonTokenMalformed, errors.New("the issuer sent no id token"))
	}
	payload, err := verifySignature(ctx, text, i.URL, live.algs, live.keys)
	if err != nil {
		return tokenClaims{}, nil, err
	}
	c, err := parseClaims(payload)
	if err != nil {
		return tokenClaims{}, nil, err
	}
	if err := c.check(i.URL, i.ClientID, s.now(), clockLeeway); err != nil {
		return tokenClaims{}, nil, err
	}
	if c.Party != "" && c.Party != i.ClientID {
		return tokenClaims{}, nil, refuse(ReasonTokenAudience, errors.New("issued to another party"))
	}
	var raw map[string]any
	if err := json.Unmarshal(payload, &raw); err != nil {
		return tokenClaims{}, nil, refuse(ReasonTokenMalformed, err)
	}
	return c, raw, nil
}

// exchangeError tells an issuer that says no from one that does not answer.
func exchangeError(err error) error {
	var answer *oauth2.RetrieveError
	if errors.As(err, &answer) && answer.Response != nil && answer.Response.StatusCode < 500 {
		// The body may hold anything; the code is enough.
		return refuse(ReasonIdPRefused, fmt.Errorf("status %d, error %q", answer.Response.StatusCode, displayName(answer.ErrorCode)))
	}
	return refuse(ReasonIdPUnreachable, errors.New("no answer from the token endpoint"))
}

// refuseExternal tells the person what can be done and the log what happened.
func (s *Service) refuseExternal(w http.ResponseWriter, r *http.Request, issuer ids.IssuerID, err error) {
	if errors.Is(err, ErrNotFound) {
		s.gone(w, r)
		return
	}
	var refused *Error
	if !errors.As(err, &refused) && !errors.Is(err, directory.ErrInvalid) {
		s.fail(w, r, err)
		return
	}
	reason := ReasonOf(err)
	s.metrics.AuthAttempt(string(issuer), "failure")
	s.metrics.AuthFailure(reason)
	s.recordFailed(r, string(issuer), "", reason)
	s.log.WarnContext(r.Context(), "external sign-in refused", "issuer", string(issuer), "reason", string(reason), "error", err)
	title, text := "You could not be signed in", "The answer of the identity provider was not accepted ("+string(reason)+"). Your administrator finds the cause in the broker's log."
	if reason == ReasonIdPUnreachable {
		title, text = "The identity provider does not answer", "Please try again in a minute. Sessions that are open go on."
	}
	s.message(w, r, http.StatusForbidden, title, text)
}
