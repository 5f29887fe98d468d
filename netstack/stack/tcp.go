package stack

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/postern-zt/postern/netstack/packet"
)

// HeldTCP is a SYN without an answer. One of its verdicts must be called; until
// then the program waits in connect. After the hold time the verdict is silence.
//
//	        Complete -> handshake -> Conn
//	SYN --+ Reset       -> RST, also for repetitions of the SYN for 3 s
//	      | Unreachable -> ICMP, the same
//	      + Drop, time  -> silence
//
// The methods may be called from any goroutine; the first verdict wins.
type HeldTCP struct {
	// Local is the address and port of the app, as the program knows it.
	Local netip.AddrPort
	// Remote is the address and port of the program.
	Remote netip.AddrPort

	stack *Stack
	quote []byte // the SYN's headers, for ICMP
	seq   uint32
	timer *time.Timer
	until time.Time
	done  chan struct{}

	mu      sync.Mutex
	request *tcp.ForwarderRequest // nil before the start and after the verdict
	err     error                 // what a verdict gets while there is no request
}

// Deadline is when the hold ends.
func (h *HeldTCP) Deadline() time.Time { return h.until }

// Done is closed at the verdict or at the end of the hold time.
func (h *HeldTCP) Done() <-chan struct{} { return h.done }

// Complete finishes the handshake with the program. The hold ends in any case; if
// the program does not answer within the handshake time the error is an
// ErrHandshake. Once begun, the end of ctx does not stop it: the program may
// believe already that it is connected.
func (h *HeldTCP) Complete(ctx context.Context) (*Conn, error) {
	r, err := h.take(ErrDecided)
	if err != nil {
		return nil, err
	}
	defer h.release(r)
	select {
	case h.stack.handshakes <- struct{}{}:
		defer func() { <-h.stack.handshakes }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.stack.cfg.Times.Handshake)
	defer cancel()
	return h.stack.handshake(ctx, r, h)
}

// Reset refuses: the program sees "connection refused".
func (h *HeldTCP) Reset() error {
	return h.refuse(verdict{reset: true})
}

// Unreachable refuses: the program sees "no route to host".
func (h *HeldTCP) Unreachable() error {
	return h.refuse(verdict{reason: packet.ReasonHost})
}

// Prohibited refuses with ICMP "administratively prohibited".
func (h *HeldTCP) Prohibited() error {
	return h.refuse(verdict{reason: packet.ReasonProhibited})
}

// Drop answers nothing; the program runs into its own timeout, or sends a new SYN.
func (h *HeldTCP) Drop() error {
	r, err := h.take(ErrDecided)
	if err != nil {
		return err
	}
	h.release(r)
	return nil
}

func (h *HeldTCP) refuse(v verdict) error {
	r, err := h.take(ErrDecided)
	if err != nil {
		return err
	}
	h.stack.remember(flowKey{packet.ProtoTCP, h.Local, h.Remote}, v)
	h.release(r)
	h.stack.tell(v, h.Local, h.Remote, h.seq, h.quote)
	return nil
}

func (h *HeldTCP) expire() {
	if r, err := h.take(ErrExpired); err == nil {
		h.stack.stats.expired.Add(1)
		h.release(r)
	}
}

// take gives the request to the first verdict; later ones get why.
func (h *HeldTCP) take(why error) (*tcp.ForwarderRequest, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.request == nil {
		return nil, h.err
	}
	r := h.request
	h.request, h.err = nil, why
	h.timer.Stop()
	close(h.done)
	return r, nil
}

// release forgets the SYN: the next one of this 4-tuple is a new one.
func (h *HeldTCP) release(r *tcp.ForwarderRequest) {
	r.Complete(false)
	h.stack.forget(h)
}

// handleTCP gets every TCP packet that belongs to no connection. It runs in the
// reader. False makes gVisor answer with RST, the truth for a connection that does
// not exist.
func (s *Stack) handleTCP(id gstack.TransportEndpointID, pkt *gstack.PacketBuffer) bool {
	t := header.TCP(pkt.TransportHeader().Slice())
	if len(t) < header.TCPMinimumSize || t.Flags()&(header.TCPFlagSyn|header.TCPFlagAck|header.TCPFlagRst) != header.TCPFlagSyn {
		return false
	}
	local, remote := endpoints(id)
	if v, ok := s.recall(flowKey{packet.ProtoTCP, local, remote}); ok {
		s.tell(v, local, remote, t.SequenceNumber(), quoteOf(pkt))
		return true
	}
	h := &HeldTCP{Local: local, Remote: remote, stack: s, seq: t.SequenceNumber(), quote: quoteOf(pkt), done: make(chan struct{}), err: ErrDecided}
	if !s.admit(h) {
		return true
	}
	s.handlers.Add(1)
	if !s.forwarder.HandlePacket(id, pkt) {
		s.handlers.Done() // malformed: the forwarder took nothing
		s.forget(h)
	}
	return true
}

// startTCP runs in the goroutine that the forwarder made for one SYN.
func (s *Stack) startTCP(r *tcp.ForwarderRequest) {
	defer s.handlers.Done()
	local, remote := endpoints(r.ID())
	h := s.heldAt(local, remote)
	h.mu.Lock()
	h.request = r
	h.until = time.Now().Add(s.cfg.Times.HoldTCP)
	h.timer = time.AfterFunc(s.cfg.Times.HoldTCP, h.expire)
	h.mu.Unlock()
	defer func() { _ = h.Drop() }() // ErrDecided is the usual case
	if s.ctx.Err() == nil {
		s.cfg.Handler.HandleTCP(s.ctx, h)
	}
}

// handshake is bounded by ctx: the waiter is woken again and again from its end
// on, because the library waits without one.
func (s *Stack) handshake(ctx context.Context, r *tcp.ForwarderRequest, h *HeldTCP) (*Conn, error) {
	var wq waiter.Queue
	returned := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		wakeAfter(ctx, &wq, returned)
	}()
	ep, err := r.CreateEndpoint(&wq)
	close(returned)
	<-watched
	if err != nil {
		return nil, &HandshakeError{Detail: err.String()}
	}
	c := newConn(s, ep, &wq, h.Local, h.Remote)
	s.conns.add(c)
	if s.ctx.Err() != nil { // too late for the round of resets
		c.Abort()
		return nil, net.ErrClosed
	}
	return c, nil
}

// wakeInterval covers the moment between the end of ctx and the registration of
// the waiter.
const wakeInterval = 20 * time.Millisecond

func wakeAfter(ctx context.Context, wq *waiter.Queue, returned <-chan struct{}) {
	select {
	case <-returned:
		return
	case <-ctx.Done():
	}
	ticker := time.NewTicker(wakeInterval)
	defer ticker.Stop()
	for {
		wq.Notify(waiter.WritableEvents)
		select {
		case <-returned:
			return
		case <-ticker.C:
		}
	}
}

func endpoints(id gstack.TransportEndpointID) (local, remote netip.AddrPort) {
	return netip.AddrPortFrom(addrOf(id.LocalAddress), id.LocalPort),
		netip.AddrPortFrom(addrOf(id.RemoteAddress), id.RemotePort)
}

func addrOf(a tcpip.Address) netip.Addr {
	addr, _ := netip.AddrFromSlice(a.AsSlice()) // 4 or 16 bytes, always
	return addr
}

// quoteOf copies the headers of a packet as an ICMP message must carry them.
func quoteOf(pkt *gstack.PacketBuffer) []byte {
	q := make([]byte, 0, packet.MaxQuote)
	for _, part := range [][]byte{pkt.NetworkHeader().Slice(), pkt.TransportHeader().Slice()} {
		q = append(q, part[:min(len(part), cap(q)-len(q))]...)
	}
	return q
}
