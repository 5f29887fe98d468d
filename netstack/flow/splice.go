package flow

import (
	"errors"
	"io"
	"net"
	"time"

	"github.com/postern-zt/postern/proto/frame"
)

// Splice joins the flow with a program's connection until both directions have ended or
// one side resets, and tells each side truthfully what the other did: half-close, reset,
// or a clean end. It owns app. Call it once, instead of Read and Write.
func (f *Flow) Splice(app net.Conn) Stats {
	f.mu.Lock()
	f.app = app
	ended, reset := f.ended, f.core.reset
	f.mu.Unlock()
	if ended {
		closeApp(app, reset)
		return f.Stats()
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		if _, err := f.WriteTo(app); err != nil {
			f.Abort(frame.Reset)
			return
		}
		f.finishReceive(app)
	}()
	if _, err := f.ReadFrom(app); err != nil {
		f.Abort(frame.Reset)
	}
	<-written
	f.Wait()
	return f.Stats()
}

// finishReceive passes the peer's end on to the program and then acknowledges it.
func (f *Flow) finishReceive(app net.Conn) {
	if cw, ok := app.(interface{ CloseWrite() error }); ok {
		_ = cw.CloseWrite() // a connection that is gone shows in the reading direction
	}
	f.finReceived()
}

// closeApp ends the program's connection: with a reset where the connection can say so.
func closeApp(app net.Conn, reset bool) {
	if reset {
		switch c := app.(type) {
		case interface{ Abort() }:
			c.Abort()
		case interface{ SetLinger(sec int) error }:
			_ = c.SetLinger(0) // then Close sends RST; a closed socket needs none
		}
	}
	_ = app.Close() // it has ended either way
}

// ReadFrom sends what r yields until its end, then ends our direction. An error other
// than io.EOF is returned and leaves the flow open.
func (f *Flow) ReadFrom(r io.Reader) (int64, error) {
	var total int64
	size := smallChunk
	for {
		room, err := f.waitRoom()
		if err != nil {
			return total, err
		}
		c := f.mem.get(size)
		space := min(len(c.mem)-frame.HeaderLen, room)
		n, err := r.Read(c.mem[frame.HeaderLen : frame.HeaderLen+space])
		f.send(c, n)
		total += int64(n)
		size = nextSize(size, n, space)
		if errors.Is(err, io.EOF) {
			f.finishSend()
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// nextSize adapts the chunk to what reads yield: a full one asks for a larger class, a
// nearly empty one for a smaller.
func nextSize(size, n, space int) int {
	switch {
	case n == space && size == smallChunk:
		return mediumChunk
	case n == space:
		return largeChunk
	case n < space/8 && size == largeChunk:
		return mediumChunk
	case n < space/8:
		return smallChunk
	default:
		return size
	}
}

// send takes over c with n payload bytes in it and writes what may be written.
func (f *Flow) send(c *chunk, n int) {
	if n <= 0 {
		c.release()
		return
	}
	f.mu.Lock()
	f.core.add(c, n, f.mem.share())
	a := f.att
	f.mu.Unlock()
	if a != nil {
		f.flush(a)
	}
}

func (f *Flow) finishSend() {
	f.mu.Lock()
	f.core.closeSend()
	f.mu.Unlock()
	f.flushNow()
}

// waitRoom waits until the peer and the budget allow more bytes.
func (f *Flow) waitRoom() (int, error) {
	for {
		f.mu.Lock()
		room := f.core.room(f.mem.share())
		f.mu.Unlock()
		if room > 0 {
			return room, nil
		}
		select {
		case <-f.sendReady:
		case <-f.over:
			return 0, f.closedErr()
		case <-f.writeDeadline.wait():
			return 0, errTimeout
		}
	}
}

// closedErr is the error of a flow that has ended.
func (f *Flow) closedErr() error {
	if err := f.Err(); err != nil {
		return err
	}
	return net.ErrClosed
}

// WriteTo writes everything that arrives to w until the peer ends its direction. The
// caller then tells the program and calls nothing more; Splice does both.
func (f *Flow) WriteTo(w io.Writer) (int64, error) {
	var total int64
	idle := time.NewTimer(idleAck)
	defer idle.Stop()
	for {
		p, err := f.take(idle)
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		n, err := w.Write(p.b)
		f.drained(p, n)
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
}

// take waits for the next piece, acknowledging a pause. io.EOF says that the peer ended
// its direction and everything before it was taken.
func (f *Flow) take(idle *time.Timer) (piece, error) {
	for {
		p, ok, eof, due := f.tryTake()
		switch {
		case ok:
			return p, nil
		case eof:
			return piece{}, io.EOF
		case due:
			f.flushNow()
		}
		idle.Reset(idleAck)
		select {
		case <-f.recvReady:
		case <-f.over:
			return piece{}, f.closedErr()
		case <-f.readDeadline.wait():
			return piece{}, errTimeout
		case <-idle.C:
			if !f.waitLong() {
				continue
			}
			return f.takeParked()
		}
	}
}

// waitLong acknowledges what came before the pause; it reports whether the receiver may
// park without a timer.
func (f *Flow) waitLong() bool {
	f.mu.Lock()
	f.idle = true
	f.mu.Unlock()
	f.flushNow()
	f.mu.Lock()
	f.idle = false
	empty := f.queue.empty() && !f.core.peerFin
	f.mu.Unlock()
	return empty
}

// takeParked is take without the pause timer: nothing is left to acknowledge until the
// next byte.
func (f *Flow) takeParked() (piece, error) {
	for {
		p, ok, eof, _ := f.tryTake()
		if ok {
			return p, nil
		}
		if eof {
			return piece{}, io.EOF
		}
		select {
		case <-f.recvReady:
		case <-f.over:
			return piece{}, f.closedErr()
		case <-f.readDeadline.wait():
			return piece{}, errTimeout
		}
	}
}

func (f *Flow) tryTake() (p piece, ok, eof, due bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.core.held || f.ended {
		return piece{}, false, false, false
	}
	if !f.queue.empty() {
		return f.queue.pop(), true, false, false
	}
	return piece{}, false, f.core.peerFin, f.core.ackDue(false)
}

// drained gives p back after n of its bytes reached the program, and acknowledges when
// enough has gathered.
func (f *Flow) drained(p piece, n int) {
	f.mu.Lock()
	f.core.onDrained(n)
	due := f.core.ackDue(false)
	a := f.att
	f.mu.Unlock()
	p.c.release()
	if due && a != nil {
		f.flush(a)
	}
}

// finReceived acknowledges the peer's end after the program was told.
func (f *Flow) finReceived() {
	f.mu.Lock()
	f.core.drainedFin()
	f.mu.Unlock()
	f.flushNow()
	f.mu.Lock()
	f.endLocked()
	f.mu.Unlock()
}
