package adminapi

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/broker/enroll"
	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/registry"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
)

// defaultSite is made when an app or a token names no site and there is none.
const defaultSite = "main"

type sites struct{ *API }

func (s sites) ListSites(ctx context.Context, _ *connect.Request[adminv1.ListSitesRequest]) (*connect.Response[adminv1.ListSitesResponse], error) {
	snap := s.cfg.Catalog.Current()
	out := &adminv1.ListSitesResponse{}
	for _, site := range snap.Sites() {
		cons, err := s.cfg.Registry.Connectors(ctx, site.ID)
		if err != nil {
			return nil, err
		}
		out.Sites = append(out.Sites, &adminv1.Site{Id: string(site.ID), Name: site.Name, Connectors: int32(active(cons)), Apps: int32(len(snap.AtSite(site.ID)))})
	}
	return connect.NewResponse(out), nil
}

func active(list []registry.Connector) (n int) {
	for _, c := range list {
		if c.State == registry.Active {
			n++
		}
	}
	return n
}

func (s sites) CreateSite(ctx context.Context, req *connect.Request[adminv1.CreateSiteRequest]) (*connect.Response[adminv1.Site], error) {
	if err := s.record(ctx, what("create site", "site", req.Msg.Name)); err != nil {
		return nil, err
	}
	site, err := s.cfg.Catalog.CreateSite(ctx, req.Msg.Name)
	return respond(&adminv1.Site{Id: string(site.ID), Name: site.Name}, err)
}

func (s sites) DeleteSite(ctx context.Context, req *connect.Request[adminv1.SiteRef]) (*connect.Response[adminv1.EffectResponse], error) {
	site, err := s.site(ctx, req.Msg.Site)
	if err != nil {
		return nil, err
	}
	if err := s.record(ctx, what("delete site", "site", site.Name)); err != nil {
		return nil, err
	}
	return respond(&adminv1.EffectResponse{}, s.cfg.Catalog.DeleteSite(ctx, site.ID))
}

// site finds a site by name or id; an empty text is the only site, or a first one.
func (a *API) site(ctx context.Context, text string) (catalog.Site, error) {
	snap := a.cfg.Catalog.Current()
	all := snap.Sites()
	switch {
	case text == "" && len(all) == 1:
		return all[0], nil
	case text == "" && len(all) == 0:
		return a.cfg.Catalog.CreateSite(ctx, defaultSite)
	case text == "":
		return catalog.Site{}, badRequest("name one of the sites: %s", siteNames(all))
	}
	if site, ok := snap.Site(ids.SiteID(text)); ok {
		return site, nil
	}
	if site, ok := snap.SiteByName(text); ok {
		return site, nil
	}
	return catalog.Site{}, notFound("no site %q; there are: %s", text, siteNames(all))
}

func siteNames(all []catalog.Site) string {
	var names []string
	for _, s := range all {
		names = append(names, s.Name)
	}
	return strings.Join(names, ", ")
}

type tokens struct{ *API }

func (s tokens) ListTokens(ctx context.Context, _ *connect.Request[adminv1.ListTokensRequest]) (*connect.Response[adminv1.ListTokensResponse], error) {
	all, err := s.cfg.Enroller.Tokens(ctx)
	if err != nil {
		return nil, err
	}
	out := &adminv1.ListTokensResponse{}
	for _, t := range all {
		out.Tokens = append(out.Tokens, s.tokenView(t))
	}
	return connect.NewResponse(out), nil
}

func (a *API) tokenView(t enroll.Token) *adminv1.Token {
	site, _ := a.cfg.Catalog.Current().Site(t.Site)
	state := "open"
	switch now := a.cfg.Now(); {
	case !t.RevokedAt.IsZero():
		state = "revoked"
	case !t.ExpiresAt.IsZero() && !now.Before(t.ExpiresAt):
		state = "expired"
	case t.Uses > 0 && !t.Multi:
		state = "used"
	}
	return &adminv1.Token{
		Id: string(t.ID), Role: string(t.Kind), Site: site.Name, Reusable: t.Multi, MayPublish: t.MayPublish, State: state,
		ExpiresMs: millis(t.ExpiresAt), CreatedMs: millis(t.CreatedAt),
	}
}

func (s tokens) CreateToken(ctx context.Context, req *connect.Request[adminv1.CreateTokenRequest]) (*connect.Response[adminv1.CreateTokenResponse], error) {
	m := req.Msg
	w := enroll.Wish{Kind: enroll.Kind(m.Role), Multi: m.Reusable, MayPublish: m.MayPublish, TTL: time.Duration(m.TtlS) * time.Second}
	if m.Role == "" || w.Kind == enroll.ForConnector {
		w.Kind = enroll.ForConnector
		site, err := s.site(ctx, m.Site)
		if err != nil {
			return nil, err
		}
		w.Site, w.SiteName = site.ID, site.Name
	}
	if err := s.record(ctx, what("create join token", "role", string(w.Kind), "site", w.SiteName)); err != nil {
		return nil, err
	}
	t, text, err := s.cfg.Enroller.Create(ctx, w, s.cfg.Now())
	if err != nil {
		return nil, err
	}
	command := "postern-connector run --join '" + s.cfg.Installation.URL() + "'"
	if w.Kind == enroll.ForRelay {
		command = "postern-broker relay --join '" + s.cfg.Installation.URL() + "' --address HOST:PORT"
	}
	return connect.NewResponse(&adminv1.CreateTokenResponse{Token: s.tokenView(t), Secret: text.Reveal(), Command: command}), nil
}

func (s tokens) RevokeToken(ctx context.Context, req *connect.Request[adminv1.TokenRef]) (*connect.Response[adminv1.EffectResponse], error) {
	id, err := ids.Parse[ids.TokenID](req.Msg.Token)
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Enroller.Revoke(ctx, id, s.cfg.Now()); err != nil {
		return nil, err
	}
	s.recordLate(ctx, what("revoke join token", "token", string(id)))
	return connect.NewResponse(&adminv1.EffectResponse{}), nil
}

type apps struct{ *API }

func (s apps) ListApps(ctx context.Context, _ *connect.Request[adminv1.ListAppsRequest]) (*connect.Response[adminv1.ListAppsResponse], error) {
	health, err := s.appHealth(ctx)
	if err != nil {
		return nil, err
	}
	out := &adminv1.ListAppsResponse{}
	for _, app := range s.cfg.Catalog.Current().Apps() {
		out.Apps = append(out.Apps, s.appView(app, health))
	}
	return connect.NewResponse(out), nil
}

// appHealth reads what the connectors reported last: "CONNECTOR: state".
func (a *API) appHealth(ctx context.Context) (map[string][]string, error) {
	cons, err := a.cfg.Registry.Connectors(ctx, "")
	if err != nil {
		return nil, err
	}
	out := map[string][]string{}
	for _, c := range cons {
		var h controlv1.HealthRequest
		if c.State != registry.Active || json.Unmarshal(c.Health, &h) != nil {
			continue
		}
		for _, app := range h.Apps {
			text := c.Name + ": " + app.State
			if app.Code != "" && app.Code != "ok" {
				text += " (" + app.Code + ")"
			}
			out[app.AppId] = append(out[app.AppId], text)
		}
	}
	return out, nil
}

func (a *API) appView(app *catalog.App, health map[string][]string) *adminv1.App {
	snap := a.cfg.Catalog.Current()
	v := &adminv1.App{
		Id: string(app.ID), Name: app.Name, Fqdn: app.Names(snap.Suffixes())[0], Index: app.Index, Class: string(app.Class),
		Visibility: string(app.Visibility), Owner: app.Owner.Text, Tags: app.Tags, Version: app.Version, State: "published",
		OutageMode: outageText(app.OutageMode()), Health: health[string(app.ID)],
	}
	if app.Retired {
		v.State = "retired"
	}
	for _, p := range app.GrantPorts() {
		v.Ports = append(v.Ports, portsText(p))
	}
	for _, p := range app.Placements {
		site, _ := snap.Site(p.Site)
		pl := &adminv1.Placement{Site: site.Name}
		for _, t := range p.Targets {
			pl.Targets = append(pl.Targets, t.String())
		}
		v.Placements = append(v.Placements, pl)
	}
	return v
}

func portsText(p grant.Ports) string {
	if p.First == p.Last {
		return fmt.Sprintf("%d/%s", p.First, p.Network)
	}
	return fmt.Sprintf("%d-%d/%s", p.First, p.Last, p.Network)
}

func outageText(o catalog.Outage) string {
	switch o.Mode {
	case grant.OutageContinue:
		return "continue " + time.Duration(o.Grace).String()
	case grant.OutageHold:
		return "hold " + time.Duration(o.Grace).String()
	default:
		return "cut"
	}
}

// parseOutage reads "cut", "continue 15m", "hold 10m", or nothing for the class's default.
func parseOutage(text string) (catalog.Outage, error) {
	word, rest, _ := strings.Cut(strings.TrimSpace(text), " ")
	var grace time.Duration
	var err error
	if rest != "" {
		grace, err = time.ParseDuration(rest)
	}
	o := catalog.Outage{Grace: catalog.Duration(grace)}
	switch word {
	case "":
		return catalog.Outage{}, nil
	case "cut":
		o.Mode = grant.OutageCut
	case "continue":
		o.Mode = grant.OutageContinue
	case "hold":
		o.Mode = grant.OutageHold
	default:
		return o, badRequest("outage mode %q: want cut, continue DURATION or hold DURATION", text)
	}
	if err != nil || grace < 0 {
		return o, badRequest("outage mode %q: %q is not a duration like 15m", text, rest)
	}
	return o, nil
}

// app finds an app by name or id.
func (a *API) app(text string) (*catalog.App, error) {
	snap := a.cfg.Catalog.Current()
	if app, ok := snap.App(ids.AppID(text)); ok {
		return app, nil
	}
	if app, ok := snap.Lookup(text); ok {
		return app, nil
	}
	return nil, notFound("no app %q", text)
}

func (s apps) GetApp(ctx context.Context, req *connect.Request[adminv1.AppRef]) (*connect.Response[adminv1.App], error) {
	app, err := s.app(req.Msg.App)
	if err != nil {
		return nil, err
	}
	health, err := s.appHealth(ctx)
	return respond(s.appView(app, health), err)
}

// appFrom builds an app from a request.
func (a *API) appFrom(ctx context.Context, m *adminv1.PublishAppRequest) (catalog.App, error) {
	outage, err := parseOutage(m.GetOutageMode())
	if err != nil {
		return catalog.App{}, err
	}
	app := catalog.App{
		Name: m.GetName(), Class: catalog.Class(m.GetClass()), Visibility: catalog.Visibility(m.GetVisibility()),
		Owner: catalog.Owner{Text: m.GetOwner()}, Tags: m.GetTags(), Outage: outage,
	}
	networks := map[catalog.Protocol]bool{}
	for _, p := range m.GetPlacements() {
		site, err := a.site(ctx, p.Site)
		if err != nil {
			return app, err
		}
		pl := catalog.Placement{Site: site.ID}
		for _, text := range p.Targets {
			target, protocol, err := catalog.ParseTargetProtocol(text)
			if err != nil {
				return app, err
			}
			networks[protocol] = true
			pl.Targets = append(pl.Targets, target)
		}
		app.Placements = append(app.Placements, pl)
	}
	app.Protocol = protocolOf(networks)
	return app, nil
}

func protocolOf(seen map[catalog.Protocol]bool) catalog.Protocol {
	switch {
	case seen[catalog.Both] || seen[catalog.TCP] && seen[catalog.UDP]:
		return catalog.Both
	case seen[catalog.UDP]:
		return catalog.UDP
	default:
		return catalog.TCP
	}
}

func (s apps) PublishApp(ctx context.Context, req *connect.Request[adminv1.PublishAppRequest]) (*connect.Response[adminv1.App], error) {
	app, err := s.appFrom(ctx, req.Msg)
	if err != nil {
		return nil, err
	}
	if err := s.record(ctx, what("publish app", "app", app.Name)); err != nil {
		return nil, err
	}
	app, err = s.cfg.Catalog.CreateApp(ctx, app, s.cfg.Now())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(s.appView(&app, nil)), nil
}

func (s apps) UpdateApp(ctx context.Context, req *connect.Request[adminv1.UpdateAppRequest]) (*connect.Response[adminv1.App], error) {
	old, err := s.app(req.Msg.App)
	if err != nil {
		return nil, err
	}
	app, err := s.appFrom(ctx, req.Msg.AppFields)
	if err != nil {
		return nil, err
	}
	app.ID, app.Version, app.Index, app.CreatedAt = old.ID, req.Msg.Version, old.Index, old.CreatedAt
	app.Retired, app.ExtraNames, app.Limits = old.Retired, old.ExtraNames, old.Limits // no field of the request
	if app.Version == 0 {
		app.Version = old.Version
	}
	if app.Name == "" {
		app.Name = old.Name
	}
	e := what("update app", "app", old.Name)
	e.App = old.ID
	if err := s.record(ctx, e); err != nil {
		return nil, err
	}
	app, err = s.cfg.Catalog.UpdateApp(ctx, app, s.cfg.Now())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(s.appView(&app, nil)), nil
}

func (s apps) RetireApp(ctx context.Context, req *connect.Request[adminv1.AppRef]) (*connect.Response[adminv1.EffectResponse], error) {
	old, err := s.app(req.Msg.App)
	if err != nil {
		return nil, err
	}
	app := *old
	app.Retired = true
	if _, err := s.cfg.Catalog.UpdateApp(ctx, app, s.cfg.Now()); err != nil {
		return nil, err
	}
	fx := s.revoke(ctx, grants.App(app.ID), grants.CauseAppRetired)
	e := what("retire app", "app", app.Name)
	e.App = app.ID
	s.recordLate(ctx, e)
	return connect.NewResponse(fx), nil
}

// RestoreApp publishes a retired app again. What rules said of it holds again, so that it is
// recorded first.
func (s apps) RestoreApp(ctx context.Context, req *connect.Request[adminv1.AppRef]) (*connect.Response[adminv1.App], error) {
	old, err := s.app(req.Msg.App)
	if err != nil {
		return nil, err
	}
	if !old.Retired {
		return nil, badRequest("the app %s is not retired", old.Name)
	}
	e := what("restore app", "app", old.Name)
	e.App = old.ID
	if err := s.record(ctx, e); err != nil {
		return nil, err
	}
	app := *old
	app.Retired = false
	app, err = s.cfg.Catalog.UpdateApp(ctx, app, s.cfg.Now())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(s.appView(&app, nil)), nil
}

func (s apps) ListProposals(ctx context.Context, _ *connect.Request[adminv1.ListProposalsRequest]) (*connect.Response[adminv1.ListProposalsResponse], error) {
	all, err := s.cfg.Catalog.Proposals(ctx)
	if err != nil {
		return nil, err
	}
	out := &adminv1.ListProposalsResponse{}
	for _, p := range all {
		if p.State == catalog.Pending {
			out.Proposals = append(out.Proposals, &adminv1.Proposal{Id: proposalID(p), Connector: string(p.Connector), Name: p.Name, Targets: []string{p.Target}})
		}
	}
	return connect.NewResponse(out), nil
}

func proposalID(p catalog.Proposal) string { return string(p.Connector) + "/" + p.Name }

func (s apps) ApproveProposal(ctx context.Context, req *connect.Request[adminv1.ProposalRef]) (*connect.Response[adminv1.App], error) {
	con, name, err := s.proposal(ctx, req.Msg.Proposal)
	if err != nil {
		return nil, err
	}
	e := what("approve proposal", "app", name)
	e.Connector = con
	if err := s.record(ctx, e); err != nil {
		return nil, err
	}
	app, err := s.cfg.Catalog.Approve(ctx, con, name, s.cfg.Now())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(s.appView(&app, nil)), nil
}

func (s apps) RejectProposal(ctx context.Context, req *connect.Request[adminv1.ProposalRef]) (*connect.Response[adminv1.EffectResponse], error) {
	con, name, err := s.proposal(ctx, req.Msg.Proposal)
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Catalog.Reject(ctx, con, name, s.cfg.Now()); err != nil {
		return nil, err
	}
	s.recordLate(ctx, what("reject proposal", "app", name))
	return connect.NewResponse(&adminv1.EffectResponse{}), nil
}

// proposal reads CONNECTOR/NAME, or the bare name of the only pending proposal of the name.
func (s apps) proposal(ctx context.Context, text string) (ids.ConnectorID, string, error) {
	if con, name, ok := strings.Cut(text, "/"); ok {
		c, err := ids.Parse[ids.ConnectorID](con)
		return c, name, err
	}
	all, err := s.cfg.Catalog.Proposals(ctx)
	if err != nil {
		return "", "", err
	}
	return onlyProposal(all, text)
}

func onlyProposal(all []catalog.Proposal, name string) (ids.ConnectorID, string, error) {
	var found []catalog.Proposal
	for _, p := range all {
		if p.State == catalog.Pending && strings.EqualFold(p.Name, name) {
			found = append(found, p)
		}
	}
	switch len(found) {
	case 1:
		return found[0].Connector, found[0].Name, nil
	case 0:
		return "", "", notFound("nobody proposes %q; see postern admin app proposals", name)
	default:
		return "", "", badRequest("%d connectors propose %q; name one as CONNECTOR/NAME, as the list shows it", len(found), name)
	}
}
