package attach

import (
	"sync"

	"github.com/postern-zt/postern/netstack/relay/udpio"
)

// buffer is pooled memory for received datagrams: large for super-packets, small for
// single ones, so that a queue of small packets does not hold large memory.
type buffer struct{ b []byte }

// The pools are shared by all bindings and hold no state.
var (
	largeBuffers = sync.Pool{New: func() any { return &buffer{b: make([]byte, udpio.MaxRead)} }}
	smallBuffers = sync.Pool{New: func() any { return &buffer{b: make([]byte, smallPacket)} }}
)

func getBuffer() *buffer { return largeBuffers.Get().(*buffer) }

// getBufferOf returns a buffer for at least n bytes.
func getBufferOf(n int) *buffer {
	if n <= smallPacket {
		return smallBuffers.Get().(*buffer)
	}
	return getBuffer()
}

// putBuffer takes a buffer back; a second time panics, because it would be handed out
// twice.
func putBuffer(b *buffer) {
	if b == nil {
		panic("attach: packet released twice")
	}
	if len(b.b) == smallPacket {
		smallBuffers.Put(b)
		return
	}
	largeBuffers.Put(b)
}

// ReadPacket reads one super-packet of any source into pooled memory, for paths that
// need no relay. On an error there is nothing to release.
func ReadPacket(s *udpio.Socket, x *udpio.Scratch) (Packet, udpio.Packet, error) {
	buf := getBuffer()
	p, err := s.Read(buf.b, x)
	if err != nil {
		putBuffer(buf)
		return Packet{}, udpio.Packet{}, err
	}
	return Packet{Data: buf.b[:p.N], Segment: p.Segment, ECN: p.ECN, buf: buf}, p, nil
}
