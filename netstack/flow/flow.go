// Package flow makes one TCP connection survive its carrier: each side keeps what the
// other has not acknowledged, bounded, and a flow that loses its stream continues on
// another without losing or repeating a byte (decisions rules 15 to 18). It also cuts
// UDP datagrams into pieces and puts them together again.
//
// netstack/link uses it. core is the pure state machine, Flow the thin runtime beside it
// that pumps a program's socket and a carrier's stream. The package must not know grants,
// peers or transports.
//
//	program --Read--> chunk [header|payload] --Write--> stream     goroutine of ReadFrom
//	program <-Write-- queue <----- chunk <------Read--- stream     WriteTo, and Serve
//
// A Flow is safe for concurrent use; ReadFrom/Write and WriteTo/Read are for one caller
// each. Serve never waits for the program, so acks never wait behind data.
package flow

import (
	"errors"
	"net"
	"sync"
	"time"

	"github.com/postern-zt/postern/proto/frame"
)

// idleAck is how long a receiver waits for more before it acknowledges a short exchange.
const idleAck = 50 * time.Millisecond

// lingerRead bounds how long an ended flow waits for the peer to close its stream.
const lingerRead = 10 * time.Second

// Stream is what a flow needs of a carrier's stream.
type Stream interface {
	net.Conn
	CloseWrite() error
	Abort()
}

// Config makes a Flow.
type Config struct {
	// ID names the flow on its link.
	ID uint64
	// Epoch is the first epoch, as in open.
	Epoch uint32
	// Memory is the budget of the process.
	Memory *Memory
}

// Stats is what a flow has moved and how it ended.
type Stats struct {
	// ToApp bytes were written into the program's socket, FromApp bytes were read from it.
	ToApp, FromApp uint64
	// Code is OK for a flow that ended in both directions.
	Code frame.Code
	// Unacked bytes were read from the program and are not yet held by the peer.
	Unacked uint64
}

// Flow is the runtime of one TCP flow.
type Flow struct {
	id  uint64
	mem *Memory

	mu    sync.Mutex // guards the fields below
	core  core
	queue queue
	att   *Attachment
	app   net.Conn // while Splice runs
	ended bool
	idle  bool // nothing came for idleAck
	// readClosed says that Close was called: nobody reads any more.
	readClosed bool

	sendReady chan struct{} // length 1: a wake-up for the one sender, never lost
	recvReady chan struct{} // length 1: a wake-up for the one receiver
	over      chan struct{}
	work      sync.WaitGroup // resend and last words

	readDeadline, writeDeadline deadline
}

// Attachment is a flow on one stream of one carrier.
type Attachment struct {
	stream Stream

	wmu     sync.Mutex // serialises writes; guards the fields below
	broken  bool
	scratch [frame.AckLen]byte
}

// Window is the receive window that open and opened announce for a new flow.
func (m *Memory) Window() uint32 { return uint32(min(startWindow, m.share())) }

// New returns a detached flow. It holds a share of the budget until it ends.
func New(cfg Config) *Flow {
	cfg.Memory.flows.Add(1)
	return &Flow{
		id: cfg.ID, mem: cfg.Memory,
		core:      newCore(cfg.Epoch, startWindow),
		sendReady: make(chan struct{}, 1), recvReady: make(chan struct{}, 1), over: make(chan struct{}),
		readDeadline: makeDeadline(), writeDeadline: makeDeadline(),
	}
}

// ID returns the flow's id.
func (f *Flow) ID() uint64 { return f.id }

// Done is closed when the flow has ended, well or not.
func (f *Flow) Done() <-chan struct{} { return f.over }

// Err is nil while the flow lives and after it ended well.
func (f *Flow) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.core.reset {
		return nil
	}
	return f.core.code.Err()
}

// Stats returns the present counts.
func (f *Flow) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := Stats{ToApp: f.core.drained, FromApp: f.core.end, Unacked: f.core.end - f.core.acked}
	if f.core.reset {
		s.Code = f.core.code
	}
	return s
}

// State returns our receiving side, for an attach frame.
func (f *Flow) State() frame.Ack {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.core.state()
}

// Settled reports that the peer has sent everything and holds everything: the flow
// needs no carrier any more, only our program is behind.
func (f *Flow) Settled() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.core.peerFin && f.core.finAcked && !f.core.reset
}

// PeerHasAll is the peer's word, from outside the stream, that it holds everything and
// has ended the flow well. It is ignored unless both directions have ended here too.
func (f *Flow) PeerHasAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.core.finEver && f.core.peerFin && !f.core.reset {
		f.core.finAcked, f.core.acked = true, f.core.end
	}
	f.endLocked()
}

// Attached reports whether the flow has a carrier at present.
func (f *Flow) Attached() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.att != nil
}

// Start is the first attachment, once open was answered with opened.
func (f *Flow) Start(s Stream, peerWindow uint32) *Attachment {
	a := &Attachment{stream: s}
	f.mu.Lock()
	f.att = a
	f.core.start(peerWindow)
	ended := f.ended
	f.mu.Unlock()
	wake(f.sendReady)
	if ended {
		f.flush(a)
		a.close()
	}
	return a
}

// Attach continues the flow on s, whose far end stands at peer. A stale epoch is refused
// and changes nothing. first, when not nil, makes the frame that must precede all others
// on s out of our own state (attached). The old stream is aborted.
func (f *Flow) Attach(s Stream, epoch uint32, peer frame.Ack, first func(frame.Ack) []byte) (*Attachment, error) {
	a := &Attachment{stream: s}
	a.wmu.Lock()
	f.mu.Lock()
	err := f.core.attach(epoch, peer)
	if errors.Is(err, frame.StaleEpoch.Err()) {
		f.mu.Unlock()
		return nil, err
	}
	old := f.att
	f.att = a
	state := f.core.state()
	f.endLocked()
	f.mu.Unlock()
	if old != nil {
		old.stream.Abort()
	}
	if first != nil {
		if _, err := s.Write(first(state)); err != nil {
			a.broken = true
		}
	}
	a.wmu.Unlock()
	f.resend()
	return a, nil
}

// resend writes what waits, in the background: the sender may be parked in the program's
// socket and the reader must not write data. A flow that has ended is answered at once.
func (f *Flow) resend() {
	f.mu.Lock()
	a, ended := f.att, f.ended
	if a != nil && !ended {
		f.work.Add(1)
	}
	f.mu.Unlock()
	switch {
	case a == nil:
	case ended:
		f.flush(a)
		a.close()
	default:
		go func() {
			defer f.work.Done()
			f.flush(a)
			wake(f.sendReady)
		}()
	}
}

// Detach takes the flow off a; it waits for another attachment. It reports false when
// the flow has already moved on.
func (f *Flow) Detach(a *Attachment) bool {
	a.stream.Abort()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.att != a {
		return false
	}
	f.att = nil
	f.core.detach()
	return true
}

// Abort ends the flow at once in both directions; the peer and the program see a reset.
// The first reason stays. It does not wait.
func (f *Flow) Abort(code frame.Code) {
	f.mu.Lock()
	f.core.fail(code)
	f.endLocked()
	f.mu.Unlock()
}

// Hold stops every byte in both directions, or lets them move again (rule 8). The
// program's socket stays as it is.
func (f *Flow) Hold(on bool) {
	f.mu.Lock()
	f.core.held = on
	f.mu.Unlock()
	if !on {
		wake(f.sendReady)
		wake(f.recvReady)
		f.resend()
	}
}

// Wait returns when the flow has ended and its background work is done.
func (f *Flow) Wait() {
	<-f.over
	f.work.Wait()
}

// endLocked runs the end of the flow once: it frees the memory, wakes everyone and says
// the last words to program and peer in the background. f.mu is held.
func (f *Flow) endLocked() {
	if f.ended || !f.core.reset && !f.core.complete() {
		return
	}
	f.ended = true
	f.queue.clear()
	f.mem.flows.Add(-1)
	f.work.Add(1)
	close(f.over)
	go f.lastWords(f.att, f.app, f.core.reset)
}

func (f *Flow) lastWords(a *Attachment, app net.Conn, reset bool) {
	defer f.work.Done()
	if app != nil {
		closeApp(app, reset)
	}
	if a != nil {
		f.flush(a)
		a.close()
	}
}

// close ends our side of the stream after everything was written, and bounds the wait
// for the peer's end.
func (a *Attachment) close() {
	a.wmu.Lock()
	defer a.wmu.Unlock()
	a.broken = true
	_ = a.stream.SetReadDeadline(time.Now().Add(lingerRead)) // a dead stream needs no deadline
	_ = a.stream.CloseWrite()
}

// flush writes everything that core wants on a. A write error ends only the output: the
// reader may still find the peer's reset in the stream.
func (f *Flow) flush(a *Attachment) {
	a.wmu.Lock()
	defer a.wmu.Unlock()
	for !a.broken {
		f.mu.Lock()
		if f.att != a {
			f.mu.Unlock()
			return
		}
		out := f.core.next(f.mem.share(), f.idle)
		f.mu.Unlock()
		if out.kind == outNone {
			return
		}
		if err := a.write(out); err != nil {
			a.broken = true
			_ = a.stream.SetReadDeadline(time.Now().Add(lingerRead)) // the reader ends by itself or by this
		}
	}
}

// write sends one frame; a.wmu is held.
func (a *Attachment) write(out output) error {
	b := a.scratch[:0]
	switch out.kind {
	case outData:
		_, err := a.stream.Write(out.seg.c.mem[:frame.HeaderLen+out.seg.n])
		out.seg.c.release()
		return err
	case outAck:
		b = frame.AppendAck(b, out.ack)
	case outFin:
		b = frame.AppendFin(b, out.fin)
	default:
		b = frame.AppendRst(b, 0, out.code)
	}
	_, err := a.stream.Write(b)
	return err
}

// flushNow writes what core wants on the present attachment, if there is one.
func (f *Flow) flushNow() {
	f.mu.Lock()
	a := f.att
	f.mu.Unlock()
	if a != nil {
		f.flush(a)
	}
}

// wake leaves a wake-up without waiting; one that already waits is enough.
func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
