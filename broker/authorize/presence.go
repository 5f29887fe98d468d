package authorize

import (
	"slices"
	"time"

	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/proto/ids"
)

// awayAfter is how long a connector may be without a control stream before nobody is sent
// to it: longer than a restart or a change of networks takes, shorter than people wait.
const awayAfter = 30 * time.Second

// presence remembers when each connector was last seen online. Its zero value knows
// nothing, and whoever is not known to be away counts as online: a broker that has just
// started must not send people off before the connectors are back.
type presence struct {
	began time.Time
	// last holds those seen within awayAfter; now is who was online at the latest look.
	last map[ids.ConnectorID]time.Time
	now  map[ids.ConnectorID]bool
}

// look takes in who is online.
func (p *presence) look(online []ids.ConnectorID, now time.Time) {
	if p.began.IsZero() {
		p.began, p.last = now, map[ids.ConnectorID]time.Time{}
	}
	p.now = make(map[ids.ConnectorID]bool, len(online))
	for _, id := range online {
		p.last[id], p.now[id] = now, true
	}
	for id, at := range p.last {
		if now.Sub(at) > awayAfter && now.Sub(p.began) > awayAfter {
			delete(p.last, id)
		}
	}
}

// away reports whether a connector has not been online for awayAfter.
func (p *presence) away(id ids.ConnectorID, now time.Time) bool {
	last, ok := p.last[id]
	if !ok {
		last = p.began
	}
	return !p.began.IsZero() && now.Sub(last) > awayAfter
}

// lookAround takes in who is online now.
func (a *Authorizer) lookAround() {
	if a.cfg.Online == nil {
		return
	}
	online, now := a.cfg.Online(), a.cfg.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.presence.look(online, now)
}

// present puts the connectors that are online first, and reports whether any of them may
// be there.
func (a *Authorizer) present(cons []registry.Connector) bool {
	if a.cfg.Online == nil {
		return len(cons) > 0
	}
	a.lookAround()
	now := a.cfg.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	slices.SortStableFunc(cons, func(x, y registry.Connector) int { return a.rankLocked(x) - a.rankLocked(y) })
	return slices.ContainsFunc(cons, func(c registry.Connector) bool { return !a.presence.away(c.ID, now) })
}

func (a *Authorizer) rankLocked(c registry.Connector) int {
	if a.presence.now[c.ID] {
		return 0
	}
	return 1
}
