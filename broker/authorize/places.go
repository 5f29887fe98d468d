package authorize

import (
	"context"
	"net/netip"

	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/session"
	"github.com/postern-zt/postern/proto/ids"
)

// maxPlaces bounds the memory of where sessions are; beyond it the device's row, which is
// written a little later, has to do.
const maxPlaces = 65536

// Seen takes in from where a session's device calls. A session that has moved is judged
// anew: what it was given elsewhere may not hold here. The caller tells who must know of
// the ended grants; the reactor watches over their connectors.
func (a *Authorizer) Seen(ctx context.Context, s session.Session, source netip.Addr) []Ended {
	if !a.moved(s, source.Unmap()) {
		return nil
	}
	ended := a.Reevaluate(ctx, a.cfg.Ledger.Matching(grants.Session(s.ID)), grants.CauseMoved)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.revoked = append(a.revoked, ended...)
	return ended
}

// moved notes where a session is and reports whether it was elsewhere before.
func (a *Authorizer) moved(s session.Session, source netip.Addr) bool {
	if !source.IsValid() {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	before, known := a.places[s.ID]
	if known && before == source {
		return false
	}
	if a.places == nil || !known && len(a.places) >= maxPlaces {
		a.places = make(map[ids.SessionID]netip.Addr)
	}
	a.places[s.ID] = source
	return true
}

// place is where a session is: as last heard by this broker, as last noted by any, or as
// it was at the sign-in.
func (a *Authorizer) place(s session.Session, d registry.Device) netip.Addr {
	a.mu.Lock()
	heard, ok := a.places[s.ID]
	a.mu.Unlock()
	switch {
	case ok:
		return heard
	case d.Seen.Address.IsValid():
		return d.Seen.Address.Unmap()
	default:
		return sourceOf(s.Source)
	}
}

// elsewhere reports whether a question comes from another place than the session is known
// to be at: an answer of before is then not given again.
func (a *Authorizer) elsewhere(s ids.SessionID, source netip.Addr) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	known, ok := a.places[s]
	return ok && known != source.Unmap()
}
