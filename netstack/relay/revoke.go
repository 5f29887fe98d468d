package relay

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/ticket"
)

// Revocation ends what stands on tickets of before it, at once, and refuses them from then
// on. Tickets whose NotBefore is later than At are new ones and hold, so the broker must not
// backdate tickets (the relay has its own tolerance).
type Revocation struct {
	// Handles of links or connectors.
	Handles []ticket.Handle
	// Holders are identity keys of devices or connectors.
	Holders []ids.KeyID
	// At is the broker's time of the revocation.
	At time.Time
}

// names reports whether rv makes t void.
func (rv Revocation) names(t ticket.Ticket) bool {
	return !t.NotBefore.After(rv.At) &&
		(slices.Contains(rv.Holders, t.Holder) || slices.Contains(rv.Handles, t.Handle))
}

// Revoke carries out rv. It is idempotent and spares who has a newer ticket, so the feed may
// repeat it.
func (r *Relay) Revoke(rv Revocation) {
	r.revoked.add(rv, r.cfg.Now())
	if len(rv.Holders) > 0 {
		r.cutHolders(rv)
	}
	for _, h := range rv.Handles {
		r.cutVoid(h, rv)
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

// cutVoid ends what a handle has on tickets that rv makes void.
func (r *Relay) cutVoid(h ticket.Handle, rv Revocation) {
	if b := r.bindings.get(h); b != nil && rv.names(b.ticketNow()) {
		r.unbind(b)
	}
	r.mu.Lock()
	ctl, k := r.controls[h], r.links[h]
	void := ctl != nil && rv.names(ctl.ticket) || k != nil && rv.names(k.ticket)
	r.mu.Unlock()
	if void {
		r.cutTCP(h)
	}
}

// cutHolders ends what the named holders have at this relay.
func (r *Relay) cutHolders(rv Revocation) {
	r.bindings.all(func(_ ticket.Handle, b *binding) {
		if rv.names(b.ticketNow()) {
			r.unbind(b)
		}
	})
	for _, t := range r.tcpTickets() {
		if rv.names(t) {
			r.cutTCP(t.Handle)
		}
	}
}

// revocations remembers each revocation for as long as a ticket from before it could be
// valid. When there are more holders than max, everything issued before that moment is
// refused: holders fetch new tickets, nobody blocked slips through. Of handles beyond max
// the oldest are forgotten: links end every day by the thousand without anybody's fault, and
// what a link without a grant may do is refused by its connector too.
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
	if len(v.holders) > v.max {
		v.floor = later(v.floor, later(now, rv.At))
		clear(v.holders)
	}
	if len(v.handles) > v.max {
		forgetOldest(v.handles, v.max/2)
	}
}

// forgetOldest leaves the n newest, and room until it is needed again.
func forgetOldest(m map[ticket.Handle]time.Time, n int) {
	order := slices.SortedFunc(maps.Keys(m), func(a, b ticket.Handle) int { return m[b].Compare(m[a]) })
	for _, h := range order[n:] {
		delete(m, h)
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
