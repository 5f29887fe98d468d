package relay

import (
	"slices"
	"sync"
	"time"

	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/ticket"
)

// Revocation ends links at once and refuses their tickets from then on. Tickets whose
// NotBefore is later than At are new ones and hold, so the broker must not backdate
// tickets (the relay has its own tolerance).
type Revocation struct {
	// Handles of links or connectors.
	Handles []ticket.Handle
	// Holders are identity keys of devices or connectors.
	Holders []ids.KeyID
	// At is the broker's time of the revocation.
	At time.Time
}

// Revoke carries out rv. It is idempotent, so the feed may repeat it.
func (r *Relay) Revoke(rv Revocation) {
	r.revoked.add(rv, r.cfg.Now())
	r.Cut(rv.Handles...)
	if len(rv.Holders) > 0 {
		r.cutHolders(rv)
	}
}

// Cut ends everything that the handles have at this relay, at once: bindings, control
// connections, pending and joined connections. Tickets stay good.
func (r *Relay) Cut(handles ...ticket.Handle) {
	for _, h := range handles {
		if b := r.bindings.get(h); b != nil {
			r.unbind(b)
		}
		r.cutTCP(h)
	}
}

// cutHolders ends what the named holders have at this relay.
func (r *Relay) cutHolders(rv Revocation) {
	named := func(t ticket.Ticket) bool {
		return slices.Contains(rv.Holders, t.Holder) && !t.NotBefore.After(rv.At)
	}
	r.bindings.all(func(_ ticket.Handle, b *binding) {
		if named(b.ticketNow()) {
			r.unbind(b)
		}
	})
	for _, t := range r.tcpTickets() {
		if named(t) {
			r.cutTCP(t.Handle)
		}
	}
}

// revocations remembers each revocation for as long as a ticket from before it could be
// valid. When there are more than max, everything issued before that moment is refused:
// holders fetch new tickets, nobody revoked slips through.
type revocations struct {
	max int

	mu      sync.RWMutex // guards the fields below
	handles map[ticket.Handle]time.Time
	holders map[ids.KeyID]time.Time
	floor   time.Time
}

func newRevocations(limit int) *revocations {
	return &revocations{max: limit, handles: map[ticket.Handle]time.Time{}, holders: map[ids.KeyID]time.Time{}}
}

func (v *revocations) add(rv Revocation, now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	prune(v.handles, now)
	prune(v.holders, now)
	for _, h := range rv.Handles {
		v.handles[h] = later(v.handles[h], rv.At)
	}
	for _, k := range rv.Holders {
		v.holders[k] = later(v.holders[k], rv.At)
	}
	if len(v.handles)+len(v.holders) > v.max {
		v.floor = later(v.floor, later(now, rv.At))
		clear(v.handles)
		clear(v.holders)
	}
}

// covers reports whether t was issued before a revocation that names it.
func (v *revocations) covers(t ticket.Ticket) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	before := func(at time.Time) bool { return !at.IsZero() && !t.NotBefore.After(at) }
	return before(v.floor) || before(v.handles[t.Handle]) || before(v.holders[t.Holder]) || before(v.handles[t.Connector])
}

// prune forgets what no valid ticket can be older than.
func prune[K comparable](m map[K]time.Time, now time.Time) {
	for k, at := range m {
		if now.Sub(at) > ticket.MaxLife+ticket.Tolerance {
			delete(m, k)
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
