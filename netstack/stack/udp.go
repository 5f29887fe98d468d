package stack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/postern-zt/postern/netstack/packet"
)

const dnsPort = 53

var (
	errIdle    = errors.New("no datagrams for a while")
	errStopped = errors.New("stack has stopped")
)

// UDPFlow is one UDP association of a local program. It begins undecided:
// datagrams are kept, within limits, until Accept or a refusal.
//
//	undecided --Accept--> open --idle, Close--> ended (silence)
//	    |                  |
//	    +--Refuse, Prohibited, Unreachable--> ended (ICMP, also for later
//	                                           datagrams for 3 s)
//
// ReadPacket is for one goroutine; everything else may be called from any.
type UDPFlow struct {
	// Local is the address and port of the app, as the program knows it.
	Local netip.AddrPort
	// Remote is the address and port of the program.
	Remote netip.AddrPort

	stack *Stack
	quote []byte       // the first datagram's headers, for ICMP
	last  atomic.Int64 // unix nanoseconds of the last datagram, either way
	news  chan struct{}
	done  chan struct{}

	mu       sync.Mutex
	accepted bool                   // guarded by mu
	queue    []*gstack.PacketBuffer // guarded by mu
	queued   int                    // bytes in queue; guarded by mu
	timer    *time.Timer            // guarded by mu
	err      error                  // why it ended; guarded by mu
}

// Accept opens the flow. It fails with ErrExpired when the verdict came too late,
// and with net.ErrClosed after the end.
func (f *UDPFlow) Accept() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	if !f.accepted {
		f.accepted = true
		f.timer.Reset(f.idle())
	}
	return nil
}

// Refuse ends the flow with ICMP "port unreachable": the program sees "connection
// refused".
func (f *UDPFlow) Refuse() error { return f.refuse(packet.ReasonPort) }

// Prohibited ends the flow with ICMP "administratively prohibited".
func (f *UDPFlow) Prohibited() error { return f.refuse(packet.ReasonProhibited) }

// Unreachable ends the flow with ICMP "host unreachable".
func (f *UDPFlow) Unreachable() error { return f.refuse(packet.ReasonHost) }

func (f *UDPFlow) refuse(r packet.Reason) error {
	v := verdict{reason: r}
	if !f.endWith(net.ErrClosed, v) {
		return ErrDecided
	}
	f.stack.tell(v, f.Local, f.Remote, 0, f.quote)
	return nil
}

// Close ends the flow without a word. It is safe to call twice.
func (f *UDPFlow) Close() error {
	f.end(net.ErrClosed)
	return nil
}

// Done is closed at the end of the flow.
func (f *UDPFlow) Done() <-chan struct{} { return f.done }

// ReadPacket copies the next datagram into p and returns its length; what does not
// fit is cut off. After the end it returns an error that wraps net.ErrClosed.
func (f *UDPFlow) ReadPacket(ctx context.Context, p []byte) (int, error) {
	for {
		if pkt := f.pop(); pkt != nil {
			defer pkt.DecRef()
			return copyPayload(p, pkt), nil
		}
		select {
		case <-f.news:
		case <-f.done:
			return 0, f.readError()
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// WritePacket sends a datagram to the program. The flow must be accepted.
func (f *UDPFlow) WritePacket(p []byte) error {
	if len(p) > packet.MaxUDPPayload {
		return ErrTooLarge
	}
	f.mu.Lock()
	accepted, err := f.accepted, f.err
	f.mu.Unlock()
	if err != nil {
		return err
	}
	if !accepted {
		return errors.New("flow is not accepted")
	}
	f.last.Store(time.Now().UnixNano())
	f.stack.link.sendUDP(f.Local, f.Remote, p)
	return nil
}

func (f *UDPFlow) key() flowKey { return flowKey{packet.ProtoUDP, f.Local, f.Remote} }

func (f *UDPFlow) idle() time.Duration {
	if f.Local.Port() == dnsPort {
		return f.stack.cfg.Times.IdleDNS
	}
	return f.stack.cfg.Times.IdleUDP
}

func (f *UDPFlow) readError() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(f.err, net.ErrClosed)
}

func (f *UDPFlow) end(why error) bool { return f.endWith(why, verdict{}) }

// endWith forgets the flow and remembers the verdict, if there is one. Only the
// first call returns true. When done is closed the next datagram is a new flow.
func (f *UDPFlow) endWith(why error, v verdict) bool {
	f.mu.Lock()
	if f.err != nil {
		f.mu.Unlock()
		return false
	}
	f.err = why
	f.timer.Stop()
	f.dropQueueLocked()
	f.mu.Unlock()
	if v != (verdict{}) {
		f.stack.remember(f.key(), v)
	}
	f.stack.flows.remove(f.key())
	close(f.done)
	return true
}

func (f *UDPFlow) dropQueueLocked() {
	for _, pkt := range f.queue {
		pkt.DecRef()
	}
	f.queue, f.queued = nil, 0
}

// tick runs when the hold time or the idle time may be over.
func (f *UDPFlow) tick() {
	f.mu.Lock()
	if !f.accepted {
		f.mu.Unlock()
		f.stack.stats.expired.Add(1)
		f.end(ErrExpired)
		return
	}
	quiet := time.Since(time.Unix(0, f.last.Load()))
	if left := f.idle() - quiet; left > 0 {
		if f.err == nil {
			f.timer.Reset(left)
		}
		f.mu.Unlock()
		return
	}
	f.mu.Unlock()
	f.end(errIdle)
}

// push queues a datagram. A full undecided queue drops the new one, since the first
// ones matter; a full open queue drops the oldest, since it is the most out of date.
func (f *UDPFlow) push(pkt *gstack.PacketBuffer) {
	f.last.Store(time.Now().UnixNano())
	f.mu.Lock()
	defer f.mu.Unlock()
	limits := &f.stack.cfg.Limits
	packets, bytes := limits.HeldPackets, limits.HeldBytes
	if f.accepted {
		packets, bytes = limits.QueuePackets, limits.QueueBytes
	}
	size := pkt.Data().Size()
	for f.err == nil && f.accepted && len(f.queue) > 0 && (len(f.queue) >= packets || f.queued+size > bytes) {
		f.stack.stats.overflow.Add(1)
		f.popLocked().DecRef()
	}
	if f.err != nil || len(f.queue) >= packets || f.queued+size > bytes {
		f.stack.stats.overflow.Add(1)
		return
	}
	f.queue = append(f.queue, pkt.Clone())
	f.queued += size
	select {
	case f.news <- struct{}{}:
	default: // the reader knows already
	}
}

func (f *UDPFlow) pop() *gstack.PacketBuffer {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.accepted || len(f.queue) == 0 {
		return nil
	}
	return f.popLocked()
}

func (f *UDPFlow) popLocked() *gstack.PacketBuffer {
	pkt := f.queue[0]
	f.queue[0] = nil
	f.queue = f.queue[1:]
	f.queued -= pkt.Data().Size()
	return pkt
}

func copyPayload(p []byte, pkt *gstack.PacketBuffer) int {
	length := int(header.UDP(pkt.TransportHeader().Slice()).Length()) - header.UDPMinimumSize
	p = p[:min(len(p), max(0, length))]
	w := tcpip.SliceWriter(p)
	n, _ := pkt.Data().ReadTo(&w, true) // a full p is no error here
	return n
}

// handleUDP gets every datagram, reassembled. It runs in the reader.
func (s *Stack) handleUDP(id gstack.TransportEndpointID, pkt *gstack.PacketBuffer) bool {
	local, remote := endpoints(id)
	key := flowKey{packet.ProtoUDP, local, remote}
	if f, ok := s.flows.at(key); ok {
		f.push(pkt)
		return true
	}
	if v, ok := s.recall(key); ok {
		s.tell(v, local, remote, 0, quoteOf(pkt))
		return true
	}
	s.startUDP(key, pkt)
	return true
}

func (s *Stack) startUDP(key flowKey, pkt *gstack.PacketBuffer) {
	f := &UDPFlow{
		Local: key.local, Remote: key.remote, stack: s, quote: quoteOf(pkt),
		news: make(chan struct{}, 1), done: make(chan struct{}),
	}
	if s.flows.insert(key, f, s.cfg.Limits.UDPFlows, s.cfg.Limits.UDPPerApp) != inserted {
		s.stats.limited.Add(1)
		return
	}
	f.mu.Lock()
	f.timer = time.AfterFunc(s.cfg.Times.HoldUDP, f.tick)
	f.mu.Unlock()
	f.push(pkt)
	s.handlers.Go(func() {
		s.cfg.Handler.HandleUDP(s.ctx, f)
		f.mu.Lock()
		accepted := f.accepted
		f.mu.Unlock()
		if !accepted {
			_ = f.Close() // no verdict: silence
		}
	})
}

// sendUDP builds the datagram inside the buffer that is queued.
func (l *link) sendUDP(src, dst netip.AddrPort, payload []byte) {
	const maxHeaders = header.IPv6MinimumSize + header.UDPMinimumSize
	v := buffer.NewViewSize(maxHeaders + len(payload))
	b := packet.AppendUDP(v.AsSlice()[:0], src, dst, payload)
	v.CapLength(len(b))
	l.put(gstack.NewPacketBuffer(gstack.PacketBufferOptions{Payload: buffer.MakeWithView(v)}))
}
