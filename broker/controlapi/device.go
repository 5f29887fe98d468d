package controlapi

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/broker/authorize"
	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/broker/push"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/session"
	"github.com/postern-zt/postern/broker/tickets"
	"github.com/postern-zt/postern/broker/trust"
	"github.com/postern-zt/postern/proto/chain"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/ids"
)

const (
	// denialHold is how long a client answers a denial from its own memory; a change of
	// policy tells it earlier.
	denialHold = 30 * time.Second
	maxFacts   = 64
)

type deviceService struct{ *API }

// SignIn opens a session on a device that is enrolled already.
func (s deviceService) SignIn(ctx context.Context, req *connect.Request[controlv1.SignInRequest]) (*connect.Response[controlv1.SignInResponse], error) {
	d, err := s.device(ctx)
	if err != nil {
		return nil, err
	}
	who, err := s.cfg.Identity.Verifier().Verify(ctx, req.Msg.AccessToken, d.Identity.Key)
	if err != nil {
		return nil, err
	}
	ses, err := s.signIn(ctx, who, d)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&controlv1.SignInResponse{Session: ses}), nil
}

// SignOut ends the sessions of the device.
func (s deviceService) SignOut(ctx context.Context, _ *connect.Request[controlv1.SignOutRequest]) (*connect.Response[controlv1.SignOutResponse], error) {
	d, err := s.device(ctx)
	if err != nil {
		return nil, err
	}
	ended, err := s.cfg.Sessions.EndDevice(ctx, d.ID, session.CauseLogout, s.cfg.Now())
	if err != nil {
		return nil, err
	}
	for _, id := range ended {
		s.GrantsEndedBy(s.cfg.Authorize.Revoke(grants.Session(id), grants.CauseLogout, ""))
		s.cfg.Audit.AppendBestEffort(audit.Event{Kind: chain.SignedOut, Device: d.ID, Session: id})
	}
	return connect.NewResponse(&controlv1.SignOutResponse{}), nil
}

// session returns the live session of the calling device.
func (a *API) session(ctx context.Context, d registry.Device) (session.Session, error) {
	all, err := a.cfg.Sessions.List(ctx, session.Filter{Device: d.ID})
	if err != nil {
		return session.Session{}, err
	}
	now := a.cfg.Now()
	for _, ses := range all {
		if ses.Live(d.Identity.Key, now) == nil {
			return ses, nil
		}
	}
	return session.Session{}, session.ErrNotFound
}

// moved notes where the device of a session asks from, and has the grants that were given to
// it elsewhere decided again before anything else is answered. Taking away does not wait for
// the note.
func (a *API) moved(ctx context.Context, ses session.Session) session.Session {
	at := callerOf(ctx).addr
	if !at.IsValid() {
		return ses
	}
	known := authorize.SourceOf(ses) == at
	ses.Source = at.String()
	if ended := a.cfg.Authorize.Moved(ctx, ses); len(ended) > 0 {
		a.GrantsEnded(ended)
	}
	if !known {
		a.seen(ctx, func(ctx context.Context) error {
			_, err := a.cfg.Sessions.Move(ctx, ses.ID, ses.Source)
			return err
		})
	}
	return ses
}

// Report takes the facts of a device.
func (s deviceService) Report(ctx context.Context, req *connect.Request[controlv1.ReportRequest]) (*connect.Response[controlv1.ReportResponse], error) {
	d, err := s.device(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.buckets.take(d.ID, s.cfg.Now()); err != nil {
		return nil, err
	}
	if len(req.Msg.Facts) > maxFacts {
		return nil, badRequest("at most %d facts", maxFacts)
	}
	now := s.cfg.Now()
	stored, err := s.storedFacts(ctx, d.ID)
	if err != nil {
		return nil, err
	}
	facts := authorize.Report(s.cfg.Decisions.Current().Trust(), stored, reports(req.Msg.Facts), now)
	if err := s.putFacts(ctx, d.ID, facts, now); err != nil {
		return nil, err
	}
	if !sameStates(stored, facts) {
		s.devices.Mark(d.ID, push.Catalog) // what is allowed may differ, and denials are void
	}
	if err := s.cfg.Registry.SeeDevice(ctx, d.ID, callerOf(ctx).addr, req.Msg.ClientVersion, now); err != nil {
		return nil, err
	}
	return connect.NewResponse(&controlv1.ReportResponse{TimeMs: s.cfg.Now().UnixMilli()}), nil
}

// sameStates reports whether two lists of facts say the same; when they were observed does
// not count, or every report would make a catalog.
func sameStates(a, b []trust.Fact) bool {
	states := make(map[trust.FactName]trust.State, len(a))
	for _, f := range a {
		states[f.Name] = f.State
	}
	for _, f := range b {
		if old, ok := states[f.Name]; !ok || old != f.State {
			return false
		}
	}
	return len(a) == len(b)
}

func (a *API) storedFacts(ctx context.Context, id ids.DeviceID) ([]trust.Fact, error) {
	row, err := a.cfg.Registry.Facts(ctx, id)
	if errors.Is(err, registry.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var facts []trust.Fact
	return facts, json.Unmarshal(row.Facts, &facts)
}

func (a *API) putFacts(ctx context.Context, id ids.DeviceID, facts []trust.Fact, now time.Time) error {
	b, err := json.Marshal(facts)
	if err != nil {
		return err
	}
	return a.cfg.Registry.PutFacts(ctx, registry.DeviceFacts{Device: id, ObservedAt: now, Facts: b})
}

func reports(in []*controlv1.Fact) []trust.Report {
	var out []trust.Report
	for _, f := range in {
		var state trust.State
		if state.UnmarshalText([]byte(f.State)) != nil {
			state = trust.StateUnknown
		}
		out = append(out, trust.Report{
			Name: trust.FactName(f.Name), State: state, Data: f.Data, ObservedAt: time.UnixMilli(f.ObservedMs),
			TTL: time.Duration(min(max(f.TtlS, 0), 7*86400)) * time.Second, Source: trust.SourceClient,
		})
	}
	return out
}

// Authorize answers whether the signed-in user may use an app now.
func (s deviceService) Authorize(ctx context.Context, req *connect.Request[controlv1.AuthorizeRequest]) (*connect.Response[controlv1.AuthorizeResponse], error) {
	d, err := s.device(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.buckets.take(d.ID, s.cfg.Now()); err != nil {
		return nil, err
	}
	app, ok := s.findApp(req.Msg.AppId, req.Msg.AppName)
	key := asked{device: d.ID}
	if ok {
		key.app = app.ID
	}
	leave, err := s.turns.enter(ctx, key)
	if err != nil {
		return nil, err
	}
	defer leave()
	ses, err := s.session(ctx, d) // read within the turn: it may have ended while we waited
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, errNoApp()
	}
	ses = s.moved(ctx, ses)
	ans, err := s.cfg.Authorize.Authorize(ctx, authorize.Request{Session: ses, App: app, Source: callerOf(ctx).addr})
	if err != nil {
		return nil, err
	}
	if !visible(app, ans.Record) {
		return nil, errNoApp() // the refusal is recorded; the app must not show by it
	}
	if err := s.cfg.Sessions.Touch(ctx, ses.ID, s.cfg.Now()); err != nil {
		s.log.WarnContext(ctx, "activity not noted", "session", ses.ID, "error", err)
	}
	resp, err := s.authorized(ctx, d, app, ans)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(resp), nil
}

// errNoApp is the answer for an app that does not exist and for one that the user may not
// know of.
func errNoApp() error {
	return &refusal{connect.CodeNotFound, controlv1.Reason_REASON_NO_SUCH_APP, "no app with this name"}
}

func (a *API) findApp(id, name string) (*catalog.App, bool) {
	snap := a.cfg.Catalog.Current()
	if id != "" {
		return snap.App(ids.AppID(id))
	}
	return snap.Lookup(name)
}

func (a *API) authorized(ctx context.Context, d registry.Device, app *catalog.App, ans authorize.Answer) (*controlv1.AuthorizeResponse, error) {
	resp := &controlv1.AuthorizeResponse{Receipt: a.receipt(ans.Record, app.Name)}
	if ans.Grant == nil {
		resp.RetryAfterMs = denialHold.Milliseconds()
		return resp, nil
	}
	relays, err := a.activeRelays(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range ans.Connectors {
		path := &controlv1.ConnectorPath{ConnectorId: string(c.ID), KeyId: c.Identity.Key[:]}
		for _, r := range relays {
			p, err := a.devicePath(r, d.Identity.Key, c.Identity.Key)
			if err != nil {
				return nil, err
			}
			path.Relays = append(path.Relays, p)
		}
		resp.Connectors = append(resp.Connectors, path)
	}
	// The stream looks once more behind the note: a revocation may have been faster.
	a.watchers.give(d.ID, ans.Grant.ID)
	a.devices.Mark(d.ID, push.Grants)
	resp.Grant, resp.GrantId, resp.HardEndMs = ans.Envelope, string(ans.Grant.ID), ans.Grant.HardEnd.UnixMilli()
	return resp, nil
}

func (a *API) devicePath(r registry.Relay, device, connector ids.KeyID) (*controlv1.RelayPath, error) {
	m, err := a.cfg.Tickets.Device(tickets.Relay{ID: r.ID, HPKE: r.HPKE}, device, connector, a.cfg.Now())
	if err != nil {
		return nil, err
	}
	return a.relayPath(r, m), nil
}

func (a *API) relayPath(r registry.Relay, m tickets.Minted) *controlv1.RelayPath {
	return &controlv1.RelayPath{
		Relay: a.relayInfo(r), Ticket: m.Sealed, Handle: uint64(m.Handle), MacKey: m.MACKey[:], ExpiresMs: m.Expires.UnixMilli(),
	}
}

func (a *API) relayInfo(r registry.Relay) *controlv1.RelayInfo {
	info := &controlv1.RelayInfo{Id: string(r.ID), Addresses: r.TCP}
	if r.ID != a.cfg.BuiltinRelay {
		info.KeyId = r.Identity.Key[:]
	}
	return info
}

// activeRelays lists the relays to use, those of their own process first: they outlive a
// restart of this broker.
func (a *API) activeRelays(ctx context.Context) ([]registry.Relay, error) {
	all, err := a.cfg.Registry.Relays(ctx)
	if err != nil {
		return nil, err
	}
	var own, builtin []registry.Relay
	for _, r := range all {
		switch {
		case r.Usable() != nil:
		case r.ID == a.cfg.BuiltinRelay:
			builtin = append(builtin, r)
		case a.relays.Online(r.ID):
			own = append(own, r)
		}
	}
	return append(own, builtin...), nil
}

// receipt is what people see of a decision.
func (a *API) receipt(rec policy.Record, app string) *controlv1.Receipt {
	d := rec.Decision
	out := &controlv1.Receipt{Id: string(rec.Receipt), Verdict: verdict(d.Verdict), AppName: app, TimeMs: rec.Time.UnixMilli()}
	for _, r := range d.Reasons {
		out.ReasonCodes = append(out.ReasonCodes, string(r.Code))
	}
	if d.Verdict.Grants() {
		return out
	}
	if len(d.Reasons) > 0 {
		out.Reason = d.Reasons[0].Text(policy.English)
	}
	if remedies := a.cfg.Decisions.Remedies(rec); len(remedies) > 0 {
		out.Remedy = remedies[0].Text(policy.English)
	}
	out.Contact = a.contact(rec.App)
	return out
}

// contact is whom an employee asks: the app's owner, else the administrators.
func (a *API) contact(id ids.AppID) string {
	if app, ok := a.cfg.Catalog.Current().App(id); ok && app.Owner.Text != "" {
		return app.Owner.Text
	}
	return "your administrator"
}

func verdict(v policy.Verdict) controlv1.Verdict {
	switch v {
	case policy.VerdictAllow:
		return controlv1.Verdict_VERDICT_ALLOW
	case policy.VerdictLimited:
		return controlv1.Verdict_VERDICT_LIMITED
	case policy.VerdictStepUp:
		return controlv1.Verdict_VERDICT_STEP_UP
	default:
		return controlv1.Verdict_VERDICT_DENY
	}
}
