package attach

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/time/rate"

	"github.com/postern-zt/postern/netstack/relay/udpio"
	"github.com/postern-zt/postern/netstack/relay/wire"
	"github.com/postern-zt/postern/proto/ticket"
)

const (
	// pathQueue bounds the super-packets that wait for one link; pathBytes their memory. A
	// connector's full path drops, so that one slow link does not stall the others; a
	// client has one link and leaves them in the socket.
	pathQueue   = 256
	pathBytes   = 4 << 20
	clientQueue = 16
	// maxPaths bounds the links of one connector at one relay.
	maxPaths = 16384
	// newPathsPerSecond bounds what unknown handles can make a connector do.
	newPathsPerSecond = 500
	// freshQueue holds new links until Accept takes them.
	freshQueue = 64
	// smallPacket is copied into a buffer of its own instead of holding a large one.
	smallPacket = 2048
)

// ErrPaths says that a path for the handle is open already or that there are too many.
var ErrPaths = errors.New("no path for this link")

// Packet is one received super-packet: datagrams of Segment bytes each, headers included.
// Data is valid until Release, which must be called once.
type Packet struct {
	Data    []byte
	Segment int
	ECN     byte
	buf     *buffer
}

// Release gives the packet's memory back.
func (p *Packet) Release() {
	putBuffer(p.buf)
	p.buf, p.Data = nil, nil
}

// Path is the packets of one link through a relay. One goroutine receives; any number
// may send.
type Path struct {
	b      *Binding
	header wire.Header
	queue  chan Packet
	held   atomic.Int64 // bytes of memory in the queue
	once   sync.Once
	gone   chan struct{}
}

// Link returns the link's handle.
func (p *Path) Link() ticket.Handle { return p.header.Handle() }

// HeaderLen is the room that a sender leaves in front of each datagram.
func (*Path) HeaderLen() int { return wire.HeaderLen }

// PutHeader fills that room.
func (p *Path) PutHeader(b []byte) { p.header.Put(b) }

// Send sends datagrams of segment bytes each, headers in place (0: one datagram).
func (p *Path) Send(b []byte, segment int, ecn byte, x *udpio.Scratch) error {
	select {
	case <-p.gone:
		return ErrClosed
	default:
		return p.b.write(b, segment, ecn, x)
	}
}

// Receive waits for the next super-packet, until stop is closed: then ok is false and
// err nil.
func (p *Path) Receive(stop <-chan struct{}) (pkt Packet, ok bool, err error) {
	select {
	case pkt = <-p.queue:
		p.held.Add(-int64(len(pkt.buf.b)))
		return pkt, true, nil
	case <-stop:
		return Packet{}, false, nil
	case <-p.gone:
		return Packet{}, false, ErrClosed
	}
}

// Raw gives access to the options of the socket that the path shares.
func (p *Path) Raw() syscall.RawConn { return p.b.sock.Raw() }

// LocalAddr is the socket's address.
func (p *Path) LocalAddr() net.Addr { return p.b.sock.Conn().LocalAddr() }

// String says how the path goes, for status.
func (p *Path) String() string {
	return "relay " + string(p.b.cfg.Relay.ID) + " " + p.b.Relay().String()
}

// Close ends the path; the binding lives on. It is safe twice.
func (p *Path) Close() error {
	p.once.Do(func() {
		p.b.paths.forget(p)
		close(p.gone)
	})
	return nil
}

// pathSet is the paths of one binding.
type pathSet struct {
	b     *Binding
	fresh chan *Path
	rate  *rate.Limiter

	mu     sync.RWMutex // guards the fields below
	paths  map[ticket.Handle]*Path
	closed bool
}

func newPathSet(b *Binding) *pathSet {
	return &pathSet{b: b, fresh: make(chan *Path, freshQueue), paths: make(map[ticket.Handle]*Path),
		rate: rate.NewLimiter(newPathsPerSecond, newPathsPerSecond)}
}

func (s *pathSet) open(link ticket.Handle) (*Path, error) {
	depth := pathQueue
	if s.b.role == ticket.RoleClient {
		depth = clientQueue
	}
	p := &Path{b: s.b, header: wire.MakeHeader(wire.TypeData, link), queue: make(chan Packet, depth), gone: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	if s.paths[link] != nil || len(s.paths) >= maxPaths {
		return nil, ErrPaths
	}
	s.paths[link] = p
	return p, nil
}

func (s *pathSet) get(link ticket.Handle) *Path {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.paths[link]
}

func (s *pathSet) forget(p *Path) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.paths[p.Link()] == p {
		delete(s.paths, p.Link())
	}
}

func (s *pathSet) closeAll() {
	s.mu.Lock()
	s.closed = true
	open := make([]*Path, 0, len(s.paths))
	for _, p := range s.paths {
		open = append(open, p)
	}
	s.mu.Unlock()
	for _, p := range open {
		_ = p.Close() // never fails
	}
}

// deliver cuts a super-packet into runs of one handle and queues each; true when the
// buffer went into a queue.
func (s *pathSet) deliver(ctx context.Context, buf *buffer, in udpio.Packet) (gone bool) {
	b := buf.b[:in.N]
	for len(b) > 0 {
		n := wire.EqualRun(b, in.Segment)
		if n == in.N && n > smallPacket { // the usual bulk: one link, the whole buffer
			return s.push(ctx, Packet{Data: b, Segment: in.Segment, ECN: in.ECN, buf: buf})
		}
		pkt := Packet{Segment: in.Segment, ECN: in.ECN, buf: getBufferOf(n)}
		pkt.Data = append(pkt.buf.b[:0], b[:n]...)
		if !s.push(ctx, pkt) {
			pkt.Release()
		}
		b = b[n:]
	}
	return false
}

// push queues a packet for its link, opening the path of a new one; false when it was
// dropped and still belongs to the caller.
func (s *pathSet) push(ctx context.Context, pkt Packet) bool {
	p := s.find(pkt.Data)
	if p == nil || !p.put(ctx, pkt) {
		s.b.dropped.Add(1)
		return false
	}
	return true
}

func (p *Path) put(ctx context.Context, pkt Packet) bool {
	size := int64(len(pkt.buf.b))
	if p.b.role == ticket.RoleClient {
		return p.wait(ctx, pkt, size)
	}
	if p.held.Add(size) > pathBytes {
		p.held.Add(-size)
		return false
	}
	select {
	case p.queue <- pkt:
		return true
	default:
		p.held.Add(-size)
		return false
	}
}

func (p *Path) wait(ctx context.Context, pkt Packet, size int64) bool {
	p.held.Add(size)
	select {
	case p.queue <- pkt:
		return true
	case <-p.gone:
	case <-ctx.Done():
	}
	p.held.Add(-size)
	return false
}

// find returns the path of a data run. At a connector an unknown handle that starts a
// QUIC handshake (long header) opens one.
func (s *pathSet) find(b []byte) *Path {
	if len(b) < wire.HeaderLen || wire.Type(b[0]) != wire.TypeData {
		return nil
	}
	link := wire.ReadHeader(b).Handle()
	if p := s.get(link); p != nil {
		return p
	}
	const longHeader = 0xc0
	if s.b.role != ticket.RoleConnector || len(b) <= wire.HeaderLen || b[wire.HeaderLen]&longHeader != longHeader {
		return nil
	}
	return s.fromStranger(link)
}

func (s *pathSet) fromStranger(link ticket.Handle) *Path {
	if !s.rate.Allow() {
		return nil
	}
	p, err := s.open(link)
	if err != nil {
		return nil
	}
	select {
	case s.fresh <- p:
		return p
	default: // nobody accepts; the client tries again
		_ = p.Close()
		return nil
	}
}
