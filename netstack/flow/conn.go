package flow

import (
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/postern-zt/postern/proto/frame"
)

var _ net.Conn = (*Flow)(nil)

var errTimeout = os.ErrDeadlineExceeded

// Addr is the address of a flow: its id.
type Addr uint64

// Network returns "postern".
func (a Addr) Network() string { return "postern" }

// String returns "flow-<id>".
func (a Addr) String() string { return "flow-" + strconv.FormatUint(uint64(a), 10) }

// LocalAddr returns the flow's id as an address.
func (f *Flow) LocalAddr() net.Addr { return Addr(f.id) }

// RemoteAddr returns the flow's id as an address.
func (f *Flow) RemoteAddr() net.Addr { return Addr(f.id) }

// Read reads what arrived; io.EOF after the peer ended its direction.
func (f *Flow) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	idle := time.NewTimer(idleAck)
	defer idle.Stop()
	got, err := f.take(idle)
	if err != nil {
		if errors.Is(err, io.EOF) {
			f.finReceived()
		} else if f.finished() {
			err = io.EOF
		}
		return 0, err
	}
	n := copy(p, got.b)
	if n < len(got.b) {
		got.b = got.b[n:]
		got.c.hold()
		f.putBack(got)
	}
	f.drained(got, n)
	return n, nil
}

// finished reports a flow that ended well, where a late Read still sees the end.
func (f *Flow) finished() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.core.complete()
}

// putBack returns the unread rest, with a use of its chunk, to the queue.
func (f *Flow) putBack(p piece) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		p.c.release()
		return
	}
	f.queue.unpop(p)
}

// Write sends p; it waits for the peer's credit.
func (f *Flow) Write(p []byte) (int, error) {
	total := 0
	for len(p) > 0 {
		room, err := f.waitRoomOpen()
		if err != nil {
			return total, err
		}
		c := f.mem.get(min(len(p), room) + frame.HeaderLen)
		n := copy(c.mem[frame.HeaderLen:], p[:min(len(p), room)])
		f.send(c, n)
		p = p[n:]
		total += n
	}
	return total, nil
}

// waitRoomOpen is waitRoom that fails after CloseWrite.
func (f *Flow) waitRoomOpen() (int, error) {
	f.mu.Lock()
	closed := f.core.fin
	f.mu.Unlock()
	if closed {
		return 0, net.ErrClosed
	}
	return f.waitRoom()
}

// CloseWrite ends our direction after everything written.
func (f *Flow) CloseWrite() error {
	f.finishSend()
	return nil
}

// Close ends the flow as a socket's close does: unread bytes, or bytes that come later,
// are answered with a reset; else both directions end cleanly. Safe twice.
func (f *Flow) Close() error {
	f.mu.Lock()
	f.readClosed = true
	f.refuseLocked()
	f.endLocked()
	f.mu.Unlock()
	f.finishSend()
	f.mu.Lock()
	f.endLocked()
	f.mu.Unlock()
	return nil
}

// refuseLocked is the receiving side after Close: payload resets, the peer's end is
// taken. It reports whether an answer is due. f.mu is held.
func (f *Flow) refuseLocked() bool {
	if !f.readClosed || f.ended {
		return false
	}
	if !f.queue.empty() {
		f.core.fail(frame.Reset)
		return false
	}
	return f.core.drainedFin()
}

// SetDeadline sets both deadlines.
func (f *Flow) SetDeadline(t time.Time) error {
	f.readDeadline.set(t)
	f.writeDeadline.set(t)
	return nil
}

// SetReadDeadline bounds the present and later Reads.
func (f *Flow) SetReadDeadline(t time.Time) error {
	f.readDeadline.set(t)
	return nil
}

// SetWriteDeadline bounds the present and later Writes.
func (f *Flow) SetWriteDeadline(t time.Time) error {
	f.writeDeadline.set(t)
	return nil
}

// deadline is a channel that closes at a time that may be moved, as in net.Pipe.
type deadline struct {
	mu     *sync.Mutex // guards timer and cancel
	timer  *time.Timer
	cancel chan struct{}
}

func makeDeadline() deadline {
	return deadline{mu: &sync.Mutex{}, cancel: make(chan struct{})}
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.cancel // the timer closes it; wait so that a new channel is not closed by it
	}
	d.timer = nil
	closed := isClosed(d.cancel)
	if t.IsZero() {
		if closed {
			d.cancel = make(chan struct{})
		}
		return
	}
	if dur := time.Until(t); dur > 0 {
		if closed {
			d.cancel = make(chan struct{})
		}
		cancel := d.cancel
		d.timer = time.AfterFunc(dur, func() { close(cancel) })
		return
	}
	if !closed {
		close(d.cancel)
	}
}

func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cancel
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
