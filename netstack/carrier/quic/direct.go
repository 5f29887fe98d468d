package quic

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"github.com/postern-zt/postern/netstack/relay/attach"
	"github.com/postern-zt/postern/netstack/relay/udpio"
)

// directQueue is how many super-packets wait for the transport; more stay in the socket.
const directQueue = 16

// Direct is a path without a relay: a socket of its own, no header, one peer.
type Direct struct {
	sock  *udpio.Socket
	peer  netip.AddrPort
	queue chan attach.Packet
	once  sync.Once
	gone  chan struct{}
	done  chan struct{}
}

var _ Path = (*Direct)(nil)

// NewDirect returns the path to peer over conn, which it takes over. Datagrams of
// anybody else are dropped.
func NewDirect(conn *net.UDPConn, peer netip.AddrPort) (*Direct, error) {
	sock, err := udpio.New(conn)
	if err != nil {
		return nil, fmt.Errorf("direct path: %w", err)
	}
	d := &Direct{sock: sock, peer: netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port()),
		queue: make(chan attach.Packet, directQueue), gone: make(chan struct{}), done: make(chan struct{})}
	go d.read() // Close waits for it
	return d, nil
}

// HeaderLen is zero.
func (*Direct) HeaderLen() int { return 0 }

// PutHeader does nothing.
func (*Direct) PutHeader([]byte) {}

// Send sends to the peer.
func (d *Direct) Send(b []byte, segment int, ecn byte, x *udpio.Scratch) error {
	return d.sock.Write(b, segment, ecn, d.peer, x)
}

// Receive waits for a super-packet of the peer.
func (d *Direct) Receive(stop <-chan struct{}) (attach.Packet, bool, error) {
	select {
	case p := <-d.queue:
		return p, true, nil
	case <-stop:
		return attach.Packet{}, false, nil
	case <-d.gone:
		return attach.Packet{}, false, net.ErrClosed
	}
}

// Raw gives access to the socket's options.
func (d *Direct) Raw() syscall.RawConn { return d.sock.Raw() }

// String says how the path goes.
func (d *Direct) String() string { return "direct " + d.peer.String() }

// Close closes the socket and waits for its reader. It is safe twice.
func (d *Direct) Close() error {
	d.once.Do(func() {
		close(d.gone)
		_ = d.sock.Close() // ends the reader
	})
	<-d.done
	return nil
}

func (d *Direct) read() {
	defer close(d.done)
	var scratch udpio.Scratch
	for {
		pkt, p, err := attach.ReadPacket(d.sock, &scratch)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // the error of an earlier send, shown once
			continue
		}
		if src := p.Source; p.N == 0 || src.Port() != d.peer.Port() || src.Addr().Unmap() != d.peer.Addr() {
			pkt.Release()
			continue
		}
		select {
		case d.queue <- pkt:
		case <-d.gone:
			pkt.Release()
		}
	}
}
