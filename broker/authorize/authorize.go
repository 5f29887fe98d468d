// Package authorize is where the broker's parts meet for one question: may this session
// use this app now? It gathers who, which device, in which state, asks the policy, makes
// the answer durable, and turns an allow into a grant (DESIGN section 5). Whatever cannot
// be gathered denies.
//
// It also keeps given answers true: Reevaluate asks again for live grants that a change
// touches and revokes those that no longer hold; Reactor finds out which those are.
// controlapi and adminapi call it. An Authorizer has no state but a bounded memory of why
// grants ended, of who is online and of what moves, and is safe for concurrent use.
package authorize

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/session"
	"github.com/postern-zt/postern/broker/trust"
	"github.com/postern-zt/postern/proto/chain"
	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
)

// maxCrossed is how often a decision is taken again because a revocation crossed it.
const maxCrossed = 3

// Errors that callers branch on.
var (
	// ErrUnavailable says that the answer could not be made durable: nothing is given.
	ErrUnavailable = errors.New("the decision could not be recorded")
	// ErrNoConnector says that no connector of the app's sites could serve it: there is none,
	// or all have been away for a while.
	ErrNoConnector = errors.New("no connector for this app")
)

// Sources is where the facts of a decision come from.
type Sources interface {
	User(ctx context.Context, id ids.UserID) (directory.User, error)
	Device(ctx context.Context, id ids.DeviceID) (registry.Device, error)
	Facts(ctx context.Context, id ids.DeviceID) (registry.DeviceFacts, error)
	Session(ctx context.Context, id ids.SessionID) (session.Session, error)
	Connectors(ctx context.Context) ([]registry.Connector, error)
	Catalog() *catalog.Snapshot
}

// Decider is the policy in force with its record; *decision.Service is one.
type Decider interface {
	// Current is the revision in force, nil before the first; a nil one denies.
	Current() *policy.Revision
	// Decide answers and makes an answer that grants durable before it returns.
	Decide(ctx context.Context, in policy.Input) (policy.Record, error)
}

// Auditor writes the audit; *audit.Log has it.
type Auditor interface {
	Append(ctx context.Context, e audit.Event) (audit.Ref, error)
	AppendBestEffort(e audit.Event)
}

// Metrics counts decisions; nil counts nothing.
type Metrics interface {
	Granted(app, site string)
	Denied(app, reason string)
	Evaluated(took time.Duration)
}

// Config is what an Authorizer needs; Metrics and Online may be nil.
type Config struct {
	Sources Sources
	Decider Decider
	Ledger  *grants.Ledger
	Trust   func() trust.Settings
	Audit   Auditor
	Metrics Metrics
	// Online lists the connectors with a control stream; nil takes all for online. It is
	// asked at every question and, by the reactor, every second.
	Online func() []ids.ConnectorID
	Now    func() time.Time
	Log    *slog.Logger
}

// Authorizer answers and keeps answers true.
type Authorizer struct {
	cfg Config
	log *slog.Logger

	mu    sync.Mutex // guards the fields below
	ended endings
	// revoked waits for the reactor, which takes it every second.
	revoked  []Ended
	presence presence
	activity activity
}

// New returns an Authorizer.
func New(cfg Config) *Authorizer {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Metrics == nil {
		cfg.Metrics = noMetrics{}
	}
	return &Authorizer{cfg: cfg, log: cfg.Log.With("component", "authorize"), ended: newEndings(), activity: newActivity()}
}

// Answer is what a device gets. Grant is nil unless the decision grants.
type Answer struct {
	policy.Record
	Grant      *grants.Grant
	Envelope   []byte
	Connectors []registry.Connector
}

// Request is one question.
type Request struct {
	Session session.Session
	App     *catalog.App
	Source  netip.Addr
	Network string
}

// Authorize answers a request. The answer is durable when it returns; an error gives
// nothing to anybody.
func (a *Authorizer) Authorize(ctx context.Context, req Request) (Answer, error) {
	if ans, ok := a.live(ctx, req); ok {
		return ans, nil
	}
	for range maxCrossed {
		ans, err := a.decide(ctx, req)
		if errors.Is(err, grants.ErrRevoked) {
			continue
		}
		return ans, err
	}
	return Answer{}, grants.ErrRevoked
}

// live returns the grant that the session already has for the app: asking twice must not
// give two. It is kept true by re-evaluation, so it may be given again. When its
// connectors have changed, or it was decided for another address and not for this one
// since (Moved), a new one is decided.
func (a *Authorizer) live(ctx context.Context, req Request) (Answer, bool) {
	now := a.cfg.Now()
	g, ok := a.cfg.Ledger.Find(req.Session.ID, req.App.ID, now.Add(time.Minute))
	if !ok || g.Source != req.Source {
		return Answer{}, false
	}
	cons, err := a.connectors(ctx, req.App)
	if err != nil || !sameConnectors(g.Connectors, cons) || !a.present(cons) {
		return Answer{}, false
	}
	ans := Answer{Grant: g, Envelope: a.cfg.Ledger.Envelope(g), Connectors: cons}
	ans.Receipt, ans.Decision.Verdict = g.Receipt, policy.VerdictAllow
	return ans, true
}

// sameConnectors compares without the order, which changes with who is online.
func sameConnectors(have []ids.ConnectorID, cons []registry.Connector) bool {
	for _, c := range cons {
		if !slices.Contains(have, c.ID) {
			return false
		}
	}
	return len(have) == len(cons)
}

func (a *Authorizer) decide(ctx context.Context, req Request) (Answer, error) {
	since := a.cfg.Ledger.Sequence()
	in, err := a.input(ctx, req.Session, req.App, req.Source, req.Network)
	if err != nil {
		return Answer{}, fmt.Errorf("gather facts: %w", err)
	}
	began := time.Now()
	rec, err := a.cfg.Decider.Decide(ctx, in)
	a.cfg.Metrics.Evaluated(time.Since(began))
	if err != nil {
		return Answer{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if !rec.Decision.Verdict.Grants() {
		a.recordDenial(rec, req.App)
		return Answer{Record: rec}, nil
	}
	return a.give(ctx, req, rec, since)
}

// give writes the audit, then the grant: nothing is handed out before both are durable
// (DESIGN invariant 1).
func (a *Authorizer) give(ctx context.Context, req Request, rec policy.Record, since uint64) (Answer, error) {
	cons, err := a.connectors(ctx, req.App)
	if err != nil {
		return Answer{}, err
	}
	if !a.present(cons) {
		return Answer{Record: rec}, ErrNoConnector
	}
	if _, err := a.cfg.Audit.Append(ctx, event(chain.Decision, rec)); err != nil {
		return Answer{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	g, envelope, err := a.cfg.Ledger.Issue(ctx, grantOf(req, rec, cons), since, a.cfg.Now())
	if err != nil {
		return Answer{}, err
	}
	a.cfg.Metrics.Granted(req.App.Name, siteOf(a.cfg.Sources.Catalog(), cons))
	return Answer{Record: rec, Grant: g, Envelope: envelope, Connectors: cons}, nil
}

func siteOf(snap *catalog.Snapshot, cons []registry.Connector) string {
	site, _ := snap.Site(cons[0].Site)
	return site.Name
}

// connectors returns those that can serve the app, in the order of its placements.
func (a *Authorizer) connectors(ctx context.Context, app *catalog.App) ([]registry.Connector, error) {
	all, err := a.cfg.Sources.Connectors(ctx)
	if err != nil {
		return nil, fmt.Errorf("list connectors: %w", err)
	}
	byID := make(map[ids.ConnectorID]registry.Connector, len(all))
	for _, c := range all {
		byID[c.ID] = c
	}
	var out []registry.Connector
	for _, id := range grants.Candidates(app, all) {
		out = append(out, byID[id])
	}
	return out, nil
}

// grantOf turns a decision that grants into the grant to issue.
func grantOf(req Request, rec policy.Record, cons []registry.Connector) grants.Grant {
	t := rec.Decision.Terms
	g := grants.Grant{
		Receipt: rec.Receipt, Session: req.Session.ID, User: req.Session.User, Device: req.Session.Device,
		PeerKind: grant.PeerDevice, PeerKey: req.Session.DeviceKey, App: req.App.ID, AppName: req.App.Name, Source: req.Source,
		Ports: req.App.GrantPorts(), HardEnd: t.HardEnd, Outage: outageOf(req.App, t),
		BytesPerSecond: bytesPerSecond(req.App, t), Flows: flows(req.App, t),
		OpensPerMinute: opensPerMinute(req.App, t), Idle: time.Duration(t.Idle), ReEvaluateAt: rec.Decision.ReEvaluateAt,
	}
	for _, v := range rec.Decision.Verbs {
		g.Verbs = append(g.Verbs, string(v))
	}
	for _, c := range cons {
		g.Connectors = append(g.Connectors, c.ID)
	}
	return g
}

// outageOf takes the app's own mode, else that of its class in the policy in force.
func outageOf(app *catalog.App, t policy.Terms) catalog.Outage {
	if app.Outage.Mode != 0 {
		return app.Outage
	}
	o := catalog.Outage{Mode: grant.OutageCut, Grace: catalog.Duration(t.OutageFor)}
	switch t.Outage {
	case policy.OutageContinue:
		o.Mode = grant.OutageContinue
	case policy.OutageHold:
		o.Mode = grant.OutageHold
	}
	return o
}

func bytesPerSecond(app *catalog.App, t policy.Terms) uint64 {
	return smallest(app.Limits.BytesPerSecond, uint64(t.RateKbps)*1000/8)
}

func flows(app *catalog.App, t policy.Terms) uint32 {
	return uint32(smallest(uint64(app.Limits.Flows), uint64(t.MaxFlows)))
}

func opensPerMinute(app *catalog.App, t policy.Terms) uint32 {
	return uint32(smallest(uint64(app.Limits.OpensPerMinute), uint64(t.OpenRate)))
}

// smallest returns the smaller of two limits where zero is no limit.
func smallest(a, b uint64) uint64 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

func (a *Authorizer) recordDenial(rec policy.Record, app *catalog.App) {
	reason := ""
	if len(rec.Decision.Reasons) > 0 {
		reason = string(rec.Decision.Reasons[0].Code)
	}
	a.cfg.Metrics.Denied(app.Name, reason)
	a.cfg.Audit.AppendBestEffort(event(chain.Denied, rec))
}

// event is the audit record of a decision.
func event(kind chain.Kind, rec policy.Record) chain.Event {
	e := chain.Event{
		Kind: kind, User: rec.User, Device: rec.Device, Session: rec.Session, App: rec.App,
		Receipt: rec.Receipt, Decision: rec.Decision.Verdict.String(), Revision: rec.Revision,
	}
	for _, r := range rec.Decision.Reasons {
		e.Reasons = append(e.Reasons, string(r.Code))
	}
	return e
}

type noMetrics struct{}

func (noMetrics) Granted(string, string)  {}
func (noMetrics) Denied(string, string)   {}
func (noMetrics) Evaluated(time.Duration) {}

// NoSource is the source of a question that nobody's connection asks: the session's counts.
var NoSource netip.Addr

// View answers what would be decided now, without a record and without a grant: for
// catalogs, `postern why` and policy checks.
func (a *Authorizer) View(ctx context.Context, s session.Session, app *catalog.App, source netip.Addr) (policy.Record, error) {
	if !source.IsValid() {
		source = SourceOf(s)
	}
	in, err := a.input(ctx, s, app, source, "")
	if err != nil {
		return policy.Record{}, fmt.Errorf("gather facts: %w", err)
	}
	rec := policy.Record{Time: in.Time, User: s.User, Device: s.Device, Session: s.ID, App: app.ID, Decision: a.cfg.Decider.Current().Decide(in)}
	if rec.Input, err = in.Canonical(); err != nil {
		return policy.Record{}, err
	}
	return rec, nil
}
