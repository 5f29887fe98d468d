package tls

import (
	"crypto/tls"
	"encoding/binary"
	"net"
	"sync"
)

const (
	// ioBuffer holds the TLS records of one frame of 128 KiB with their overhead.
	ioBuffer = 136 << 10
	// yamuxHeader is the length of yamux's frame header; byte 1 is the type (0 data),
	// bytes 8 to 12 the length of the body that follows.
	yamuxHeader = 12
)

// recordConn is what yamux writes into: header and body of a data frame, which yamux
// writes one after the other, leave in one write to the network.
type recordConn struct {
	*tls.Conn
	raw *bufferedConn
	// body says that the next write belongs to the header just written. Only yamux's
	// sender writes.
	body bool
}

func (c *recordConn) Write(p []byte) (int, error) {
	if !c.body && len(p) == yamuxHeader && p[1] == 0 && binary.BigEndian.Uint32(p[8:]) > 0 {
		c.body = true
		c.raw.cork()
		return c.Conn.Write(p)
	}
	if !c.body {
		c.raw.cork()
	}
	c.body = false
	n, err := c.Conn.Write(p)
	if ferr := c.raw.uncork(); err == nil {
		err = ferr
	}
	return n, err
}

// Close closes the connection at once: the polite end of TLS can wait for seconds on a
// dead path, and yamux streams have their own ends.
func (c *recordConn) Close() error { return c.raw.Close() }

// bufferedConn gathers TLS records while it is corked and reads many records at once.
// One goroutine writes (yamux's sender; the handshake and alerts before it) and one
// reads.
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
