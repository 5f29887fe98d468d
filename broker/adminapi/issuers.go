package adminapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/broker/identity"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	"github.com/postern-zt/postern/proto/ids"
)

// maxCause bounds what an administrator is shown of an issuer's own answer.
const maxCause = 300

type issuers struct{ *API }

func (s issuers) ListIssuers(ctx context.Context, _ *connect.Request[adminv1.ListIssuersRequest]) (*connect.Response[adminv1.ListIssuersResponse], error) {
	all, err := s.cfg.Identity.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	out := &adminv1.ListIssuersResponse{ReturnUrl: s.cfg.Identity.ReturnURL()}
	for _, i := range all {
		out.Issuers = append(out.Issuers, issuerView(i))
	}
	return connect.NewResponse(out), nil
}

func issuerView(i identity.Issuer) *adminv1.Issuer {
	return &adminv1.Issuer{
		Id: string(i.ID), Name: i.Name, Url: i.URL, ClientId: i.ClientID, Scopes: i.Scopes,
		Claims: &adminv1.ClaimMap{
			Login: i.Claims.Login, Name: i.Claims.Name, Mail: i.Claims.Mail, Groups: i.Claims.Groups, Attributes: i.Claims.Attributes,
		},
	}
}

func (a *API) issuerAnswer(i identity.Issuer) *adminv1.IssuerResponse {
	return &adminv1.IssuerResponse{Issuer: issuerView(i), ReturnUrl: a.cfg.Identity.ReturnURL()}
}

func (s issuers) AddIssuer(ctx context.Context, req *connect.Request[adminv1.AddIssuerRequest]) (*connect.Response[adminv1.IssuerResponse], error) {
	m := req.Msg
	if err := s.freeName(ctx, m.Name, ""); err != nil {
		return nil, err
	}
	i := identity.Issuer{
		Name: m.Name, URL: m.Url, ClientID: m.ClientId, ClientSecret: identity.NewSecret(m.ClientSecret),
		Scopes: m.Scopes, Claims: mergeClaims(directory.ClaimMap{}, m.Claims),
	}
	return respond(s.save(ctx, "add issuer", i))
}

func (s issuers) UpdateIssuer(ctx context.Context, req *connect.Request[adminv1.UpdateIssuerRequest]) (*connect.Response[adminv1.IssuerResponse], error) {
	m := req.Msg
	i, err := s.issuer(ctx, m.Issuer)
	if err != nil {
		return nil, err
	}
	if err := s.freeName(ctx, m.Name, i.ID); err != nil {
		return nil, err
	}
	i.Name, i.ClientID = cmp.Or(m.Name, i.Name), cmp.Or(m.ClientId, i.ClientID)
	i.ClientSecret, i.Claims = identity.NewSecret(m.ClientSecret), mergeClaims(i.Claims, m.Claims)
	if len(m.Scopes) > 0 {
		i.Scopes = m.Scopes
	}
	return respond(s.save(ctx, "update issuer", i))
}

// save tests, records, and keeps an issuer, so that what could never work leaves no record.
func (a *API) save(ctx context.Context, act string, i identity.Issuer) (*adminv1.IssuerResponse, error) {
	if err := a.testIssuer(ctx, i); err != nil {
		return nil, err
	}
	if err := a.record(ctx, what(act, "issuer", i.Name, "url", i.URL, "client", i.ClientID)); err != nil {
		return nil, err
	}
	saved, err := a.cfg.Identity.SaveIssuer(ctx, i)
	if err != nil {
		return nil, issuerError(i.URL, err)
	}
	return a.issuerAnswer(saved), nil
}

// mergeClaims lays what is set in m over old.
func mergeClaims(old directory.ClaimMap, m *adminv1.ClaimMap) directory.ClaimMap {
	old.Login, old.Name = cmp.Or(m.GetLogin(), old.Login), cmp.Or(m.GetName(), old.Name)
	old.Mail, old.Groups = cmp.Or(m.GetMail(), old.Mail), cmp.Or(m.GetGroups(), old.Groups)
	if len(m.GetAttributes()) > 0 {
		old.Attributes = m.GetAttributes()
	}
	return old
}

func (s issuers) TestIssuer(ctx context.Context, req *connect.Request[adminv1.IssuerRef]) (*connect.Response[adminv1.IssuerResponse], error) {
	i, err := s.issuer(ctx, req.Msg.Issuer)
	if err != nil {
		return nil, err
	}
	if err := s.testIssuer(ctx, i); err != nil {
		return nil, err
	}
	return connect.NewResponse(s.issuerAnswer(i)), nil
}

func (s issuers) RemoveIssuer(ctx context.Context, req *connect.Request[adminv1.IssuerRef]) (*connect.Response[adminv1.EffectResponse], error) {
	i, err := s.issuer(ctx, req.Msg.Issuer)
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Identity.DeleteIssuer(ctx, i.ID); err != nil {
		return nil, err
	}
	s.recordLate(ctx, what("remove issuer", "issuer", i.Name, "url", i.URL, "reason", req.Msg.Reason))
	return connect.NewResponse(&adminv1.EffectResponse{
		Text: "Its people cannot sign in any more. Open sessions become stale when they are next verified; to end them now, sign their people out or disable them.",
	}), nil
}

// issuer finds an issuer by id or name; its secret is not read.
func (a *API) issuer(ctx context.Context, text string) (identity.Issuer, error) {
	all, err := a.cfg.Identity.Issuers(ctx)
	if err != nil {
		return identity.Issuer{}, err
	}
	var names []string
	for _, i := range all {
		if string(i.ID) == text || strings.EqualFold(i.Name, text) {
			return i, nil
		}
		names = append(names, i.Name)
	}
	if len(names) == 0 {
		return identity.Issuer{}, notFound("no issuer %q; none is configured", text)
	}
	return identity.Issuer{}, notFound("no issuer %q; there are: %s", text, strings.Join(names, ", "))
}

// freeName refuses a name that another issuer has: people choose by it on the sign-in page.
func (a *API) freeName(ctx context.Context, name string, self ids.IssuerID) error {
	all, err := a.cfg.Identity.Issuers(ctx)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(all, func(i identity.Issuer) bool { return i.ID != self && strings.EqualFold(i.Name, name) }) {
		return connect.NewError(connect.CodeAlreadyExists, fmt.Errorf("an issuer named %q exists already", name))
	}
	return nil
}

// testIssuer asks the live issuer and says what is wrong in words that help.
func (a *API) testIssuer(ctx context.Context, i identity.Issuer) error {
	if u, err := url.Parse(i.URL); err != nil || u.User != nil {
		return badRequest("this is no issuer URL; want https://HOST/PATH, without a user or password") // it may hold a password
	}
	if err := a.cfg.Identity.TestIssuer(ctx, i); err != nil {
		return issuerError(i.URL, err)
	}
	return nil
}

// issuerError turns what a test found into a sentence; errors that are not about the
// issuer pass as they are.
func issuerError(at string, err error) error {
	if !errors.Is(err, identity.ErrIssuer) {
		return err
	}
	switch identity.ReasonOf(err) {
	case identity.ReasonIdPUnreachable:
		return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf(
			"the issuer cannot be used: the broker cannot read its discovery or its keys (%s/.well-known/openid-configuration): %s",
			strings.TrimSuffix(at, "/"), causeOf(err)))
	case identity.ReasonTokenIssuer:
		return badRequest("the issuer cannot be used: it names itself otherwise, and the URL must be exactly that: %s", causeOf(err))
	default:
		return badRequest("%s", clip(err.Error()))
	}
}

// causeOf is the detail of a refusal, cut: it may quote whatever page answered.
func causeOf(err error) string {
	var refused *identity.Error
	if errors.As(err, &refused) && refused.Err != nil {
		err = refused.Err
	}
	return clip(err.Error())
}

func clip(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) <= maxCause {
		return text
	}
	return strings.ToValidUTF8(text[:maxCause], "") + " ..."
}
