package stack

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/postern-zt/postern/netstack/packet"
)

// flowKey is a 4-tuple with its protocol, as a program sees it.
type flowKey struct {
	proto         packet.Proto
	local, remote netip.AddrPort
}

// verdict is a refusal that programs are told.
type verdict struct {
	reset  bool
	reason packet.Reason
}

// memory keeps refusals for a short time, for repetitions of the same packet. A
// full memory forgets new ones: their repetitions are then decided again.
type memory struct {
	limit int

	mu      sync.Mutex
	entries map[flowKey]remembered // guarded by mu
}

type remembered struct {
	verdict verdict
	until   time.Time
}

func newMemory(limit int) memory {
	return memory{limit: limit, entries: make(map[flowKey]remembered)}
}

func (m *memory) put(key flowKey, v verdict, now time.Time, keep time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.entries) >= m.limit {
		maps.DeleteFunc(m.entries, func(_ flowKey, r remembered) bool { return !now.Before(r.until) })
	}
	if len(m.entries) < m.limit {
		m.entries[key] = remembered{v, now.Add(keep)}
	}
}

func (m *memory) at(key flowKey, now time.Time) (verdict, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.entries[key]
	if ok && !now.Before(r.until) {
		delete(m.entries, key)
		return verdict{}, false
	}
	return r.verdict, ok
}

func (s *Stack) remember(key flowKey, v verdict) {
	s.memory.put(key, v, time.Now(), s.cfg.Times.Remember)
}

func (s *Stack) recall(key flowKey) (verdict, bool) { return s.memory.at(key, time.Now()) }

// tell sends the packet that a verdict stands for.
func (s *Stack) tell(v verdict, local, remote netip.AddrPort, seq uint32, quote []byte) {
	if v.reset {
		s.link.send(packet.AppendReset(nil, remote, local, seq))
		return
	}
	if v.reason != 0 {
		s.link.send(packet.AppendUnreachable(nil, quote, v.reason))
	}
}

// counted is a table of flows with a limit for all and one for each app address.
type counted[T any] struct {
	mu      sync.RWMutex // the reader looks up for each datagram
	entries map[flowKey]T
	perApp  map[netip.Addr]int
}

func newCounted[T any]() counted[T] {
	return counted[T]{entries: make(map[flowKey]T), perApp: make(map[netip.Addr]int)}
}

type insertResult int

const (
	full insertResult = iota // the zero value: nothing was taken
	present
	inserted
)

func (c *counted[T]) insert(key flowKey, value T, limit, limitPerApp int) insertResult {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.entries[key]; ok {
		return present
	}
	app := key.local.Addr()
	if len(c.entries) >= limit || c.perApp[app] >= limitPerApp {
		return full
	}
	c.entries[key] = value
	c.perApp[app]++
	return inserted
}

func (c *counted[T]) at(key flowKey) (T, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	value, ok := c.entries[key]
	return value, ok
}

func (c *counted[T]) remove(key flowKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.entries[key]; !ok {
		return
	}
	delete(c.entries, key)
	app := key.local.Addr()
	if c.perApp[app]--; c.perApp[app] == 0 {
		delete(c.perApp, app)
	}
}

func (c *counted[T]) all() []T {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slices.Collect(maps.Values(c.entries))
}

type (
	heldTable = counted[*HeldTCP]
	flowTable = counted[*UDPFlow]
)

func newHeldTable() heldTable { return newCounted[*HeldTCP]() }
func newFlowTable() flowTable { return newCounted[*UDPFlow]() }

func (h *HeldTCP) key() flowKey { return flowKey{packet.ProtoTCP, h.Local, h.Remote} }

// admit takes a SYN into the table. False means that it is a repetition, or over a
// limit: it gets silence.
func (s *Stack) admit(h *HeldTCP) bool {
	switch s.held.insert(h.key(), h, s.cfg.Limits.Held, s.cfg.Limits.HeldPerApp) {
	case inserted:
		return true
	case full:
		s.stats.limited.Add(1)
	case present:
	}
	return false
}

func (s *Stack) heldAt(local, remote netip.AddrPort) *HeldTCP {
	h, _ := s.held.at(flowKey{packet.ProtoTCP, local, remote})
	return h
}

func (s *Stack) forget(h *HeldTCP) { s.held.remove(h.key()) }

// connTable knows the open connections, so that the end of the stack resets them.
type connTable struct {
	mu   sync.Mutex
	open map[*Conn]struct{} // guarded by mu
}

func newConnTable() connTable { return connTable{open: make(map[*Conn]struct{})} }

func (t *connTable) add(c *Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open[c] = struct{}{}
}

func (t *connTable) remove(c *Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, c)
}

func (t *connTable) all() []*Conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Collect(maps.Keys(t.open))
}
