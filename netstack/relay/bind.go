package relay

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-zt/postern/netstack/relay/udpio"
	"github.com/postern-zt/postern/netstack/relay/wire"
	"github.com/postern-zt/postern/proto/ticket"
)

const (
	// idleBinding is how long a binding stands without a datagram from its holder, who
	// pings every 10 s: long enough for three lost ones.
	idleBinding = 45 * time.Second
	// cookieEpoch is the step of cookie time; a cookie is good for one to two steps.
	cookieEpoch = 10 * time.Second
)

// binding is one handle bound to the address that proved its ticket:
//
//	(none) --bind--> cookie sent, nothing kept --prove--> bound --prove, higher--> moved
//	bound --idle, expired, cut--> (none)
type binding struct {
	role      ticket.Role
	connector ticket.Handle // of a client's link: whom it may reach
	dest      atomic.Pointer[endpoint]
	expires   atomic.Int64  // Unix nanoseconds
	seen      atomic.Int64  // Unix nanoseconds of the holder's last datagram
	rate      atomic.Uint64 // the ticket's bytes per second, 0: the relay's
	up, down  pace
	usage     *usage // of a client's link

	mu      sync.Mutex // guards the fields below
	ticket  ticket.Ticket
	counter uint64
	gone    bool
}

// endpoint is where a binding's datagrams go, and the address of this host that its holder
// talks to: one behind a NAT or a firewall takes them from no other.
type endpoint struct {
	sock  *udpio.Socket
	addr  netip.AddrPort
	local netip.Addr
}

func (b *binding) ticketNow() ticket.Ticket {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ticket
}

// bind answers a first or second bind datagram. The order is from cheap to dear: shape,
// cookie, rate, signature.
func (u *udpLoop) bind(b []byte, p udpio.Packet, now time.Time) Reason {
	m, err := wire.ParseBind(b)
	if err != nil {
		return DropMalformed
	}
	limiter := u.r.bindRate
	if m.Cookie != nil {
		if !u.r.cookies.good(m, p.Source, now) {
			return DropCookie
		}
		limiter = u.r.proveRate // so that a flood of first binds starves nobody who has a cookie
	}
	if !limiter.AllowN(now, 1) {
		return DropRate
	}
	t, reason := u.r.accept(m.Ticket)
	switch {
	case reason != OK:
		return reason
	case t.Handle != m.Handle || !m.Proves(t.MACKey):
		return DropProof
	case m.Cookie == nil:
		return u.answer(wire.AppendCookie(u.out[:0], m.Handle, m.Counter, u.r.cookies.make(m, p.Source, now)), len(b), p)
	}
	if reason := u.r.settle(t, m.Counter, &endpoint{sock: u.sock, addr: p.Source, local: p.Local}, now); reason != OK {
		return reason
	}
	if u.r.revoked.covers(t) { // revoked between the check of the ticket and now
		u.r.Cut(t.Handle)
		return DropRevoked
	}
	left := uint32(max(t.Expires.Sub(now)/time.Second, 0))
	return u.answer(wire.AppendBound(u.out[:0], m.Handle, m.Counter, left, t.MACKey), len(b), p)
}

// answer sends to the sender of p, which has proven nothing but a ticket: never more than
// came, and from where it was asked.
func (u *udpLoop) answer(b []byte, asked int, p udpio.Packet) Reason {
	if len(b) > asked {
		return DropMalformed
	}
	return sendReason(u.sock.WriteFrom(p.Local, b, 0, 0, p.Source, &u.scratch))
}

// settle stores the binding, or moves it when this proof is newer.
func (r *Relay) settle(t ticket.Ticket, counter uint64, at *endpoint, now time.Time) Reason {
	for {
		b := r.bindings.get(t.Handle)
		if b == nil {
			b = r.newBinding(t)
			if stored := r.bindings.add(t.Handle, b, r.cfg.Limits.Bindings); stored != b {
				r.forget(b)
				if stored == nil {
					return DropLimit
				}
				b = stored
			}
		}
		if reason, again := b.move(t, counter, at, now); !again {
			return reason
		}
	}
}

func (r *Relay) newBinding(t ticket.Ticket) *binding {
	b := &binding{role: t.Role, connector: t.Connector, ticket: t}
	if t.Role == ticket.RoleClient {
		b.usage = r.usage.hold(t)
	}
	return b
}

// move points the binding to at: by a newer ticket, or by a higher counter under the same
// one. The same counter from the same address is a repeated datagram whose answer got
// lost. again asks to start over, because the binding was removed meanwhile.
func (b *binding) move(t ticket.Ticket, counter uint64, at *endpoint, now time.Time) (reason Reason, again bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.dest.Load()
	same := b.ticket.MACKey == t.MACKey
	switch {
	case b.gone:
		return OK, true
	case b.role != t.Role || b.connector != t.Connector:
		return DropBadTicket, false
	case same && old != nil && counter == b.counter && old.addr == at.addr:
	case same && old != nil && counter <= b.counter, !same && t.NotBefore.Before(b.ticket.NotBefore):
		return DropReplay, false
	}
	b.ticket, b.counter = t, counter
	b.expires.Store(t.Expires.UnixNano())
	b.rate.Store(t.BytesPerSecond)
	b.seen.Store(now.UnixNano())
	b.dest.Store(at)
	return OK, false
}

// unbind removes the binding; datagrams already in a socket still arrive.
func (r *Relay) unbind(b *binding) {
	b.mu.Lock()
	gone := b.gone
	b.gone = true
	h := b.ticket.Handle
	b.mu.Unlock()
	if gone {
		return
	}
	r.bindings.remove(h, b)
	r.forget(b)
}

// forget gives back what newBinding took.
func (r *Relay) forget(b *binding) {
	if b.usage != nil {
		r.usage.release(b.ticket.Handle, b.usage)
	}
}

// sweep removes bindings that have expired or fallen silent.
func (r *Relay) sweep(now time.Time) {
	idle := now.Add(-idleBinding).UnixNano()
	r.bindings.all(func(_ ticket.Handle, b *binding) {
		if now.UnixNano() >= b.expires.Load() || b.seen.Load() < idle {
			r.unbind(b)
		}
	})
}

// ping answers a holder at its bound address, so that it knows its binding stands.
func (u *udpLoop) ping(b []byte, p udpio.Packet, now time.Time) Reason {
	bound := u.r.bindings.get(wire.ReadHeader(b).Handle())
	if bound == nil {
		return DropHandle
	}
	at := bound.dest.Load()
	if at == nil || at.addr != p.Source {
		return DropAddress
	}
	t := bound.ticketNow()
	counter, err := wire.ParseProven(b, t.MACKey)
	if err != nil {
		return DropProof
	}
	if now.UnixNano() >= bound.expires.Load() {
		return DropExpired
	}
	bound.seen.Store(now.UnixNano())
	return u.answer(wire.AppendPing(u.out[:0], wire.TypePong, t.Handle, counter, t.MACKey), len(b), p)
}

// cookieKey makes cookies that only this process can check, so nothing is kept for an
// address before it has shown that it receives.
type cookieKey struct{ secret [32]byte }

func newCookieKey() cookieKey {
	var k cookieKey
	rand.Read(k.secret[:])
	return k
}

// make returns the cookie: epoch(4) | zero(4) | mac(16).
func (k *cookieKey) make(m wire.Bind, src netip.AddrPort, now time.Time) [wire.CookieLen]byte {
	return k.at(m, src, uint32(now.Unix()/int64(cookieEpoch/time.Second)))
}

func (k *cookieKey) at(m wire.Bind, src netip.AddrPort, epoch uint32) (c [wire.CookieLen]byte) {
	binary.BigEndian.PutUint32(c[:], epoch)
	h := hmac.New(sha256.New, k.secret[:])
	h.Write(c[:8])
	addr := src.Addr().As16()
	h.Write(addr[:])
	var word [10]byte
	binary.BigEndian.PutUint16(word[:], src.Port())
	binary.BigEndian.PutUint64(word[2:], m.Counter)
	h.Write(word[:])
	h.Write(m.Ticket)
	copy(c[8:], h.Sum(nil))
	return c
}

func (k *cookieKey) good(m wire.Bind, src netip.AddrPort, now time.Time) bool {
	epoch := binary.BigEndian.Uint32(m.Cookie)
	present := uint32(now.Unix() / int64(cookieEpoch/time.Second))
	if epoch != present && epoch+1 != present {
		return false
	}
	want := k.at(m, src, epoch)
	return hmac.Equal(want[:], m.Cookie)
}
