package relaynode

import (
	"crypto/sha256"
	"encoding/binary"

	controlv1 "github.com/postern-zt/postern/proto/control/v1"
)

// maxCuts is how many cuts are remembered: more than a broker repeats (4096).
const maxCuts = 8192

// cutMemory knows which cuts have been carried out. The zero value is ready; it is not
// safe for concurrent use.
type cutMemory struct {
	seen  map[[sha256.Size]byte]bool
	order [][sha256.Size]byte // a ring once it is full
	next  int
}

// first reports whether c is new, and remembers it. A forgotten cut is carried out again,
// which costs its links a moment.
func (m *cutMemory) first(c *controlv1.Cut) bool {
	id := digest(c)
	if m.seen[id] {
		return false
	}
	if m.seen == nil {
		m.seen = make(map[[sha256.Size]byte]bool)
	}
	m.seen[id] = true
	if len(m.order) < maxCuts {
		m.order = append(m.order, id)
		return true
	}
	delete(m.seen, m.order[m.next])
	m.order[m.next] = id
	m.next = (m.next + 1) % maxCuts
	return true
}

func digest(c *controlv1.Cut) [sha256.Size]byte {
	var b []byte
	b = binary.BigEndian.AppendUint64(b, uint64(c.GetAtMs()))
	void := byte(0)
	if c.GetVoid() {
		void = 1
	}
	b = append(b, void)
	b = binary.BigEndian.AppendUint32(b, uint32(len(c.GetHandles())))
	for _, h := range c.GetHandles() {
		b = binary.BigEndian.AppendUint64(b, h)
	}
	for _, k := range c.GetHolders() {
		b = binary.BigEndian.AppendUint32(b, uint32(len(k)))
		b = append(b, k...)
	}
	return sha256.Sum256(b)
}
