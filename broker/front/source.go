package front

import (
	"net"
	"net/netip"
	"sync"
)

// Bits of an address that name its holder: who has one IPv6 address has the whole /64.
const (
	sourceBits4 = 32
	sourceBits6 = 64
)

// sources counts unfinished handshakes by source. It holds no more entries than there are
// unfinished handshakes.
type sources struct {
	mu    sync.Mutex // guards count
	count map[netip.Prefix]int
}

func newSources() *sources { return &sources{count: map[netip.Prefix]int{}} }

// sourceOf is the source of a connection; peers whose address cannot be read share one.
func sourceOf(addr net.Addr) netip.Prefix {
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return netip.Prefix{}
	}
	a, bits := ap.Addr().Unmap().WithZone(""), sourceBits6
	if a.Is4() {
		bits = sourceBits4
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// enter takes a place of the source and reports whether there was one.
func (s *sources) enter(p netip.Prefix) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.count[p] >= maxPerSource {
		return false
	}
	s.count[p]++
	return true
}

// leave gives the place back.
func (s *sources) leave(p netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.count[p]--; s.count[p] == 0 {
		delete(s.count, p)
	}
}
