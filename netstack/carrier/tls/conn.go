package tls

import (
	"crypto/tls"
	"errors"
	"net"
	"sync"

	"github.com/postern-zt/postern/netstack/mux"
)

const (
	// ioBuffer holds the TLS records of one frame of 128 KiB with their overhead.
	ioBuffer = 136 << 10
	// smallFrame is a frame that is cheaper copied into one TLS record than sent as two.
	smallFrame = 2 << 10
)

// recordConn is what a session writes into: a frame leaves in one write to the network.
type recordConn struct {
	*tls.Conn
	raw   *bufferedConn
	small [smallFrame]byte // used by the one who writes
}

var _ mux.Conn = (*recordConn)(nil)

// WriteFrame writes head and body; a large body has TLS records of its own.
func (c *recordConn) WriteFrame(head, body []byte) error {
	if n := len(head) + len(body); n <= smallFrame {
		copy(c.small[copy(c.small[:], head):], body)
		_, err := c.Conn.Write(c.small[:n])
		return err
	}
	c.raw.cork()
	var err error
	if len(head) > 0 {
		_, err = c.Conn.Write(head)
	}
	if err == nil {
		_, err = c.Conn.Write(body)
	}
	return errors.Join(err, c.raw.uncork())
}

// Close closes the connection at once: the polite end of TLS can wait for seconds on a
// dead path, and streams have their own ends.
func (c *recordConn) Close() error { return c.raw.Close() }

// bufferedConn gathers TLS records while it is corked and reads many records at once.
// One goroutine at a time writes (the handshake and alerts, then who has the turn of the
// session) and one reads.
type bufferedConn struct {
	net.Conn
	// buffers makes the large buffers disappear while nothing moves.
	buffers sync.Pool

	wmu    sync.Mutex // guards the fields below: TLS may answer a key update while reading
	corked bool
	out    *[ioBuffer]byte
	outLen int

	// Used by the reader alone.
	in       *[ioBuffer]byte
	inR, inW int
	busy     bool
}

func newBufferedConn(c net.Conn) *bufferedConn { return &bufferedConn{Conn: c} }

func (b *bufferedConn) buffer() *[ioBuffer]byte {
	if p, ok := b.buffers.Get().(*[ioBuffer]byte); ok {
		return p
	}
	return new([ioBuffer]byte)
}

func (b *bufferedConn) cork() {
	b.wmu.Lock()
	b.corked = true
	b.wmu.Unlock()
}

// uncork writes what was gathered.
func (b *bufferedConn) uncork() error {
	b.wmu.Lock()
	defer b.wmu.Unlock()
	b.corked = false
	err := b.flush()
	if b.out != nil {
		b.buffers.Put(b.out)
		b.out = nil
	}
	return err
}

func (b *bufferedConn) flush() error {
	if b.outLen == 0 {
		return nil
	}
	_, err := b.Conn.Write(b.out[:b.outLen])
	b.outLen = 0
	return err
}

// Write gathers p while corked and writes it at once otherwise.
func (b *bufferedConn) Write(p []byte) (int, error) {
	b.wmu.Lock()
	defer b.wmu.Unlock()
	if !b.corked {
		return b.Conn.Write(p)
	}
	if b.outLen+len(p) > ioBuffer {
		if err := b.flush(); err != nil {
			return 0, err
		}
	}
	if len(p) > ioBuffer {
		return b.Conn.Write(p)
	}
	if b.out == nil {
		b.out = b.buffer()
	}
	b.outLen += copy(b.out[b.outLen:], p)
	return len(p), nil
}

// Read parks on the caller's small buffer and takes a large one only while reads fill it.
func (b *bufferedConn) Read(p []byte) (int, error) {
	if b.inR == b.inW {
		if !b.busy {
			n, err := b.Conn.Read(p)
			b.busy = n == len(p) && n > 0
			return n, err
		}
		if err := b.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, b.in[b.inR:b.inW])
	b.inR += n
	if b.inR == b.inW && !b.busy {
		b.buffers.Put(b.in)
		b.in = nil
	}
	return n, nil
}

// fill reads once into the large buffer; a nearly empty read ends the busy time.
func (b *bufferedConn) fill() error {
	if b.in == nil {
		b.in = b.buffer()
	}
	n, err := b.Conn.Read(b.in[:])
	b.inR, b.inW = 0, n
	b.busy = n >= 4<<10
	if n > 0 {
		return nil
	}
	b.buffers.Put(b.in)
	b.in = nil
	b.busy = false
	return err
}
