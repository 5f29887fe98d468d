package guard

import (
	"errors"
	"time"

	"github.com/postern-zt/postern/platform/clock"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
)

// Present judges a grant that a peer shows on a link authenticated as peerKey. Any code
// but OK opens nothing. Presenting a held grant again is allowed and changes nothing, also
// while its outage mode lets its flows live: they move to another carrier that way.
func (g *Guard) Present(peerKey ids.KeyID, envelope []byte, now clock.Time) (*grant.Grant, frame.Code) {
	gr, err := grant.Open(g.keys, envelope)
	if err != nil {
		return nil, openCode(err)
	}
	if h, ok := g.grants[gr.ID]; ok && h.grant.PeerKey == peerKey && g.outlives(h, now) {
		return h.grant, frame.OK
	}
	if code := g.judge(gr, peerKey, now); code != frame.OK {
		return nil, code
	}
	if h, ok := g.grants[gr.ID]; ok {
		return h.grant, frame.OK
	}
	if len(g.grants) >= maxGrants {
		return nil, frame.NoMemory
	}
	g.grants[gr.ID] = &held{grant: gr}
	return gr, frame.OK
}

func openCode(err error) frame.Code {
	if errors.Is(err, grant.ErrUnsupportedConstraint) {
		return frame.UnsupportedConstraint
	}
	return frame.GrantInvalid
}

// judge applies every condition of a grant; the order only chooses the reason.
func (g *Guard) judge(gr *grant.Grant, peerKey ids.KeyID, now clock.Time) frame.Code {
	switch {
	case gr.PeerKey != peerKey || peerKey.IsZero():
		return frame.GrantForeign
	case !gr.Names(g.self):
		return frame.GrantForeign
	case !g.Live(now):
		return frame.NotLive
	case g.isRevoked(gr):
		return frame.Revoked
	case g.assignment == nil:
		return frame.NotAssigned
	}
	if code := g.judgeTime(gr, now); code != frame.OK {
		return code
	}
	app, ok := g.assignment.Find(gr.App)
	switch {
	case !ok:
		return frame.NotAssigned
	case gr.PeerKind == grant.PeerGateway && !app.Gateway:
		return frame.UnsupportedConstraint
	}
	return frame.OK
}

// judgeTime compares the grant's period with the broker's time. A grant may be a little
// younger than the newest statement, because statements come every few seconds.
func (g *Guard) judgeTime(gr *grant.Grant, now clock.Time) frame.Code {
	if gr.HardEnd.Sub(gr.NotBefore) > longestGrant {
		return frame.UnsupportedConstraint
	}
	t := g.brokerNow(now)
	if !t.Before(gr.HardEnd) {
		return frame.GrantExpired
	}
	if gr.NotBefore.After(t.Add(statementSkew)) {
		return frame.GrantInvalid
	}
	return frame.OK
}

func (g *Guard) isRevoked(gr *grant.Grant) bool {
	return gr.NotBefore.Before(g.state.voidBefore) || g.revoked.matches(gr)
}

// CheckOpen judges a new flow of a presented grant and returns the targets it may dial.
func (g *Guard) CheckOpen(id ids.GrantID, peerKey ids.KeyID, n grant.Network, port uint16, now clock.Time) ([]grant.Target, frame.Code) {
	h, ok := g.grants[id]
	if !ok {
		return nil, frame.GrantUnknown
	}
	if code := g.judge(h.grant, peerKey, now); code != frame.OK {
		return nil, code
	}
	if !h.grant.Allows(n, port) {
		return nil, frame.PortNotGranted
	}
	app, _ := g.assignment.Find(h.grant.App)
	targets := app.For(n, port)
	if len(targets) == 0 {
		return nil, frame.NotAssigned
	}
	return targets, frame.OK
}

// CheckAttach judges the re-attachment of an open flow: allowed as long as the grant is
// held for this peer, also while its lease is over and its outage mode lets it live.
func (g *Guard) CheckAttach(id ids.GrantID, peerKey ids.KeyID) frame.Code {
	h, ok := g.grants[id]
	switch {
	case !ok:
		return frame.GrantUnknown
	case h.grant.PeerKey != peerKey:
		return frame.GrantForeign
	default:
		return frame.OK
	}
}

// Withdraw forgets a grant that its peer no longer uses.
func (g *Guard) Withdraw(id ids.GrantID) { delete(g.grants, id) }

// Tick applies the passing of time: hard ends, the end of the lease, outage modes.
func (g *Guard) Tick(now clock.Time) Effects {
	var fx Effects
	live := g.Live(now)
	for id, h := range g.grants {
		if !g.brokerNow(now).Before(h.grant.HardEnd) {
			g.end(&fx, id, frame.GrantExpired)
			continue
		}
		if !live {
			g.outage(&fx, id, h, now)
		}
	}
	g.revoked.prune(g.brokerNow(now).Add(-longestGrant))
	return fx
}

// outlives reports whether the lease is over and the outage mode lets the grant live on.
func (g *Guard) outlives(h *held, now clock.Time) bool {
	return g.state.known && !g.Live(now) && h.grant.Outage != grant.OutageCut &&
		!g.state.deadline.Add(h.grant.OutageGrace).Passed(now) && g.brokerNow(now).Before(h.grant.HardEnd)
}

// outage moves one grant on after the lease has ended (decisions rule 8).
func (g *Guard) outage(fx *Effects, id ids.GrantID, h *held, now clock.Time) {
	switch lives := g.outlives(h, now); {
	case h.grant.Outage == grant.OutageContinue && lives:
		h.phase = phaseContinue
	case h.grant.Outage == grant.OutageHold && lives:
		if h.phase != phaseHold {
			h.phase = phaseHold
			fx.Hold = append(fx.Hold, id)
		}
	default:
		g.end(fx, id, frame.LeaseEnded)
	}
}

// Next returns how long the owner may wait before the next Tick.
func (g *Guard) Next(now clock.Time) time.Duration {
	const longest = time.Second
	if !g.Live(now) {
		return longest
	}
	return min(longest, max(time.Millisecond, g.state.deadline.Until(now)))
}

// Counts returns how many grants are held and whether the guard is live, for status.
func (g *Guard) Counts(now clock.Time) (grants int, live bool) { return len(g.grants), g.Live(now) }
