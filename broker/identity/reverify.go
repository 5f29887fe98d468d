package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/proto/ids"
)

// upstream is what an issuer gave us to ask about a user again.
type upstream struct {
	Issuer ids.IssuerID `json:"issuer"`
	// Sealed is the issuer's refresh token.
	Sealed []byte `json:"sealed"`
}

// Outcome is the result of a re-verification.
type Outcome string

// Outcomes of Reverify.
const (
	// OutcomeFresh: the issuer confirmed the user; groups and attributes are up to date.
	OutcomeFresh Outcome = "fresh"
	// OutcomeStale: the issuer could not be asked (identity_stale); sessions go on.
	OutcomeStale Outcome = "stale"
	// OutcomeRefused: the issuer no longer confirms the user (identity_revoked), who has to
	// sign in again; or the user is disabled here.
	OutcomeRefused Outcome = "refused"
	// OutcomeNone: there is nothing to ask with; the session's own age has to do.
	OutcomeNone Outcome = "none"
)

// Reverify asks a user's issuer again, with the refresh token kept from the last time. It is
// called at each re-verify interval. What it finds is in the directory when it returns. An
// error means that this broker could not do its part (store, keys); callers treat it like
// OutcomeStale and try again.
func (s *Service) Reverify(ctx context.Context, user ids.UserID) (Outcome, error) {
	// Issuers that rotate refresh tokens end the family when one is used twice.
	unlock, err := s.reverify.lock(ctx, string(user))
	if err != nil {
		return OutcomeStale, err
	}
	defer unlock()
	u, err := s.dir.User(ctx, user)
	if errors.Is(err, directory.ErrNotFound) {
		return OutcomeRefused, nil
	}
	if err != nil {
		return OutcomeStale, err
	}
	if !u.Usable() {
		return OutcomeRefused, nil
	}
	if u.Issuer == directory.Local {
		return OutcomeFresh, nil
	}
	return s.reverifyExternal(ctx, u)
}

// AskedOf returns the issuer that Reverify asks about a user: empty for a user of ours, for
// one that does not exist, and where there is no refresh token to ask with.
func (s *Service) AskedOf(ctx context.Context, user ids.UserID) (ids.IssuerID, error) {
	rec, err := s.store.Record(ctx, kindUpstream, string(user))
	if errors.Is(err, ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	up, err := decode[upstream](rec)
	return up.Issuer, err
}

func (s *Service) reverifyExternal(ctx context.Context, u directory.User) (Outcome, error) {
	rec, err := s.store.Record(ctx, kindUpstream, string(u.ID))
	if errors.Is(err, ErrNotFound) {
		return OutcomeNone, nil
	}
	if err != nil {
		return OutcomeStale, err
	}
	err = s.askIssuer(ctx, u, rec)
	switch ReasonOf(err) {
	case "":
		return OutcomeFresh, nil
	case ReasonIdPUnreachable:
		return s.settle(ctx, u, directory.IdentityStale, OutcomeStale, err)
	case ReasonIdPRefused, ReasonTokenSubject, ReasonRevoked:
		return s.refused(ctx, u, err)
	}
	var odd *Error
	if errors.As(err, &odd) {
		// A token that does not verify proves nothing about the person: not fresh, not gone.
		return s.settle(ctx, u, directory.IdentityStale, OutcomeStale, err)
	}
	return OutcomeStale, err
}

func (s *Service) settle(ctx context.Context, u directory.User, state directory.IdentityState, out Outcome, cause error) (Outcome, error) {
	s.metrics.AuthFailure(ReasonOf(cause))
	if u.Identity != state {
		s.log.WarnContext(ctx, "identity not confirmed", "user", string(u.ID), "issuer", string(u.Issuer), "reason", string(ReasonOf(cause)), "error", cause)
	}
	_, err := s.dir.SetIdentity(ctx, u.ID, state)
	return out, err
}

// refused signs the user out: tokens end, and the directory's change event ends sessions.
func (s *Service) refused(ctx context.Context, u directory.User, cause error) (Outcome, error) {
	out, err := s.settle(ctx, u, directory.IdentityRefused, OutcomeRefused, cause)
	return out, errors.Join(err, s.SignOut(ctx, u.ID),
		s.store.DeleteRecords(ctx, Filter{Kind: kindUpstream, User: u.ID}))
}

// askIssuer uses the refresh token, keeps its successor, and applies the claims.
func (s *Service) askIssuer(ctx context.Context, u directory.User, rec Record) error {
	up, err := decode[upstream](rec)
	if err != nil {
		return err
	}
	i, live, err := s.liveIssuer(ctx, up.Issuer)
	if errors.Is(err, ErrNotFound) {
		return refuse(ReasonIdPUnreachable, errors.New("the issuer is no longer configured"))
	}
	if err != nil {
		return err
	}
	token, err := s.refreshUpstream(ctx, u, up, live.oauth(i, s.ReturnURL()))
	if err != nil {
		return err
	}
	claims, err := s.freshClaims(ctx, i, live, u, token)
	if err != nil {
		return err
	}
	_, err = s.dir.Apply(ctx, i.ID, u.Subject, i.Claims.Read(claims))
	return err
}

func (s *Service) refreshUpstream(ctx context.Context, u directory.User, up upstream, client *oauth2.Config) (*oauth2.Token, error) {
	plain, err := s.cfg.Sealer.Open(ctx, purposeUpstream(u.ID), up.Sealed)
	if err != nil {
		return nil, fmt.Errorf("open refresh token: %w", err)
	}
	ctx, cancel := context.WithTimeout(gooidc.ClientContext(ctx, s.issuers.client), idpTimeout)
	defer cancel()
	token, err := client.TokenSource(ctx, &oauth2.Token{RefreshToken: string(plain), Expiry: time.Unix(1, 0)}).Token()
	if err != nil {
		return nil, refreshError(err)
	}
	if token.RefreshToken != "" && token.RefreshToken != string(plain) {
		if err := s.keepUpstream(context.WithoutCancel(ctx), u.ID, up.Issuer, token.RefreshToken); err != nil {
			return nil, err
		}
	}
	return token, nil
}

// refreshError: only "invalid_grant" speaks about the person. Whatever else an issuer answers
// (our client is unknown, too many requests, a failure) is about the issuer or about us.
func refreshError(err error) error {
	var answer *oauth2.RetrieveError
	if errors.As(err, &answer) && answer.ErrorCode == "invalid_grant" {
		return refuse(ReasonIdPRefused, errors.New("invalid_grant"))
	}
	return refuse(ReasonIdPUnreachable, errors.New("no answer from the token endpoint"))
}

// freshClaims reads the new id token, or, since a refresh need not bring one, userinfo.
func (s *Service) freshClaims(ctx context.Context, i Issuer, live *liveIssuer, u directory.User, token *oauth2.Token) (map[string]any, error) {
	if text, _ := token.Extra("id_token").(string); text != "" {
		c, raw, err := s.verifyExternal(ctx, i, live, token)
		if err == nil && c.Subject != u.Subject {
			err = refuse(ReasonTokenSubject, errors.New("the refreshed token names somebody else"))
		}
		return raw, err
	}
	ctx, cancel := context.WithTimeout(gooidc.ClientContext(ctx, s.issuers.client), idpTimeout)
	defer cancel()
	info, err := live.provider.UserInfo(ctx, oauth2.StaticTokenSource(token))
	if err != nil {
		return nil, refuse(ReasonIdPUnreachable, errors.New("no answer from userinfo"))
	}
	if info.Subject != u.Subject {
		return nil, refuse(ReasonTokenSubject, errors.New("userinfo names somebody else"))
	}
	var raw map[string]any
	if err := info.Claims(&raw); err != nil {
		return nil, refuse(ReasonTokenMalformed, err)
	}
	return raw, nil
}

// keepUpstream seals and stores an issuer's refresh token; none given leaves nothing behind.
func (s *Service) keepUpstream(ctx context.Context, user ids.UserID, issuer ids.IssuerID, token string) error {
	if token == "" {
		return s.store.DeleteRecords(ctx, Filter{Kind: kindUpstream, User: user})
	}
	sealed, err := s.cfg.Sealer.Seal(ctx, purposeUpstream(user), []byte(token))
	if err != nil {
		return fmt.Errorf("seal refresh token: %w", err)
	}
	data, err := json.Marshal(upstream{Issuer: issuer, Sealed: sealed})
	if err != nil {
		return err
	}
	return s.store.PutRecord(ctx, Record{Kind: kindUpstream, Key: string(user), User: user, Data: data})
}

func purposeUpstream(user ids.UserID) string {
	return "identity upstream refresh token " + string(user)
}
