// Package netlab is a network in memory for tests: stream connections and packet sockets
// with latency, loss, reordering, silent cuts and resets that the test controls. It
// starts no goroutine and uses only timers and channels, so it works inside a
// testing/synctest bubble, and its randomness comes from a seed. Only tests import it.
//
// Everything is safe for concurrent use.
package netlab

import (
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// DefaultBuffer is how much a stream holds in each direction, like a socket buffer.
const DefaultBuffer = 256 << 10

// StreamConfig describes both directions of a stream.
type StreamConfig struct {
	Latency time.Duration
	// Buffer is the capacity of each direction; zero means DefaultBuffer.
	Buffer int
	// LocalName and RemoteName appear as addresses.
	LocalName, RemoteName string
}

// Stream is a connected pair with its switches.
type Stream struct {
	A, B *Conn
	ab   *half
	ba   *half
}

// NewStream returns a connected pair.
func NewStream(cfg StreamConfig) *Stream {
	if cfg.Buffer <= 0 {
		cfg.Buffer = DefaultBuffer
	}
	ab, ba := newHalf(cfg), newHalf(cfg)
	a := &Conn{in: ba, out: ab, local: Addr(cfg.LocalName), remote: Addr(cfg.RemoteName), rd: newDeadline(), wd: newDeadline()}
	b := &Conn{in: ab, out: ba, local: Addr(cfg.RemoteName), remote: Addr(cfg.LocalName), rd: newDeadline(), wd: newDeadline()}
	return &Stream{A: a, B: b, ab: ab, ba: ba}
}

// Cut stops delivery in both directions without a word, as a firewall that drops.
func (s *Stream) Cut() {
	s.ab.setCut(true)
	s.ba.setCut(true)
}

// Heal undoes Cut; what was written meanwhile arrives.
func (s *Stream) Heal() {
	s.ab.setCut(false)
	s.ba.setCut(false)
}

// Reset breaks the connection: both ends see ECONNRESET.
func (s *Stream) Reset() {
	s.ab.reset()
	s.ba.reset()
}

// Carried is how many bytes were delivered in both directions.
func (s *Stream) Carried() int64 { return s.ab.delivered() + s.ba.delivered() }

// Addr is a name as an address.
type Addr string

// Network returns "netlab".
func (a Addr) Network() string { return "netlab" }

// String returns the name.
func (a Addr) String() string { return string(a) }

// Conn is one end of a stream. It behaves like a TCP connection: half-close, reset when
// closed with SetLinger(0), EPIPE after the peer has gone.
type Conn struct {
	in, out       *half
	local, remote Addr
	rd, wd        *deadline

	mu     sync.Mutex // guards linger
	linger bool
}

var _ net.Conn = (*Conn)(nil)

// Read reads what has arrived.
func (c *Conn) Read(p []byte) (int, error) { return c.in.read(p, c.rd) }

// Write waits for room.
func (c *Conn) Write(p []byte) (int, error) { return c.out.write(p, c.wd) }

// CloseWrite ends our direction.
func (c *Conn) CloseWrite() error {
	c.out.closeWrite()
	return nil
}

// SetLinger with zero makes Close a reset.
func (c *Conn) SetLinger(sec int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.linger = sec == 0
	return nil
}

// Close ends the connection.
func (c *Conn) Close() error {
	c.mu.Lock()
	reset := c.linger
	c.mu.Unlock()
	if reset || c.in.closeRead() {
		c.out.reset()
	} else {
		c.out.closeWrite()
	}
	c.in.shut(net.ErrClosed)
	c.out.shutWriter(net.ErrClosed)
	return nil
}

// LocalAddr returns our name.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the peer's name.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	c.rd.set(t)
	c.wd.set(t)
	return nil
}

// SetReadDeadline bounds Reads.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.rd.set(t)
	return nil
}

// SetWriteDeadline bounds Writes.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.wd.set(t)
	return nil
}

// half is one direction.
type half struct {
	latency time.Duration
	limit   int

	mu       sync.Mutex // guards the fields below
	changed  chan struct{}
	segs     []seg
	size     int
	count    int64
	cut      bool
	eof      bool
	noReader bool
	readErr  error
	writeErr error
}

type seg struct {
	b  []byte
	at time.Time
}

func newHalf(cfg StreamConfig) *half {
	return &half{latency: cfg.Latency, limit: cfg.Buffer, changed: make(chan struct{})}
}

// update runs fn under the lock and wakes everyone.
func (h *half) update(fn func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	fn()
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *half) setCut(on bool) { h.update(func() { h.cut = on }) }

func (h *half) reset() {
	h.update(func() {
		h.segs, h.size = nil, 0
		h.readErr, h.writeErr = firstErr(h.readErr, syscall.ECONNRESET), firstErr(h.writeErr, syscall.ECONNRESET)
	})
}

func (h *half) closeWrite() { h.update(func() { h.eof = true }) }

// closeRead says that nobody reads any more; it reports whether unread bytes were lost,
// which TCP answers with a reset.
func (h *half) closeRead() (lost bool) {
	h.update(func() {
		lost = h.size > 0 && !h.noReader
		h.noReader = true
		h.writeErr = firstErr(h.writeErr, syscall.EPIPE)
	})
	return lost
}

func (h *half) shut(err error) {
	h.update(func() { h.readErr = err })
}

func (h *half) shutWriter(err error) {
	h.update(func() { h.writeErr = err })
}

func firstErr(old, err error) error {
	if old != nil {
		return old
	}
	return err
}

func (h *half) delivered() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.count
}

func (h *half) read(p []byte, d *deadline) (int, error) {
	for {
		n, wait, changed, err := h.tryRead(p)
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
		if err := pause(changed, d, wait); err != nil {
			return 0, err
		}
	}
}

func (h *half) tryRead(p []byte) (n int, wait time.Duration, changed chan struct{}, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.readErr != nil:
		return 0, 0, nil, h.readErr
	case h.cut:
		return 0, 0, h.changed, nil
	case len(h.segs) == 0 && h.eof:
		return 0, 0, nil, io.EOF
	case len(h.segs) == 0:
		return 0, 0, h.changed, nil
	}
	for n < len(p) && len(h.segs) > 0 {
		s := &h.segs[0]
		if wait := time.Until(s.at); wait > 0 {
			if n > 0 {
				break
			}
			return 0, wait, h.changed, nil
		}
		k := copy(p[n:], s.b)
		n += k
		if s.b = s.b[k:]; len(s.b) == 0 {
			h.segs = h.segs[1:]
		}
	}
	h.size -= n
	h.count += int64(n)
	close(h.changed)
	h.changed = make(chan struct{})
	return n, 0, nil, nil
}

func (h *half) write(p []byte, d *deadline) (int, error) {
	total := 0
	for len(p) > 0 {
		n, changed, err := h.tryWrite(p)
		total += n
		p = p[n:]
		if err != nil {
			return total, err
		}
		if n > 0 {
			continue
		}
		if err := pause(changed, d, 0); err != nil {
			return total, err
		}
	}
	return total, nil
}

func (h *half) tryWrite(p []byte) (int, chan struct{}, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.writeErr != nil:
		return 0, nil, h.writeErr
	case h.eof:
		return 0, nil, syscall.EPIPE
	case h.size >= h.limit:
		return 0, h.changed, nil
	}
	n := min(len(p), h.limit-h.size)
	h.segs = append(h.segs, seg{b: append([]byte(nil), p[:n]...), at: time.Now().Add(h.latency)})
	h.size += n
	close(h.changed)
	h.changed = make(chan struct{})
	return n, nil, nil
}

// pause waits for a change, the deadline, or (when positive) a time.
func pause(changed chan struct{}, d *deadline, wait time.Duration) error {
	var after <-chan time.Time
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		after = t.C
	}
	select {
	case <-changed:
	case <-after:
	case <-d.wait():
		return errDeadline
	}
	return nil
}
