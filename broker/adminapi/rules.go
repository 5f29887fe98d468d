package adminapi

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker/authorize"
	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/broker/session"
	"github.com/postern-zt/postern/broker/trust"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	"github.com/postern-zt/postern/proto/ids"
)

const (
	// previewSince and previewLimit bound the recorded decisions that a preview replays.
	previewSince = 7 * 24 * time.Hour
	previewLimit = 2000
	// maxChanges bounds the lines of a preview.
	maxChanges = 50
)

type rules struct{ *API }

func (s rules) ListRules(ctx context.Context, _ *connect.Request[adminv1.ListRulesRequest]) (*connect.Response[adminv1.ListRulesResponse], error) {
	cur := s.cfg.Decisions.Current()
	out := &adminv1.ListRulesResponse{}
	if cur == nil {
		return connect.NewResponse(out), nil
	}
	out.Revision = uint64(cur.Number)
	for _, r := range cur.Document().Rules {
		v, err := s.ruleView(ctx, cur, r)
		if err != nil {
			return nil, err
		}
		out.Rules = append(out.Rules, v)
	}
	return connect.NewResponse(out), nil
}

func (a *API) ruleView(ctx context.Context, rev *policy.Revision, r policy.Rule) (*adminv1.Rule, error) {
	form, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	v := &adminv1.Rule{
		Id: string(r.ID), Name: r.Name, Effect: string(r.Effect), Form: string(form), Cedar: rev.Cedar(string(r.ID)),
		Summary: a.summary(ctx, r), Version: uint64(rev.Number),
	}
	if r.Cedar != "" {
		v.Effect = "cedar"
	}
	return v, nil
}

// summary says a rule in one line.
func (a *API) summary(ctx context.Context, r policy.Rule) string {
	if r.Cedar != "" {
		return "written in Cedar"
	}
	text := a.whoText(ctx, r.Who) + " -> " + a.appsText(r.Apps)
	if len(r.Conditions.Facts) > 0 {
		var facts []string
		for _, f := range r.Conditions.Facts {
			facts = append(facts, string(f))
		}
		text += " if " + strings.Join(facts, ", ")
	}
	if !r.ExpiresAt.IsZero() {
		text += " until " + r.ExpiresAt.UTC().Format(time.DateTime)
	}
	return text
}

func (a *API) whoText(ctx context.Context, w policy.Who) string {
	if w.SignedIn {
		return "everyone"
	}
	var parts []string
	for _, id := range w.Users {
		name := string(id)
		if u, err := a.cfg.Directory.User(ctx, id); err == nil && u.Login != "" {
			name = u.Login
		}
		parts = append(parts, name)
	}
	for _, id := range w.Groups {
		name := string(id)
		if g, err := a.cfg.Directory.Group(ctx, id); err == nil {
			name = g.Name
		}
		parts = append(parts, "@"+name)
	}
	return strings.Join(parts, ", ")
}

func (a *API) appsText(w policy.Apps) string {
	if w.Any {
		return "all apps"
	}
	var parts []string
	for _, id := range w.IDs {
		name := string(id)
		if app, ok := a.cfg.Catalog.Current().App(id); ok {
			name = app.Name
		}
		parts = append(parts, name)
	}
	for _, t := range w.Tags {
		parts = append(parts, "#"+t)
	}
	for _, c := range w.Classes {
		parts = append(parts, "every "+string(c)+" app")
	}
	return strings.Join(parts, ", ")
}

func (s rules) PutRule(ctx context.Context, req *connect.Request[adminv1.PutRuleRequest]) (*connect.Response[adminv1.PutRuleResponse], error) {
	doc := s.document()
	rule, err := s.ruleFrom(ctx, req.Msg, doc)
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(doc.Rules, func(r policy.Rule) bool { return r.ID == rule.ID }); i >= 0 {
		doc.Rules[i] = rule
	} else {
		doc.Rules = append(doc.Rules, rule)
	}
	if err := s.fresh(req.Msg.Version); err != nil {
		return nil, err
	}
	return respond(s.publish(ctx, doc, rule.ID, req.Msg.DryRun, "put rule "+rule.Name))
}

// document is a copy of the policy in force, to be edited.
func (a *API) document() policy.Document {
	if cur := a.cfg.Decisions.Current(); cur != nil {
		return cur.Document()
	}
	return policy.NewDocument()
}

// fresh refuses an edit that started from an older revision.
func (a *API) fresh(version uint64) error {
	cur := a.cfg.Decisions.Current()
	if version == 0 || cur == nil || uint64(cur.Number) == version {
		return nil
	}
	return connect.NewError(connect.CodeAborted, fmt.Errorf("the policy was changed meanwhile (it is revision %d now); look again", cur.Number))
}

// ruleFrom builds a rule from a request: a known id or name replaces that rule.
func (s rules) ruleFrom(ctx context.Context, m *adminv1.PutRuleRequest, doc policy.Document) (policy.Rule, error) {
	r := policy.Rule{
		Name: m.Name, Description: m.Description, Effect: policy.Effect(m.Effect), Cedar: m.Cedar,
		Conditions: policy.Conditions{MFAMaxAge: policy.Duration(time.Duration(m.MfaAgeS) * time.Second), MinLevel: trust.Level(max(0, m.MinLevel))},
	}
	if m.ExpiresMs > 0 {
		r.ExpiresAt = time.UnixMilli(m.ExpiresMs).UTC()
	}
	for _, f := range m.Require {
		r.Conditions.Facts = append(r.Conditions.Facts, trust.FactName(f))
	}
	if r.Cedar != "" {
		r.Effect = ""
	} else if err := s.scope(ctx, m, &r); err != nil {
		return r, err
	}
	if r.Name == "" {
		r.Name = s.summary(ctx, r)
	}
	r.ID = ruleID(m, r.Name, doc)
	return r, nil
}

func ruleID(m *adminv1.PutRuleRequest, name string, doc policy.Document) ids.RuleID {
	for _, old := range doc.Rules {
		if m.Id != "" && string(old.ID) == m.Id || m.Id == "" && old.Name == name {
			return old.ID
		}
	}
	return ids.New[ids.RuleID]()
}

// scope fills in who and which apps, by name.
func (s rules) scope(ctx context.Context, m *adminv1.PutRuleRequest, r *policy.Rule) error {
	r.Who.SignedIn, r.Apps.Any, r.Apps.Tags = m.AnyUser, m.AnyApp, m.Tags
	for _, name := range m.Users {
		u, err := s.cfg.Directory.Find(ctx, name)
		if err != nil {
			return s.noUser(ctx, name, err)
		}
		r.Who.Users = append(r.Who.Users, u.ID)
	}
	for _, name := range m.Groups {
		g, err := s.cfg.Directory.FindGroup(ctx, name)
		if err != nil {
			return s.noGroup(ctx, name, err)
		}
		r.Who.Groups = append(r.Who.Groups, g.ID)
	}
	for _, name := range m.Apps {
		app, err := s.app(name)
		if err != nil {
			return err
		}
		r.Apps.IDs = append(r.Apps.IDs, app.ID)
	}
	return nil
}

// publish previews a document and, unless it is a dry run, puts it into force.
func (a *API) publish(ctx context.Context, doc policy.Document, rule ids.RuleID, dry bool, comment string) (*adminv1.PutRuleResponse, error) {
	changes, _, err := a.cfg.Decisions.Preview(ctx, doc, a.cfg.Now().Add(-previewSince), previewLimit)
	if err != nil {
		return nil, err
	}
	out := &adminv1.PutRuleResponse{Changes: a.changeLines(ctx, changes)}
	rev := a.cfg.Decisions.Current()
	if !dry {
		if err := a.record(ctx, what(comment)); err != nil {
			return nil, err
		}
		if rev, err = a.cfg.Decisions.Publish(ctx, doc, a.actorName(ctx), comment); err != nil {
			return nil, err
		}
	}
	if rev != nil {
		out.Revision = uint64(rev.Number)
	}
	for _, r := range doc.Rules {
		if r.ID == rule && rev != nil {
			out.Rule, err = a.ruleView(ctx, rev, r)
		}
	}
	return out, err
}

func (a *API) actorName(ctx context.Context) string {
	act, _ := actorOf(ctx)
	if act.Local {
		return "root on the broker's host"
	}
	if u, err := a.cfg.Directory.User(ctx, act.User); err == nil && u.Login != "" {
		return u.Login
	}
	return string(act.User)
}

// changeLines says whom a revision gives or takes what.
func (a *API) changeLines(ctx context.Context, changes []policy.Change) []string {
	var out []string
	for _, c := range changes {
		verb := "takes from"
		if c.Gives() {
			verb = "gives"
		}
		line := fmt.Sprintf("%s %s: %s", verb, a.userName(ctx, c.After.User), a.appName(c.After.App))
		if !slices.Contains(out, line) {
			out = append(out, line)
		}
		if len(out) == maxChanges {
			return append(out, fmt.Sprintf("and %d more", len(changes)-maxChanges))
		}
	}
	return out
}

func (a *API) userName(ctx context.Context, id ids.UserID) string {
	u, err := a.cfg.Directory.User(ctx, id)
	switch {
	case err != nil:
		return string(id)
	case u.Login != "":
		return u.Login
	case u.Mail != "":
		return u.Mail
	default:
		return u.Name
	}
}

func (a *API) appName(id ids.AppID) string {
	if app, ok := a.cfg.Catalog.Current().App(id); ok {
		return app.Name
	}
	return string(id)
}

func (s rules) DeleteRule(ctx context.Context, req *connect.Request[adminv1.RuleRef]) (*connect.Response[adminv1.PutRuleResponse], error) {
	doc := s.document()
	i := slices.IndexFunc(doc.Rules, func(r policy.Rule) bool {
		return string(r.ID) == req.Msg.Rule || r.Name == req.Msg.Rule
	})
	if i < 0 {
		return nil, notFound("no rule %q", req.Msg.Rule)
	}
	name := doc.Rules[i].Name
	doc.Rules = slices.Delete(doc.Rules, i, i+1)
	return respond(s.publish(ctx, doc, "", false, "delete rule "+name))
}

type policies struct{ *API }

func (s policies) ListRevisions(ctx context.Context, _ *connect.Request[adminv1.ListRevisionsRequest]) (*connect.Response[adminv1.ListRevisionsResponse], error) {
	list, err := s.cfg.Revisions.Revisions(ctx, 0)
	if err != nil {
		return nil, err
	}
	out := &adminv1.ListRevisionsResponse{}
	for _, r := range list {
		out.Revisions = append(out.Revisions, revisionView(r))
	}
	return connect.NewResponse(out), nil
}

func revisionView(r policy.StoredRevision) *adminv1.Revision {
	return &adminv1.Revision{Number: uint64(r.Number), Id: string(r.ID), Hash: r.Hash, Author: r.PublishedBy, TimeMs: millis(r.PublishedAt)}
}

func (s policies) stored(ctx context.Context, number uint64) (policy.StoredRevision, error) {
	list, err := s.cfg.Revisions.Revisions(ctx, int64(number)+1)
	if err != nil {
		return policy.StoredRevision{}, err
	}
	for _, r := range list {
		if uint64(r.Number) == number {
			return s.cfg.Revisions.Revision(ctx, r.ID)
		}
	}
	return policy.StoredRevision{}, notFound("no revision %d", number)
}

func (s policies) ShowRevision(ctx context.Context, req *connect.Request[adminv1.RevisionRef]) (*connect.Response[adminv1.Revision], error) {
	stored, err := s.stored(ctx, req.Msg.Number)
	if err != nil {
		return nil, err
	}
	doc, err := policy.DecodeDocument(stored.Document)
	if err != nil {
		return nil, err
	}
	rev, err := policy.Compile(stored.Meta, doc)
	if err != nil {
		return nil, err
	}
	v := revisionView(stored)
	var text strings.Builder
	for _, r := range doc.Rules {
		fmt.Fprintf(&text, "// %s: %s\n%s\n\n", r.Name, s.summary(ctx, r), rev.Cedar(string(r.ID)))
	}
	v.Cedar = text.String()
	return connect.NewResponse(v), nil
}

func (s policies) Rollback(ctx context.Context, req *connect.Request[adminv1.RevisionRef]) (*connect.Response[adminv1.PutRuleResponse], error) {
	stored, err := s.stored(ctx, req.Msg.Number)
	if err != nil {
		return nil, err
	}
	doc, err := policy.DecodeDocument(stored.Document)
	if err != nil {
		return nil, err
	}
	return respond(s.publish(ctx, doc, "", false, fmt.Sprintf("roll back to revision %d", stored.Number)))
}

// Check answers what would be decided for a user, a device and an app, with facts changed.
func (s policies) Check(ctx context.Context, req *connect.Request[adminv1.CheckRequest]) (*connect.Response[adminv1.Decision], error) {
	m := req.Msg
	u, err := s.cfg.Directory.Find(ctx, m.User)
	if err != nil {
		return nil, err
	}
	app, err := s.app(m.App)
	if err != nil {
		return nil, err
	}
	ses, err := s.sessionFor(ctx, u, m.Device)
	if err != nil {
		return nil, err
	}
	rec, err := s.cfg.Authorize.View(ctx, ses, app, authorize.NoSource)
	if err != nil {
		return nil, err
	}
	if len(m.Facts) > 0 || m.TimeMs > 0 {
		if rec, err = s.withFacts(rec, m); err != nil {
			return nil, err
		}
	}
	return respond(s.decisionView(ctx, rec), nil)
}

// sessionFor finds the newest session of a user, on a device if one is named.
func (a *API) sessionFor(ctx context.Context, u directory.User, device string) (session.Session, error) {
	all, err := a.cfg.Sessions.List(ctx, session.Filter{User: u.ID, Ended: true})
	if err != nil {
		return session.Session{}, err
	}
	wanted := ids.DeviceID("")
	if device != "" {
		d, err := a.device(ctx, device)
		if err != nil {
			return session.Session{}, err
		}
		wanted = d.ID
	}
	for _, s := range all {
		if wanted == "" || s.Device == wanted {
			return s, nil
		}
	}
	return session.Session{}, notFound("%s has never signed in on such a device, so there is nothing to check with", u.Login)
}

func (a *API) withFacts(rec policy.Record, m *adminv1.CheckRequest) (policy.Record, error) {
	in, err := policy.DecodeInput(rec.Input)
	if err != nil {
		return rec, err
	}
	if m.TimeMs > 0 {
		in.Time = time.UnixMilli(m.TimeMs).UTC()
	}
	for name, text := range m.Facts {
		var state trust.State
		if err := state.UnmarshalText([]byte(text)); err != nil {
			return rec, badRequest("fact %s: %q is none of pass, fail, unknown", name, text)
		}
		view := trust.View{Name: trust.FactName(name), State: state, ObservedAt: in.Time, Source: trust.SourceBroker}
		in.Device.Facts = slices.DeleteFunc(in.Device.Facts, func(v trust.View) bool { return v.Name == view.Name })
		in.Device.Facts = append(in.Device.Facts, view)
	}
	rec.Decision = a.cfg.Decisions.Current().Decide(in)
	rec.Input, err = in.Canonical()
	return rec, err
}

func (a *API) decisionView(ctx context.Context, rec policy.Record) *adminv1.Decision {
	d := &adminv1.Decision{
		Receipt: string(rec.Receipt), Verdict: rec.Decision.Verdict.String(), User: a.userName(ctx, rec.User),
		Device: string(rec.Device), App: a.appName(rec.App), TimeMs: millis(rec.Time), Input: string(rec.Input), Rules: a.ruleNames(rec.Decision.Determining),
	}
	if stored, err := a.cfg.Revisions.Revision(ctx, rec.Revision); err == nil {
		d.Revision = uint64(stored.Number)
	}
	for _, r := range rec.Decision.Reasons {
		d.ReasonCodes = append(d.ReasonCodes, string(r.Code))
	}
	if len(rec.Decision.Reasons) > 0 {
		d.Reason = rec.Decision.Reasons[0].Text(policy.English)
	}
	if remedies := a.cfg.Decisions.Remedies(rec); len(remedies) > 0 {
		d.Remedy = remedies[0].Text(policy.English)
	}
	return d
}

func (a *API) ruleNames(list []string) []string {
	names := map[string]string{}
	for _, r := range a.document().Rules {
		names[string(r.ID)] = r.Name
	}
	var out []string
	for _, id := range list {
		if n := names[id]; n != "" {
			id = n
		}
		out = append(out, id)
	}
	return out
}
