package quic

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	quicgo "github.com/quic-go/quic-go"

	"github.com/postern-zt/postern/netstack/relay/attach"
	"github.com/postern-zt/postern/netstack/relay/udpio"
)

const (
	// fullBatch is the most that quic-go puts into one GSO write: a write that another
	// segment would not have fitted into is one of many to come.
	fullBatch = 20 << 10
	// allowance is how many packets quic-go may hold unprocessed: it drops from 256 on.
	allowance = 240
	// lookEvery is how often a receiver that pushes back looks again.
	lookEvery = 50 * time.Microsecond
	// settleAfter pushing back without progress the count is taken anew: packets that
	// quic-go never counts (duplicates, undecryptable ones) must not add up.
	settleAfter = 10 * time.Millisecond
)

// packetConn is what quic-go sees as its socket (data-plane.md section 11, rules a to h):
//
//	quic-go --WriteMsgUDP(batch)--> pending super-packet with headers --> Path.Send
//	quic-go <--ReadBatch-- segments without headers <-- Path.Receive
//
// A full batch stays pending until the next write or the flusher, whichever comes first,
// so that a fast sender fills 64 KiB. One goroutine reads; writes may be concurrent.
type packetConn struct {
	path   Path
	head   int
	remote *net.UDPAddr // synthetic: a transport has one peer

	// Owned by the reading goroutine.
	in        attach.Packet
	left      []byte
	delivered uint64
	counted   uint64 // of delivered, known to be processed
	skew      uint64 // delivered but never to be counted
	conn      atomic.Pointer[quicgo.Conn]
	deadline  deadline

	mu      sync.Mutex // guards the fields below
	out     []byte
	segment int // with header
	ecn     byte
	scratch udpio.Scratch
	err     error // of a background flush, for the next write

	wake chan struct{}
	quit chan struct{}
	once sync.Once
	done chan struct{}
}

func newPacketConn(path Path) *packetConn {
	c := &packetConn{path: path, head: path.HeaderLen(), out: make([]byte, 0, udpio.MaxWrite),
		remote: &net.UDPAddr{IP: net.IP{0xfd, 15: 1}, Port: 1},
		wake:   make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{})}
	c.deadline.init()
	go c.flusher() // Close waits for it
	return c
}

// track names the connection whose counter paces the receiver: the newest.
func (c *packetConn) track(conn *quicgo.Conn) { c.conn.Store(conn) }

// next waits until a packet is there and may be handed over, and returns how many may.
func (c *packetConn) next(most int) (int, error) {
	for len(c.left) == 0 {
		if c.in.Data != nil {
			c.in.Release()
		}
		pkt, ok, err := c.path.Receive(c.deadline.done())
		if err != nil {
			return 0, err
		}
		if !ok {
			return 0, os.ErrDeadlineExceeded
		}
		c.in, c.left = pkt, pkt.Data
	}
	return c.room(most)
}

// take cuts the next datagram off; nil when it is too short to hold anything.
func (c *packetConn) take() []byte {
	n := min(c.in.Segment, len(c.left))
	p := c.left[:n]
	c.left = c.left[n:]
	if n <= c.head {
		return nil
	}
	c.delivered++
	return p[c.head:]
}

// room is the back-pressure: it waits while quic-go holds too many packets.
func (c *packetConn) room(most int) (int, error) {
	conn := c.conn.Load()
	if conn == nil {
		return most, nil
	}
	free := c.free(conn)
	if free > 0 {
		return min(most, free), nil
	}
	give := time.NewTimer(settleAfter)
	defer give.Stop()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-c.deadline.done():
			return 0, os.ErrDeadlineExceeded
		case <-give.C:
			c.skew = c.delivered - c.counted
			return min(most, allowance), nil
		case <-look.C:
			if free := c.free(conn); free > 0 {
				return min(most, free), nil
			}
		}
	}
}

// free returns how many more packets quic-go can take; it asks only when it must.
func (c *packetConn) free(conn *quicgo.Conn) int {
	if held := c.delivered - c.skew - c.counted; held < allowance {
		return int(allowance - held)
	}
	got := conn.ConnectionStats().PacketsReceived
	c.counted = max(c.counted, got)
	if c.delivered < c.skew+c.counted { // coalesced packets count more than once
		c.skew = c.delivered - min(c.delivered, c.counted)
		c.counted = min(c.counted, c.delivered)
	}
	return int(allowance) - int(c.delivered-c.skew-c.counted)
}

// write takes one batch of datagrams of segment bytes each.
func (c *packetConn) write(b []byte, segment int, ecn byte) error {
	if segment <= 0 || segment > len(b) {
		segment = len(b)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.err; err != nil {
		c.err = nil
		return err
	}
	if !c.fits(b, segment, ecn) {
		if err := c.flushLocked(); err != nil {
			return err
		}
	}
	c.addLocked(b, segment, ecn)
	full := len(b)+segment > fullBatch && len(b)%segment == 0
	if full && c.fits(b, segment, ecn) {
		select {
		case c.wake <- struct{}{}:
		default:
		}
		return nil
	}
	return c.flushLocked()
}

// fits reports whether the batch can join what is pending: same size, same mark, room. A
// probe of the path's MTU has a size of its own and so goes alone.
func (c *packetConn) fits(b []byte, segment int, ecn byte) bool {
	count := (len(b) + segment - 1) / segment
	size := len(b) + count*c.head
	if len(c.out) == 0 {
		return true
	}
	return c.segment == segment+c.head && c.ecn == ecn && len(c.out)+size <= udpio.MaxWrite &&
		len(c.out)/c.segment+count <= udpio.MaxSegments
}

func (c *packetConn) addLocked(b []byte, segment int, ecn byte) {
	c.segment, c.ecn = segment+c.head, ecn
	for len(b) > 0 {
		n := min(segment, len(b))
		at := len(c.out)
		c.out = append(c.out[:at+c.head], b[:n]...)
		c.path.PutHeader(c.out[at : at+c.head])
		b = b[n:]
	}
}

// flushLocked sends what is pending. quic-go ends a connection on a send error, but a
// network that is away for a moment is loss; only what it must know is returned.
func (c *packetConn) flushLocked() error {
	if len(c.out) == 0 {
		return nil
	}
	err := c.path.Send(c.out, c.segment, c.ecn, &c.scratch)
	c.out = c.out[:0]
	if errors.Is(err, udpio.ErrTooLarge) || errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func (c *packetConn) flusher() {
	defer close(c.done)
	for {
		select {
		case <-c.quit:
			return
		case <-c.wake:
			c.mu.Lock()
			c.err = c.flushLocked()
			c.mu.Unlock()
		}
	}
}

// Close ends the flusher and unblocks the reader; the path is the caller's.
func (c *packetConn) Close() error {
	c.once.Do(func() {
		c.mu.Lock()
		_ = c.flushLocked() // a last packet may get lost
		c.mu.Unlock()
		close(c.quit)
		_ = c.SetReadDeadline(time.Unix(1, 0))
	})
	<-c.done
	return nil
}

// ReadFrom reads one datagram, for systems without batches.
func (c *packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		if _, err := c.next(1); err != nil {
			return 0, nil, err
		}
		if p := c.take(); p != nil && len(p) <= len(b) {
			return copy(b, p), c.remote, nil
		}
	}
}

// WriteTo writes one datagram.
func (c *packetConn) WriteTo(b []byte, _ net.Addr) (int, error) {
	return len(b), c.write(b, 0, 0)
}

// LocalAddr must not be unspecified, or quic-go asks for packet information.
func (c *packetConn) LocalAddr() net.Addr { return &net.UDPAddr{IP: net.IP{0xfd, 15: 2}, Port: 1} }

// SyscallConn lets quic-go find out what the socket can do.
func (c *packetConn) SyscallConn() (syscall.RawConn, error) { return c.path.Raw(), nil }

// SetReadBuffer and SetWriteBuffer are done by udpio.
func (c *packetConn) SetReadBuffer(int) error { return nil }

// SetWriteBuffer does nothing, see SetReadBuffer.
func (c *packetConn) SetWriteBuffer(int) error { return nil }

// SetDeadline sets the read deadline; writes do not wait.
func (c *packetConn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetReadDeadline unblocks the reader, which is all that quic-go uses it for.
func (c *packetConn) SetReadDeadline(t time.Time) error {
	c.deadline.set(t)
	return nil
}

// SetWriteDeadline does nothing: writes do not wait.
func (*packetConn) SetWriteDeadline(time.Time) error { return nil }

// deadline is a read deadline that is past or none.
type deadline struct {
	mu     sync.Mutex // guards the fields below
	passed bool
	ch     chan struct{}
}

func (d *deadline) init() { d.ch = make(chan struct{}) }

func (d *deadline) done() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ch
}

// set: quic-go passes the zero time or the present one; a future one is taken as none.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	past := !t.IsZero() && !t.After(time.Now())
	switch {
	case past && !d.passed:
		close(d.ch)
	case !past && d.passed:
		d.ch = make(chan struct{})
	}
	d.passed = past
}
