// Package enforce is the policy enforcement point of a connector: the thin loop around
// the pure guard. It answers the link for every grant and every flow, writes the flow
// record before the dial, dials through connector/targets, and carries out what a new
// statement, a new assignment or the passing of time ends.
//
// An Enforcer is safe for concurrent use; Run and RunRefusals start no goroutine.
package enforce

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/postern-zt/postern/connector/guard"
	"github.com/postern-zt/postern/netstack/link"
	"github.com/postern-zt/postern/netstack/peer"
	"github.com/postern-zt/postern/platform/clock"
	"github.com/postern-zt/postern/proto/chain"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
)

// Links is what the enforcer does to live micro-tunnels; *link.Server has it.
type Links interface {
	CloseGrant(id ids.GrantID, code frame.Code)
	Hold(id ids.GrantID)
	Resume(id ids.GrantID)
}

// Dialer connects to apps; *targets.Dialer is one.
type Dialer interface {
	Dial(ctx context.Context, a *grant.Assignment, ts []grant.Target, n grant.Network, published uint16) (net.Conn, frame.Code)
}

// Recorder keeps flow records; *flowlog.Log is one.
type Recorder interface {
	Append(e chain.Event) error
}

// Health hears how dials end: the passive health of apps. Nil is nobody.
type Health interface {
	Dialled(app ids.AppID, code frame.Code, took time.Duration)
}

// Config is what an Enforcer needs; Now, Health and SaveMark may be nil.
type Config struct {
	Self     ids.ConnectorID
	Mark     guard.Mark
	SaveMark func(guard.Mark) error
	Dialer   Dialer
	Recorder Recorder
	Health   Health
	Now      func() clock.Time
	Log      *slog.Logger
}

// Enforcer implements link.Handler and uplink.Sink except Relays.
type Enforcer struct {
	cfg Config
	log *slog.Logger

	// order is held from a change of the guard until its effects are carried out: a hold
	// that overtakes the resume after it would stay. Nothing under it waits for a peer.
	order sync.Mutex

	mu    sync.Mutex // guards guard and saved
	guard *guard.Guard
	saved guard.Mark

	limits limits
	opens  opens

	linksMu sync.Mutex // guards links, which is set once
	links   Links
}

// New returns an enforcer that opens nothing until the broker was heard.
func New(cfg Config) *Enforcer {
	if cfg.Now == nil {
		cfg.Now = clock.Now
	}
	return &Enforcer{
		cfg: cfg, log: cfg.Log.With("component", "enforce"), guard: guard.New(cfg.Self, cfg.Mark), saved: cfg.Mark,
	}
}

// SetLinks names what carries the micro-tunnels; call it before Run.
func (e *Enforcer) SetLinks(l Links) {
	e.linksMu.Lock()
	defer e.linksMu.Unlock()
	e.links = l
}

// Run applies the passing of time until ctx ends.
func (e *Enforcer) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		timer.Reset(e.tick(ctx))
	}
}

func (e *Enforcer) tick(ctx context.Context) time.Duration {
	e.order.Lock()
	defer e.order.Unlock()
	e.mu.Lock()
	now := e.cfg.Now()
	fx := e.guard.Tick(now)
	next := e.guard.Next(now)
	e.mu.Unlock()
	e.carryOut(ctx, fx)
	return next
}

// carryOut does to the links what the guard has decided; mu is not held, order is.
func (e *Enforcer) carryOut(ctx context.Context, fx guard.Effects) {
	e.linksMu.Lock()
	links := e.links
	e.linksMu.Unlock()
	if links == nil {
		return
	}
	for id, code := range fx.End {
		e.log.InfoContext(ctx, "micro-tunnel ends", "grant", id, "code", code.String())
		links.CloseGrant(id, code)
	}
	for _, id := range fx.Hold {
		links.Hold(id)
	}
	for _, id := range fx.Resume {
		links.Resume(id)
	}
}

// Keys installs the broker's signing keys.
func (e *Enforcer) Keys(keys seal.Keys) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.guard.SetKeys(keys)
}

// Assignment installs a new assignment.
func (e *Enforcer) Assignment(envelope []byte) error {
	e.order.Lock()
	e.mu.Lock()
	fx, err := e.guard.SetAssignment(envelope)
	e.mu.Unlock()
	e.carryOut(context.Background(), fx) //nolint:contextcheck // ending flows is never cancelled
	e.order.Unlock()
	return errors.Join(err, e.saveMark())
}

// Statement applies a liveness statement. Flows end before anything is written to disk:
// revocation never waits for it.
func (e *Enforcer) Statement(envelope []byte) error {
	e.order.Lock()
	e.mu.Lock()
	fx, err := e.guard.ApplyStatement(envelope, e.cfg.Now())
	e.mu.Unlock()
	e.carryOut(context.Background(), fx) //nolint:contextcheck // ending flows is never cancelled
	e.order.Unlock()
	if err != nil {
		return err
	}
	return e.saveMark()
}

// saveMark makes the mark durable, so that a restarted connector refuses what is older.
func (e *Enforcer) saveMark() error {
	e.mu.Lock()
	m, old := e.guard.Mark(), e.saved
	e.mu.Unlock()
	if e.cfg.SaveMark == nil || m == old {
		return nil
	}
	if err := e.cfg.SaveMark(m); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.saved = m
	return nil
}

// Holds is what is in memory, which the broker is told.
func (e *Enforcer) Holds() guard.Mark {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.guard.Holds()
}

// State is what status and health show of the enforcer.
type State struct {
	Live   bool
	Grants int
	Offset time.Duration
	Apps   []grant.App
}

// State returns the present state.
func (e *Enforcer) State() State {
	e.mu.Lock()
	defer e.mu.Unlock()
	var s State
	s.Grants, s.Live = e.guard.Counts(e.cfg.Now())
	s.Offset = e.guard.Offset()
	if a := e.guard.Assignment(); a != nil {
		s.Apps = a.Apps
	}
	return s
}

// Active returns the grants with an idle limit on which something moved since the last call.
func (e *Enforcer) Active() []ids.GrantID { return e.limits.active() }

// NotReported gives back what Active returned and nobody heard.
func (e *Enforcer) NotReported(list []ids.GrantID) { e.limits.activeAgain(list) }

// Present judges a grant (link.Handler).
func (e *Enforcer) Present(ctx context.Context, p peer.Identity, hello frame.Hello, envelope []byte) (link.MicroTunnel, frame.Code) {
	e.mu.Lock()
	g, code := e.guard.Present(p.KeyID, envelope, e.cfg.Now())
	e.mu.Unlock()
	if code != frame.OK {
		e.log.InfoContext(ctx, "grant refused", "code", code.String(), "peer", p.KeyID.String())
		return link.MicroTunnel{}, code
	}
	if uint8(hello.Kind) != uint8(g.PeerKind) {
		return link.MicroTunnel{}, frame.GrantForeign
	}
	return link.MicroTunnel{Grant: g.ID, App: g.App, Handle: g}, frame.OK
}

// opened is what FlowOpened hands to FlowClosed.
type opened struct {
	event chain.Event
	grant *grant.Grant
}

// FlowOpened checks a flow and writes its record before anything is dialled
// (link.Handler; DESIGN invariants 1 and 9).
func (e *Enforcer) FlowOpened(ctx context.Context, rec link.FlowRecord) (any, frame.Code) {
	g, ok := rec.Tunnel.Handle.(*grant.Grant)
	if !ok {
		return nil, frame.Internal
	}
	if _, _, code := e.check(g, rec.FlowOpen); code != frame.OK {
		return nil, code
	}
	if !e.opens.take(g, rec, e.cfg.Self, e.cfg.Now().Boot) {
		return nil, frame.TooManyOpens
	}
	if !e.limits.open(g) {
		return nil, frame.TooManyFlows
	}
	event := openEvent(g, e.cfg.Self, rec)
	if err := e.cfg.Recorder.Append(event); err != nil {
		e.limits.close(g)
		e.log.ErrorContext(ctx, "flow refused: no record", "error", err)
		return nil, frame.AuditUnavailable
	}
	return &opened{event: event, grant: g}, frame.OK
}

func (e *Enforcer) check(g *grant.Grant, open link.FlowOpen) (*grant.Assignment, []grant.Target, frame.Code) {
	n := network(open.Network)
	e.mu.Lock()
	defer e.mu.Unlock()
	targets, code := e.guard.CheckOpen(g.ID, open.Peer.KeyID, n, open.Port, e.cfg.Now())
	return e.guard.Assignment(), targets, code
}

// network converts the wire's network; an unknown one is 0, which no grant covers.
func network(n frame.Network) grant.Network {
	switch n {
	case frame.TCP:
		return grant.TCP
	case frame.UDP:
		return grant.UDP
	default:
		return 0
	}
}

// Dial connects to the app (link.Handler). The check is made again: between the record
// and the dial a revocation may have come.
func (e *Enforcer) Dial(ctx context.Context, t link.MicroTunnel, open link.FlowOpen) (net.Conn, frame.Code) {
	g, ok := t.Handle.(*grant.Grant)
	if !ok {
		return nil, frame.Internal
	}
	a, targets, code := e.check(g, open)
	if code != frame.OK {
		return nil, code
	}
	began := time.Now()
	conn, code := e.cfg.Dialer.Dial(ctx, a, targets, network(open.Network), open.Port)
	if e.cfg.Health != nil {
		e.cfg.Health.Dialled(g.App, code, time.Since(began))
	}
	return e.limits.wrap(ctx, g, conn), code
}

// FlowClosed writes the one close record of a flow (link.Handler).
func (e *Enforcer) FlowClosed(rec link.FlowRecord) {
	o, ok := rec.Handle.(*opened)
	if !ok {
		return
	}
	e.limits.close(o.grant)
	event := o.event
	event.Kind = chain.FlowClosed
	event.Details = map[string]string{
		"flow": o.event.Details["flow"], "cause": rec.Cause.String(),
		"to_app": strconv.FormatUint(rec.ToApp, 10), "from_app": strconv.FormatUint(rec.FromApp, 10),
		"ms": strconv.FormatInt(rec.Ended.Sub(rec.Started).Milliseconds(), 10),
	}
	if err := e.cfg.Recorder.Append(event); err != nil {
		e.log.Error("close of a flow not recorded", "error", err)
	}
}

func openEvent(g *grant.Grant, self ids.ConnectorID, rec link.FlowRecord) chain.Event {
	return chain.Event{
		Kind: chain.FlowOpened, User: g.User, Session: g.Session, App: g.App, Connector: self, Grant: g.ID, Receipt: g.Receipt,
		Details: map[string]string{
			"flow":    rec.Instance.String() + "/" + strconv.FormatUint(rec.Flow, 10),
			"network": network(rec.Network).String(), "port": strconv.Itoa(int(rec.Port)),
			"carrier": string(rec.Carrier), "path": rec.Path,
		},
	}
}
