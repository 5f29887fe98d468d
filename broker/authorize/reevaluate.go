package authorize

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/session"
	"github.com/postern-zt/postern/proto/chain"
	"github.com/postern-zt/postern/proto/ids"
)

// retryAfter is when a question that could not be asked is asked again.
const retryAfter = 5 * time.Second

// Ended is a grant that a re-evaluation or an admin has ended.
type Ended struct {
	Grant *grants.Grant
	// Sequence is that of the revocation, which connectors acknowledge.
	Sequence uint64
	// At is the time of the revocation.
	At         time.Time
	Cause      grants.Cause
	Record     policy.Record
	Connectors []ids.ConnectorID
}

// Reevaluate asks again for live grants and revokes those that no longer hold. A question
// that cannot be asked because the store is away is asked again in a few seconds; a store
// that stays away ends the streams of connectors, and so the lease. What is gone (the
// user, the device, the session, the app) ends the grant.
func (a *Authorizer) Reevaluate(ctx context.Context, list []*grants.Grant, cause grants.Cause) []Ended {
	var out []Ended
	for _, g := range list {
		if e, ended := a.again(ctx, g, cause); ended {
			out = append(out, e)
		}
	}
	return out
}

// again decides one grant anew.
func (a *Authorizer) again(ctx context.Context, g *grants.Grant, cause grants.Cause) (Ended, bool) {
	app, ok := a.cfg.Sources.Catalog().App(g.App)
	if !ok || app.Retired {
		return a.end(g, grants.CauseAppRetired, policy.Record{}), true
	}
	s, err := a.cfg.Sources.Session(ctx, g.Session)
	if errors.Is(err, session.ErrNotFound) {
		return a.end(g, grants.CauseSessionEnded, policy.Record{}), true
	}
	if err != nil {
		a.later(ctx, g, err)
		return Ended{}, false
	}
	return a.judge(ctx, g, s, app, cause)
}

// Moved decides the grants of a session again that were decided for another address than the
// session's present one. It tells the reactor; the caller tells device and connectors.
func (a *Authorizer) Moved(ctx context.Context, s session.Session) []Ended {
	var out []Ended
	for _, g := range a.cfg.Ledger.Matching(grants.Session(s.ID)) {
		if g.Source == SourceOf(s) {
			continue
		}
		app, ok := a.cfg.Sources.Catalog().App(g.App)
		if !ok {
			continue // its end is on the way
		}
		if e, ended := a.judge(ctx, g, s, app, grants.CauseSourceChanged); ended {
			out = append(out, e)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.revoked = append(a.revoked, out...)
	return out
}

// judge decides a grant anew for a session where it is now.
func (a *Authorizer) judge(ctx context.Context, g *grants.Grant, s session.Session, app *catalog.App, cause grants.Cause) (Ended, bool) {
	source := SourceOf(s)
	if g.Source.IsValid() && g.Source != source && cause == grants.CauseSessionEnded {
		cause = grants.CauseSourceChanged // another broker saw the device move
	}
	in, err := a.input(ctx, s, app, source, "")
	if errors.Is(err, directory.ErrNotFound) || errors.Is(err, registry.ErrNotFound) {
		return a.end(g, cause, policy.Record{}), true
	}
	if err != nil {
		a.later(ctx, g, err)
		return Ended{}, false
	}
	d := a.cfg.Decider.Current().Decide(in)
	if d.Verdict.Grants() && covers(d.Verbs, g.Verbs) && samePorts(app, g) && sameTerms(app, d.Terms, g) {
		a.cfg.Ledger.SetSource(g.ID, source)
		if err := a.cfg.Ledger.SetReEvaluate(ctx, g.ID, d.ReEvaluateAt); err != nil {
			a.log.WarnContext(ctx, "time of the next decision not stored", "grant", g.ID, "error", err)
		}
		return Ended{}, false
	}
	if d.Verdict.Grants() {
		return a.end(g, grants.CauseAppChanged, policy.Record{}), true
	}
	return a.refuse(ctx, g, in, cause)
}

// refuse takes the receipt of a refusal first and revokes then, so that whoever is told of
// the end is told why. The receipt is written behind the answer: a cut never waits for the
// disk.
func (a *Authorizer) refuse(ctx context.Context, g *grants.Grant, in policy.Input, cause grants.Cause) (Ended, bool) {
	rec, err := a.cfg.Decider.Decide(ctx, in)
	if err == nil && rec.Decision.Verdict.Grants() {
		a.later(ctx, g, errors.New("the policy changed meanwhile"))
		return Ended{}, false
	}
	return a.end(g, cause, rec), true
}

// later has a grant decided again soon: what changed must not be forgotten over an error.
func (a *Authorizer) later(ctx context.Context, g *grants.Grant, why error) {
	a.log.WarnContext(ctx, "grant not decided again", "grant", g.ID, "error", why)
	_ = a.cfg.Ledger.SetReEvaluate(ctx, g.ID, a.cfg.Now().Add(retryAfter)) // it is set in memory; the store is away
}

// end revokes one grant at once and remembers why.
func (a *Authorizer) end(g *grants.Grant, cause grants.Cause, rec policy.Record) Ended {
	fx := a.cfg.Ledger.Revoke(grants.One(g.ID), cause, a.cfg.Now())
	e := Ended{Grant: g, Sequence: fx.Sequence, At: fx.At, Cause: cause, Record: rec, Connectors: fx.Connectors}
	a.remember(e)
	a.cfg.Audit.AppendBestEffort(revoked(g, cause))
	return e
}

// Revoke ends everything that a target names, because somebody said so. The reactor cuts
// the links of connectors that do not answer.
func (a *Authorizer) Revoke(t grants.Target, cause grants.Cause, actor ids.UserID) grants.Effect {
	fx := a.cfg.Ledger.Revoke(t, cause, a.cfg.Now())
	for _, g := range fx.Grants {
		ended := Ended{Grant: g, Sequence: fx.Sequence, At: fx.At, Cause: cause, Connectors: g.Connectors}
		a.remember(ended)
		a.mu.Lock()
		a.revoked = append(a.revoked, ended)
		a.mu.Unlock()
		e := revoked(g, cause)
		e.Actor = actor
		a.cfg.Audit.AppendBestEffort(e)
	}
	return fx
}

func revoked(g *grants.Grant, cause grants.Cause) chain.Event {
	return chain.Event{
		Kind: chain.Revoked, User: g.User, Device: g.Device, Session: g.Session, App: g.App, Grant: g.ID,
		Receipt: g.Receipt, Reasons: []string{string(cause)},
	}
}

// covers reports whether every verb of the grant is still given.
func covers(now []policy.Verb, have []string) bool {
	given := make(map[string]bool, len(now))
	for _, v := range now {
		given[string(v)] = true
	}
	for _, v := range have {
		if !given[v] {
			return false
		}
	}
	return true
}

// samePorts reports whether the app still publishes exactly what the grant names: a
// changed app gets a new grant.
func samePorts(app *catalog.App, g *grants.Grant) bool {
	ports := app.GrantPorts()
	if len(ports) != len(g.Ports) {
		return false
	}
	for i := range ports {
		if ports[i] != g.Ports[i] {
			return false
		}
	}
	return true
}

// sameTerms reports whether the grant's limits and outage mode are still those that would
// be given: a raised risk that limits must not spare whoever came before it.
func sameTerms(app *catalog.App, t policy.Terms, g *grants.Grant) bool {
	return bytesPerSecond(app, t) == g.BytesPerSecond && flows(app, t) == g.Flows && outageOf(app, t) == g.Outage && sameUse(app, t, g)
}

// sameUse compares the limits that grants of older brokers lack: an update must not cut
// what is open.
func sameUse(app *catalog.App, t policy.Terms, g *grants.Grant) bool {
	older := g.OpensPerMinute == 0
	return older || opensPerMinute(app, t) == g.OpensPerMinute && time.Duration(t.Idle) == g.Idle
}

// takeRevoked hands over what Revoke has ended since the last time.
func (a *Authorizer) takeRevoked() []Ended {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := a.revoked
	a.revoked = nil
	return out
}

// SourceOf reads the address that a session's device was last seen at.
func SourceOf(s session.Session) netip.Addr {
	addr, err := netip.ParseAddr(s.Source)
	if err != nil {
		return netip.Addr{}
	}
	return addr.Unmap()
}

// maxEndings bounds the memory of why grants ended; the oldest goes first.
const maxEndings = 65536

// endings remembers why grants ended, so that the device can be told.
type endings struct {
	byGrant map[ids.GrantID]Ended
	// byReceipt finds a grant by the receipt of the decision that gave it.
	byReceipt map[ids.ReceiptID]ids.GrantID
	order     []ids.GrantID
}

func newEndings() endings {
	return endings{byGrant: make(map[ids.GrantID]Ended), byReceipt: make(map[ids.ReceiptID]ids.GrantID)}
}

func (a *Authorizer) remember(e Ended) {
	a.mu.Lock()
	defer a.mu.Unlock()
	m := &a.ended
	if _, known := m.byGrant[e.Grant.ID]; !known {
		if len(m.order) >= maxEndings {
			delete(m.byReceipt, m.byGrant[m.order[0]].Grant.Receipt)
			delete(m.byGrant, m.order[0])
			m.order = m.order[1:]
		}
		m.order = append(m.order, e.Grant.ID)
	}
	m.byGrant[e.Grant.ID], m.byReceipt[e.Grant.Receipt] = e, e.Grant.ID
}

// WhyReceiptEnded returns why the grant of a receipt ended, if it did and that is remembered.
func (a *Authorizer) WhyReceiptEnded(id ids.ReceiptID) (Ended, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	e, ok := a.ended.byGrant[a.ended.byReceipt[id]]
	return e, ok
}

// WhyEnded returns why a grant ended, if that is remembered.
func (a *Authorizer) WhyEnded(id ids.GrantID) (Ended, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	e, ok := a.ended.byGrant[id]
	return e, ok
}
