package netlab

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// packetQueue bounds what waits at a socket; more is lost, as in a full socket buffer.
const packetQueue = 4096

// MTU is the largest datagram; larger ones are lost.
const MTU = 64 << 10

// PacketConfig describes the paths between all sockets of a network.
type PacketConfig struct {
	Latency time.Duration
	// Jitter is added at random: packets overtake one another.
	Jitter time.Duration
	// Loss is the probability that a packet is lost.
	Loss float64
	// Seed makes loss and jitter repeatable.
	Seed uint64
}

// PacketNet is a network of packet sockets.
type PacketNet struct {
	cfg PacketConfig

	mu      sync.Mutex // guards the fields below
	rng     *rand.Rand
	sockets map[netip.AddrPort]*PacketConn
	cuts    map[pair]bool
	filter  func(from, to netip.AddrPort, b []byte) bool
}

type pair struct{ from, to netip.Addr }

// NewPacketNet returns a network without sockets.
func NewPacketNet(cfg PacketConfig) *PacketNet {
	return &PacketNet{
		cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 0)),
		sockets: make(map[netip.AddrPort]*PacketConn), cuts: make(map[pair]bool),
	}
}

// Listen opens a socket; port 0 takes a free one.
func (n *PacketNet) Listen(at netip.AddrPort) (*PacketConn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for port := uint16(40000); at.Port() == 0; port++ {
		if try := netip.AddrPortFrom(at.Addr(), port); n.sockets[try] == nil {
			at = try
		}
	}
	if n.sockets[at] != nil {
		return nil, fmt.Errorf("netlab: %s is taken", at)
	}
	c := &PacketConn{net: n, at: at, changed: make(chan struct{}), rd: newDeadline()}
	n.sockets[at] = c
	return c, nil
}

// Cut drops everything between two hosts, both ways, until Heal.
func (n *PacketNet) Cut(a, b netip.Addr) { n.setCut(a, b, true) }

// Heal undoes Cut.
func (n *PacketNet) Heal(a, b netip.Addr) { n.setCut(a, b, false) }

func (n *PacketNet) setCut(a, b netip.Addr, on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cuts[pair{a, b}], n.cuts[pair{b, a}] = on, on
}

// Filter sets a function that says which packets pass; nil lets all pass.
func (n *PacketNet) Filter(pass func(from, to netip.AddrPort, b []byte) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.filter = pass
}

// route decides the fate of a packet: the socket and the time of arrival, or nil.
func (n *PacketNet) route(from, to netip.AddrPort, b []byte) (*PacketConn, time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delay := n.cfg.Latency
	if n.cfg.Jitter > 0 {
		delay += time.Duration(n.rng.Int64N(int64(n.cfg.Jitter)))
	}
	lost := n.rng.Float64() < n.cfg.Loss
	if lost || len(b) > MTU || n.cuts[pair{from.Addr(), to.Addr()}] || n.filter != nil && !n.filter(from, to, b) {
		return nil, time.Time{}
	}
	return n.sockets[to], time.Now().Add(delay)
}

// PacketConn is one socket.
type PacketConn struct {
	net *PacketNet
	at  netip.AddrPort
	rd  *deadline

	mu      sync.Mutex // guards the fields below
	changed chan struct{}
	queue   []packet // by time of arrival
	closed  bool
}

type packet struct {
	b    []byte
	from netip.AddrPort
	at   time.Time
}

var _ net.PacketConn = (*PacketConn)(nil)

// WriteTo sends one datagram; it never waits.
func (c *PacketConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	udp, ok := addr.(*net.UDPAddr)
	if !ok {
		return 0, fmt.Errorf("netlab: address %v is not a UDP address", addr)
	}
	c.mu.Lock()
	closed := c.closed
	c.mu.Unlock()
	if closed {
		return 0, net.ErrClosed
	}
	if to, at := c.net.route(c.at, udp.AddrPort(), b); to != nil {
		to.arrive(packet{b: slices.Clone(b), from: c.at, at: at})
	}
	return len(b), nil
}

func (c *PacketConn) arrive(p packet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.queue) >= packetQueue {
		return
	}
	i, _ := slices.BinarySearchFunc(c.queue, p, func(a, b packet) int {
		if a.at.After(b.at) {
			return 1
		}
		return -1 // equal times keep their order
	})
	c.queue = slices.Insert(c.queue, i, p)
	c.wakeLocked()
}

func (c *PacketConn) wakeLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// ReadFrom waits for one datagram.
func (c *PacketConn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		p, ok, wait, changed, err := c.next()
		if err != nil {
			return 0, nil, err
		}
		if ok {
			return copy(b, p.b), net.UDPAddrFromAddrPort(p.from), nil
		}
		if err := pause(changed, c.rd, wait); err != nil {
			return 0, nil, err
		}
	}
}

func (c *PacketConn) next() (p packet, ok bool, wait time.Duration, changed chan struct{}, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return packet{}, false, 0, nil, net.ErrClosed
	}
	if len(c.queue) == 0 {
		return packet{}, false, 0, c.changed, nil
	}
	if wait := time.Until(c.queue[0].at); wait > 0 {
		return packet{}, false, wait, c.changed, nil
	}
	p = c.queue[0]
	c.queue = c.queue[1:]
	return p, true, 0, nil, nil
}

// Close closes the socket; its address is free again.
func (c *PacketConn) Close() error {
	c.net.mu.Lock()
	if c.net.sockets[c.at] == c {
		delete(c.net.sockets, c.at)
	}
	c.net.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.closed = true
		c.queue = nil
		c.wakeLocked()
	}
	return nil
}

// LocalAddr returns the socket's address.
func (c *PacketConn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.at) }

// SetDeadline bounds ReadFrom; WriteTo never waits.
func (c *PacketConn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetReadDeadline bounds ReadFrom.
func (c *PacketConn) SetReadDeadline(t time.Time) error {
	c.rd.set(t)
	return nil
}

// SetWriteDeadline does nothing.
func (c *PacketConn) SetWriteDeadline(time.Time) error { return nil }
