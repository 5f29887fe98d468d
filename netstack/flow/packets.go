package flow

import (
	"bytes"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-zt/postern/proto/frame"
)

// errTooLarge says that a datagram cannot be carried; the caller answers with ICMP.
var errTooLarge = errors.New("datagram too large for the link")

const (
	// packetQueue and packetBytes bound what waits for a slow reader; the oldest goes.
	packetQueue = 256
	packetBytes = 1 << 20
)

// Packets is one UDP flow: a net.Conn on which every Read and Write is one datagram.
// Nothing is retained or repeated: it is UDP. It is safe for concurrent use.
type Packets struct {
	id   uint64
	send func([]byte) error
	max  func() int
	next atomic.Uint32 // datagram id; writers may be several

	toApp, fromApp, dropped atomic.Uint64 // counters, read by Stats
	last                    atomic.Int64  // time of the last datagram, for the idle end

	mu      sync.Mutex // guards the fields below
	parts   reassembler
	queue   [][]byte
	bytes   int
	held    bool
	ended   bool
	code    frame.Code
	onEnd   func(frame.Code)
	ready   chan struct{} // length 1: a wake-up for the reader
	over    chan struct{}
	readEnd deadline
}

var _ net.Conn = (*Packets)(nil)

// PacketsConfig makes a Packets.
type PacketsConfig struct {
	ID uint64
	// Send sends one carrier datagram, best effort, and does not keep it.
	Send func([]byte) error
	// Max is the largest carrier datagram at present.
	Max func() int
	// OnEnd is called once when the flow ends, without a lock.
	OnEnd func(frame.Code)
}

// NewPackets returns a UDP flow.
func NewPackets(cfg PacketsConfig) *Packets {
	p := &Packets{
		id: cfg.ID, send: cfg.Send, max: cfg.Max, onEnd: cfg.OnEnd,
		ready: make(chan struct{}, 1), over: make(chan struct{}), readEnd: makeDeadline(),
	}
	p.last.Store(time.Now().UnixNano())
	return p
}

// Deliver takes one carrier datagram of this flow, already parsed. b is not kept.
func (p *Packets) Deliver(f frame.Fragment, b []byte) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended || p.held {
		p.dropped.Add(1)
		return
	}
	d := p.parts.add(f, b, now)
	if d == nil {
		return
	}
	p.last.Store(now.UnixNano())
	if f.Total == 1 {
		d = bytes.Clone(d)
	}
	p.queue = append(p.queue, d)
	p.bytes += len(d)
	for len(p.queue) > packetQueue || p.bytes > packetBytes {
		p.bytes -= len(p.queue[0])
		p.queue = p.queue[1:]
		p.dropped.Add(1)
	}
	wake(p.ready)
}

// Read reads one datagram; the rest of one that does not fit is lost, as with a socket.
func (p *Packets) Read(b []byte) (int, error) {
	d, err := p.ReadDatagram()
	return copy(b, d), err
}

// ReadDatagram reads one datagram, which belongs to the caller.
func (p *Packets) ReadDatagram() ([]byte, error) {
	for {
		p.mu.Lock()
		if len(p.queue) > 0 && !p.ended {
			d := p.queue[0]
			p.queue[0] = nil
			p.queue = p.queue[1:]
			p.bytes -= len(d)
			p.mu.Unlock()
			p.toApp.Add(uint64(len(d)))
			return d, nil
		}
		p.mu.Unlock()
		select {
		case <-p.ready:
		case <-p.over:
			return nil, p.closedErr()
		case <-p.readEnd.wait():
			return nil, errTimeout
		}
	}
}

// Write sends one datagram, best effort; without a carrier it is dropped.
func (p *Packets) Write(b []byte) (int, error) {
	p.mu.Lock()
	ended, held := p.ended, p.held
	p.mu.Unlock()
	if ended {
		return 0, p.closedErr()
	}
	p.fromApp.Add(uint64(len(b)))
	p.last.Store(time.Now().UnixNano())
	if held || p.max() == 0 {
		p.dropped.Add(1)
		return len(b), nil
	}
	if err := fragments(p.id, p.next.Add(1), b, p.max(), p.send); err != nil {
		p.dropped.Add(1)
		if errors.Is(err, errTooLarge) {
			return 0, err
		}
	}
	return len(b), nil
}

// Hold drops every datagram in both directions, or lets them pass again.
func (p *Packets) Hold(on bool) {
	p.mu.Lock()
	p.held = on
	p.mu.Unlock()
}

// Abort ends the flow; the first reason stays. frame.OK is a normal end.
func (p *Packets) Abort(code frame.Code) {
	p.mu.Lock()
	if p.ended {
		p.mu.Unlock()
		return
	}
	p.ended, p.code, p.queue = true, code, nil
	close(p.over)
	p.mu.Unlock()
	if p.onEnd != nil {
		p.onEnd(code)
	}
}

// Close ends the flow normally.
func (p *Packets) Close() error {
	p.Abort(frame.OK)
	return nil
}

// Done is closed when the flow has ended.
func (p *Packets) Done() <-chan struct{} { return p.over }

// Err is nil while the flow lives and after a normal end.
func (p *Packets) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.code.Err()
}

func (p *Packets) closedErr() error {
	if err := p.Err(); err != nil {
		return err
	}
	return net.ErrClosed
}

// Stats returns the present counts.
func (p *Packets) Stats() Stats {
	p.mu.Lock()
	code := p.code
	p.mu.Unlock()
	return Stats{ToApp: p.toApp.Load(), FromApp: p.fromApp.Load(), Code: code}
}

// LastActive is when the last datagram passed in either direction.
func (p *Packets) LastActive() time.Time { return time.Unix(0, p.last.Load()) }

// ID returns the flow's id.
func (p *Packets) ID() uint64 { return p.id }

// LocalAddr returns the flow's id as an address.
func (p *Packets) LocalAddr() net.Addr { return Addr(p.id) }

// RemoteAddr returns the flow's id as an address.
func (p *Packets) RemoteAddr() net.Addr { return Addr(p.id) }

// SetDeadline bounds Reads; a Write never waits.
func (p *Packets) SetDeadline(t time.Time) error { return p.SetReadDeadline(t) }

// SetReadDeadline bounds the present and later Reads.
func (p *Packets) SetReadDeadline(t time.Time) error {
	p.readEnd.set(t)
	return nil
}

// SetWriteDeadline does nothing: a Write never waits.
func (p *Packets) SetWriteDeadline(time.Time) error { return nil }
