package mux

import (
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"
)

// maxUnread is how much of one stream waits for its reader before the session's reader
// waits with it, maxHeld how much of all streams together. One is above what a flow may have
// in flight, so that only a peer that breaks the flow's rules meets it.
const (
	maxUnread = 8 << 20
	maxHeld   = 64 << 20
)

// Stream is one byte stream of a session.
type Stream struct {
	s *Session

	mu       sync.Mutex // guards the fields below
	id       uint32     // 0 until the first frame of a stream of ours
	in       inbox
	finIn    bool // the peer has ended its direction
	finOut   bool // we have ended ours
	deaf     bool // nobody reads any more
	err      error
	readBy   time.Time
	writeBy  time.Time
	readable chan struct{} // length 1: the reader looks again
	writable chan struct{} // length 1: the writer looks again
}

var _ net.Conn = (*Stream)(nil)

func newStream(s *Session, id uint32) *Stream {
	return &Stream{s: s, id: id, readable: make(chan struct{}, 1), writable: make(chan struct{}, 1)}
}

// Read reads what has come; io.EOF after the peer ended its direction.
func (st *Stream) Read(p []byte) (int, error) {
	for {
		n, by, err := st.tryRead(p)
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
		st.wait(st.readable, by)
	}
}

func (st *Stream) tryRead(p []byte) (n int, by time.Time, err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case past(st.readBy):
		return 0, st.readBy, os.ErrDeadlineExceeded
	case st.err != nil:
		return 0, st.readBy, st.err
	case st.deaf:
		return 0, st.readBy, net.ErrClosed
	case !st.in.empty():
		before := st.in.mem
		n = st.in.take(p)
		st.s.freed(before - st.in.mem)
		return n, st.readBy, nil
	case st.finIn:
		return 0, st.readBy, io.EOF
	}
	return 0, st.readBy, nil
}

// wait returns when ch has a wake-up or by may have come; the caller looks again. A
// session that has ended ends the stream, also one that it does not know yet.
func (st *Stream) wait(ch chan struct{}, by time.Time) {
	var timer <-chan time.Time
	if !by.IsZero() {
		t := time.NewTimer(time.Until(by))
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-ch:
	case <-timer:
	case <-st.s.done:
		st.end(st.s.Err())
	}
}

func past(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

// Write sends p. It returns when the connection has taken it.
func (st *Stream) Write(p []byte) (int, error) {
	total := 0
	for {
		n := min(len(p), maxBody)
		if err := st.send(frameData, p[:n]); err != nil {
			return total, err
		}
		total += n
		p = p[n:]
		if len(p) == 0 {
			return total, nil
		}
	}
}

// CloseWrite ends our direction; the peer reads io.EOF after the last byte.
func (st *Stream) CloseWrite() error {
	st.mu.Lock()
	done := st.finOut
	st.mu.Unlock()
	if done {
		return nil
	}
	return st.send(frameFin, nil)
}

// send writes one frame when it is our turn.
func (st *Stream) send(typ frameType, body []byte) error {
	by, err := st.takeTurn()
	if err != nil {
		return err
	}
	defer st.s.releaseTurn()
	h, err := st.prepare(typ, len(body))
	if err != nil || h.typ == 0 {
		return err
	}
	return st.s.write(h, body, by)
}

// takeTurn waits until nobody else writes.
func (st *Stream) takeTurn() (time.Time, error) {
	for {
		st.mu.Lock()
		by, err := st.writeBy, st.err
		st.mu.Unlock()
		if err == nil && past(by) {
			err = os.ErrDeadlineExceeded
		}
		if err != nil || st.awaitTurn(by) {
			return by, err
		}
	}
}

// awaitTurn reports whether we have the turn now; else the caller looks again.
func (st *Stream) awaitTurn(by time.Time) bool {
	select {
	case st.s.turn <- struct{}{}:
		return true
	default:
	}
	var timer <-chan time.Time
	if !by.IsZero() {
		t := time.NewTimer(time.Until(by))
		defer t.Stop()
		timer = t.C
	}
	select {
	case st.s.turn <- struct{}{}:
		return true
	case <-st.writable: // a new deadline, or the end
	case <-timer:
	case <-st.s.done:
		st.end(st.s.Err())
	}
	return false
}

// prepare gives the header of the next frame; we have the turn. A stream that ends before
// its first byte is never heard of: the header then has no type.
func (st *Stream) prepare(typ frameType, n int) (header, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case st.err != nil:
		return header{}, st.err
	case st.finOut:
		return header{}, net.ErrClosed
	case typ == frameFin:
		st.finOut = true
		st.forgetLocked()
		if st.id == 0 {
			return header{}, nil
		}
	case st.id == 0:
		id, err := st.s.register(st)
		if err != nil {
			return header{}, err
		}
		st.id, typ = id, frameOpen
	}
	return header{typ: typ, length: n, stream: st.id}, nil
}

// forgetLocked drops the stream from its session when both directions have ended; st.mu
// is held. What was received stays readable.
func (st *Stream) forgetLocked() {
	if st.id != 0 && st.finOut && (st.finIn || st.deaf) {
		st.s.forget(st.id)
	}
}

// Close ends our direction and stops reading: later bytes of the peer are passed over.
func (st *Stream) Close() error {
	st.mu.Lock()
	st.deaf = true
	st.clearLocked()
	st.forgetLocked()
	st.mu.Unlock()
	wake(st.readable)
	return st.CloseWrite()
}

// Abort ends both directions at once and never waits.
func (st *Stream) Abort() {
	st.mu.Lock()
	if st.err == nil && st.id != 0 && !(st.finIn && st.finOut) {
		st.s.reset(st.id)
		st.s.forget(st.id)
	}
	st.mu.Unlock()
	st.end(net.ErrClosed)
}

// end is the end of both directions: reader and writer return err, the first one given.
func (st *Stream) end(err error) {
	st.mu.Lock()
	if st.err == nil {
		st.err = err
	}
	st.clearLocked()
	st.mu.Unlock()
	wake(st.readable)
	wake(st.writable)
}

// clearLocked drops what was not read; st.mu is held.
func (st *Stream) clearLocked() {
	freed := st.in.mem
	st.in.clear()
	st.s.freed(freed)
}

// finished takes the peer's end of its direction; a second one changes nothing.
func (st *Stream) finished() {
	st.mu.Lock()
	st.finIn = true
	st.forgetLocked()
	st.mu.Unlock()
	wake(st.readable)
}

// SetDeadline sets both deadlines.
func (st *Stream) SetDeadline(t time.Time) error {
	_ = st.SetReadDeadline(t)
	return st.SetWriteDeadline(t)
}

// SetReadDeadline bounds the present and later Reads.
func (st *Stream) SetReadDeadline(t time.Time) error {
	st.mu.Lock()
	st.readBy = t
	st.mu.Unlock()
	wake(st.readable)
	return nil
}

// SetWriteDeadline bounds the wait of the present and later Writes for their turn. A frame
// that is being written is not cut: a deadline that passes then is seen by the next.
func (st *Stream) SetWriteDeadline(t time.Time) error {
	st.mu.Lock()
	st.writeBy = t
	st.mu.Unlock()
	wake(st.writable)
	return nil
}

// Addr names a stream.
type Addr uint32

// Network returns "mux".
func (Addr) Network() string { return "mux" }

// String returns "stream-<id>".
func (a Addr) String() string { return "stream-" + strconv.FormatUint(uint64(a), 10) }

// LocalAddr returns the stream's id as an address.
func (st *Stream) LocalAddr() net.Addr {
	st.mu.Lock()
	defer st.mu.Unlock()
	return Addr(st.id)
}

// RemoteAddr returns the stream's id as an address.
func (st *Stream) RemoteAddr() net.Addr { return st.LocalAddr() }

// wake leaves a wake-up without waiting; one that already waits is enough.
func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
