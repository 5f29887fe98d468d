package relay

import (
	"sync"
	"sync/atomic"

	"github.com/postern-zt/postern/proto/ticket"
)

// Usage is what one link has moved since it was last reported.
type Usage struct {
	Link      ticket.Handle
	Connector ticket.Handle
	// Up is from the client to the connector, Down the other way; over UDP with headers.
	Up, Down uint64
}

// usage counts one link; up and down are written by different goroutines as a rule.
type usage struct {
	connector ticket.Handle
	up        atomic.Uint64
	_         [48]byte // keeps the two directions off one cache line
	down      atomic.Uint64
	holders   int    // bindings and joined connections that count here; guarded by usageBook.mu
	toldUp    uint64 // reported already; guarded by usageBook.mu
	toldDown  uint64
}

// usageBook keeps the counters of a link while it lives and until they are reported.
type usageBook struct {
	mu    sync.Mutex
	links map[ticket.Handle]*usage
}

// hold returns the counters of a link; each hold is undone by release.
func (b *usageBook) hold(t ticket.Ticket) *usage {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.links == nil {
		b.links = make(map[ticket.Handle]*usage)
	}
	u := b.links[t.Handle]
	if u == nil {
		u = &usage{connector: t.Connector}
		b.links[t.Handle] = u
	}
	u.holders++
	return u
}

// maxUnreported bounds the memory of links that ended and were never asked for.
const maxUnreported = 1 << 18

func (b *usageBook) release(h ticket.Handle, u *usage) {
	b.mu.Lock()
	defer b.mu.Unlock()
	u.holders--
	if u.holders == 0 && len(b.links) > maxUnreported {
		delete(b.links, h)
	}
}

// TakeUsage returns what each link has moved since the last call, links that have ended
// included; a link that moved nothing is left out.
func (r *Relay) TakeUsage() []Usage {
	b := &r.usage
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []Usage
	for h, u := range b.links {
		up, down := u.up.Load(), u.down.Load()
		if up != u.toldUp || down != u.toldDown {
			out = append(out, Usage{Link: h, Connector: u.connector, Up: up - u.toldUp, Down: down - u.toldDown})
		}
		u.toldUp, u.toldDown = up, down
		if u.holders == 0 {
			delete(b.links, h)
		}
	}
	return out
}

// Load is what the relay serves at the moment.
type Load struct {
	// Bindings over UDP, attached connectors, links with joined connections, those
	// connections, and calls that wait for an answer.
	Bindings, Controls, Links, Flows, Calls int
}

// Load returns the present load.
func (r *Relay) Load() Load {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := Load{Bindings: int(r.bindings.size.Load()), Controls: len(r.controls), Links: len(r.links), Calls: len(r.calls)}
	for _, k := range r.links {
		l.Flows += len(k.flows)
	}
	return l
}
