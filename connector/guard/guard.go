// Package guard is the connector's own judgement: whether a presented grant opens
// anything, whether a flow may be dialled, and what must end now. It trusts nothing but
// signatures of the broker's keys and the two clocks; clients and relays can only hand it
// bytes (DESIGN invariant 2, decisions rules 6 to 10).
//
// A Guard is a plain value without I/O, clock, goroutine or logger: methods take now and
// return effects, which the connector's loop carries out on links and sockets. It is not
// safe for concurrent use; its owner holds a lock around it.
//
//	no statement yet          statement fresh            lease over
//	(after start)
//	NotLive            --->   grants open flows   --->   by outage mode of the grant:
//	                                ^                    cut       end now
//	                                |                    continue  old flows go on until grace ends
//	                                +---- statement ---- hold      no byte passes until grace ends
package guard

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/postern-zt/postern/platform/clock"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
)

const (
	// maxGrants bounds the grants that are presented at one time.
	maxGrants = 1 << 17
	// maxRevocations bounds the revocations that are remembered; beyond it the connector
	// asks for everything anew, and until then nothing opens.
	maxRevocations = 1 << 17
	// statementSkew is how old a statement may be on arrival by its own broker time
	// against the newest broker time known.
	statementSkew = 5 * time.Second
	// wallSkew is how far our wall clock and the broker's may lie apart (decisions rule
	// 10): an older statement is refused even by a connector that has just started.
	wallSkew = 5 * time.Minute
)

// Errors that the owner branches on.
var (
	// ErrForeign says that a message was sealed for another connector.
	ErrForeign = errors.New("message for another connector")
	// ErrOld says that a newer message of the kind is known.
	ErrOld = errors.New("older than what is known")
	// ErrGap says that revocations were missed: ask the broker for everything.
	ErrGap = errors.New("revocations were missed")
)

// Mark is what survives a restart of the connector: the highest that it has applied.
type Mark struct {
	Epoch      uint64 `json:"epoch"`
	Sequence   uint64 `json:"sequence"`
	Revoked    uint64 `json:"revoked"`
	Assignment uint64 `json:"assignment"`
}

// Guard holds what the connector knows of assignment, statements and grants.
type Guard struct {
	self       ids.ConnectorID
	keys       seal.Keys
	mark       Mark
	assignment *grant.Assignment
	state      statement
	revoked    revoked
	grants     map[ids.GrantID]*held
}

// statement is the newest statement and what its time says about ours.
type statement struct {
	known      bool
	deadline   clock.Deadline
	brokerTime time.Time
	at         clock.Time
	voidBefore time.Time
	applied    uint64
}

// phase is what a grant may do at present.
type phase uint8

const (
	phaseLive phase = iota
	phaseContinue
	phaseHold
	phaseEnded
)

// held is one presented grant.
type held struct {
	grant *grant.Grant
	phase phase
}

// Effects is what the owner must do after an event; the zero value is nothing.
type Effects struct {
	// End closes the micro-tunnels of these grants with their code.
	End map[ids.GrantID]frame.Code
	// Hold stops the bytes of these grants, Resume lets them go on.
	Hold, Resume []ids.GrantID
}

// New returns a guard that opens nothing until keys, an assignment and a statement came.
func New(self ids.ConnectorID, mark Mark) *Guard {
	return &Guard{self: self, mark: mark, grants: make(map[ids.GrantID]*held)}
}

// Mark returns what must be on disk before the next acknowledgement.
func (g *Guard) Mark() Mark { return g.mark }

// Holds returns what is in memory at present, all of it up to Revoked: that is what the
// broker must know to send the rest. Epoch and Sequence are those of the mark, because
// nothing older is accepted.
func (g *Guard) Holds() Mark {
	m := g.mark
	m.Revoked, m.Assignment = g.state.applied, 0
	if g.assignment != nil {
		m.Assignment = g.assignment.Version
	}
	return m
}

// SetKeys replaces the broker's signing keys. The caller has verified their certificates.
func (g *Guard) SetKeys(keys seal.Keys) { g.keys = keys }

// Assignment returns the assignment in force, or nil.
func (g *Guard) Assignment() *grant.Assignment { return g.assignment }

// SetAssignment verifies and installs an assignment. Grants for apps that are no longer
// in it, or that have lost a target, end: their flows may go where nothing may be dialled
// any more. An error changes nothing.
func (g *Guard) SetAssignment(envelope []byte) (Effects, error) {
	a, err := grant.OpenAssignment(g.keys, envelope)
	if err != nil {
		return Effects{}, err
	}
	if a.Connector != g.self {
		return Effects{}, fmt.Errorf("assignment: %w", ErrForeign)
	}
	if a.Version < g.mark.Assignment {
		return Effects{}, fmt.Errorf("assignment version %d: %w", a.Version, ErrOld)
	}
	before := g.assignment
	g.assignment, g.mark.Assignment = a, a.Version
	var fx Effects
	for id, h := range g.grants {
		if app, ok := a.Find(h.grant.App); !ok || lostTarget(before, app) {
			g.end(&fx, id, frame.NotAssigned)
		}
	}
	return fx, nil
}

// lostTarget reports whether the app had a target before that it has no longer.
func lostTarget(before *grant.Assignment, app grant.App) bool {
	if before == nil {
		return false
	}
	old, _ := before.Find(app.ID)
	return slices.ContainsFunc(old.Targets, func(t grant.Target) bool { return !slices.Contains(app.Targets, t) })
}

// ApplyStatement verifies a liveness statement and applies its revocations. An error
// changes nothing: a connector without a fresh statement falls back to the outage modes.
func (g *Guard) ApplyStatement(envelope []byte, now clock.Time) (Effects, error) {
	st, err := grant.OpenStatement(g.keys, envelope)
	if err != nil {
		return Effects{}, err
	}
	if err := g.acceptable(st, now); err != nil {
		return Effects{}, err
	}
	if st.Epoch > g.mark.Epoch {
		g.revoked = revoked{}
		if g.mark.Epoch != 0 { // a restored broker counts assignments from its backup on
			g.mark.Assignment = 0
		}
	}
	g.mark.Epoch, g.mark.Sequence, g.mark.Revoked = st.Epoch, st.Sequence, st.Revoked
	g.state = statement{
		known: true, deadline: now.DeadlineAfter(st.Until.Sub(st.Time)), brokerTime: st.Time, at: now,
		voidBefore: st.VoidBefore, applied: st.Revoked,
	}
	var fx Effects
	for _, r := range st.Revocations {
		g.revoke(&fx, r)
	}
	g.endVoid(&fx)
	g.resume(&fx)
	return fx, nil
}

// acceptable refuses a statement that is foreign, replayed, older than what is known, or
// that leaves out revocations which this connector has not seen. How far revocations go is
// compared with what is held in memory: after a start the whole list comes anew, in parts
// if it is long, and the persisted sequence alone keeps a replay out.
func (g *Guard) acceptable(st *grant.Statement, now clock.Time) error {
	switch {
	case st.Connector != g.self:
		return fmt.Errorf("statement: %w", ErrForeign)
	case st.Epoch < g.mark.Epoch:
		return fmt.Errorf("statement of epoch %d: %w", st.Epoch, ErrOld)
	case st.Epoch == g.mark.Epoch && st.Sequence <= g.mark.Sequence:
		return fmt.Errorf("statement %d: %w", st.Sequence, ErrOld)
	case st.Epoch == g.mark.Epoch && st.Revoked < g.state.applied:
		return fmt.Errorf("statement revokes up to %d: %w", st.Revoked, ErrOld)
	case g.state.known && st.Time.Add(statementSkew).Before(g.brokerNow(now)):
		return fmt.Errorf("statement of %s: %w", st.Time.Format(time.RFC3339), ErrOld)
	case now.Wall.Sub(st.Time) > wallSkew:
		return fmt.Errorf("statement of %s: %w, or the clock of this machine is wrong", st.Time.Format(time.RFC3339), ErrOld)
	case st.From > 0 && (!g.state.known || st.Epoch > g.mark.Epoch || st.From > g.state.applied):
		return ErrGap
	case len(g.revoked.byTarget)+len(st.Revocations) > maxRevocations:
		return ErrGap
	}
	return nil
}

// revoke remembers a revocation and ends the grants that it matches.
func (g *Guard) revoke(fx *Effects, r grant.Revocation) {
	g.revoked.add(r)
	for id, h := range g.grants {
		if r.Matches(h.grant) {
			g.end(fx, id, frame.Revoked)
		}
	}
}

func (g *Guard) endVoid(fx *Effects) {
	for id, h := range g.grants {
		if h.grant.NotBefore.Before(g.state.voidBefore) {
			g.end(fx, id, frame.Revoked)
		}
	}
}

func (g *Guard) resume(fx *Effects) {
	for id, h := range g.grants {
		if h.phase == phaseHold {
			fx.Resume = append(fx.Resume, id)
		}
		h.phase = phaseLive
	}
}

func (g *Guard) end(fx *Effects, id ids.GrantID, code frame.Code) {
	if fx.End == nil {
		fx.End = make(map[ids.GrantID]frame.Code)
	}
	fx.End[id] = code
	delete(g.grants, id)
}

// brokerNow is the broker's time by its newest statement and our boot clock.
func (g *Guard) brokerNow(now clock.Time) time.Time {
	return g.state.brokerTime.Add(now.Boot - g.state.at.Boot)
}

// Live reports whether a fresh statement covers this moment.
func (g *Guard) Live(now clock.Time) bool {
	return g.state.known && !g.state.deadline.Passed(now)
}

// Offset returns how far our wall clock is ahead of the broker's, by the newest statement.
func (g *Guard) Offset() time.Duration {
	if !g.state.known {
		return 0
	}
	return g.state.at.Wall.Sub(g.state.brokerTime)
}
