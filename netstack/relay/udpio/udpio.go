// Package udpio reads and writes super-packets on a UDP socket: many datagrams of one
// size per system call (UDP_GRO in, UDP_SEGMENT out) with their ECN bits, where the
// kernel has it, one by one elsewhere. The relay, relay/attach and carrier/quic use it.
// It must not know what the datagrams hold.
//
// One goroutine reads; any number may write, each with its own Scratch.
package udpio

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
)

const (
	// MaxRead is the buffer that Read needs to take every super-packet.
	MaxRead = 64 << 10
	// MaxWrite is the most that one Write takes: the UDP payload limit over IPv4.
	MaxWrite = 65507
	// MaxSegments is the most datagrams in one Write (UDP_MAX_SEGMENTS of older kernels).
	MaxSegments = 64
	// socketBuffer is asked for in both directions; the system may give less.
	socketBuffer = 7 << 20
	// oobLen holds segment size, congestion bits of both families and local address.
	oobLen = 160
)

// ErrTooLarge says that a datagram does not fit the path or the socket.
var ErrTooLarge = errors.New("datagram too large for the path")

// Packet describes what Read put into the buffer.
type Packet struct {
	// N bytes: datagrams of Segment bytes each, the last may be shorter.
	N, Segment int
	// ECN holds the two congestion bits of the IP header.
	ECN byte
	// Source is as the socket gives it (IPv4 may be mapped into IPv6).
	Source netip.AddrPort
	// Local is the address that the sender has used, after ReportLocal on a socket that is
	// bound to all; the zero Addr otherwise.
	Local netip.Addr
}

// Scratch is the working memory of one reader or writer.
type Scratch struct{ oob [oobLen]byte }

// Socket is a UDP socket with offloads switched on.
type Socket struct {
	conn *net.UDPConn
	raw  syscall.RawConn
	gso  atomic.Bool // cleared when a device turns out not to support it
}

// New takes over an unconnected socket and switches on what the system offers; a missing
// offload is no error.
func New(conn *net.UDPConn) (*Socket, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("udp socket: %w", err)
	}
	s := &Socket{conn: conn, raw: raw}
	// The system's limits decide; throughput only.
	_, _ = conn.SetReadBuffer(socketBuffer), conn.SetWriteBuffer(socketBuffer)
	gso, err := configure(raw)
	if err != nil {
		return nil, fmt.Errorf("udp socket options: %w", err)
	}
	s.gso.Store(gso)
	return s, nil
}

// Conn returns the socket itself.
func (s *Socket) Conn() *net.UDPConn { return s.conn }

// Raw gives access to the socket's options.
func (s *Socket) Raw() syscall.RawConn { return s.raw }

// LocalAddr returns the socket's address.
func (s *Socket) LocalAddr() netip.AddrPort {
	return s.conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// Close closes the socket; a blocked Read returns net.ErrClosed.
func (s *Socket) Close() error { return s.conn.Close() }

// ReportLocal makes Read tell to which address of this host a datagram came. A socket
// that is bound to one address needs no telling. Call it before the first Read.
func (s *Socket) ReportLocal() error {
	at := s.LocalAddr().Addr()
	if !at.IsUnspecified() {
		return nil
	}
	if err := reportLocal(s.raw, at.Is4()); err != nil {
		return fmt.Errorf("udp socket: report the local address: %w", err)
	}
	return nil
}

// Write sends b to dst as datagrams of segment bytes (0: one datagram). A device without
// segmentation is remembered and served one by one.
func (s *Socket) Write(b []byte, segment int, ecn byte, dst netip.AddrPort, x *Scratch) error {
	return s.WriteFrom(netip.Addr{}, b, segment, ecn, dst, x)
}

// WriteFrom is Write with the address of this host that dst shall see; the zero Addr
// leaves the choice to the system, by its routes.
func (s *Socket) WriteFrom(local netip.Addr, b []byte, segment int, ecn byte, dst netip.AddrPort, x *Scratch) error {
	if segment <= 0 || segment >= len(b) {
		return sizeError(s.write(local, b, 0, ecn, dst, x))
	}
	if s.gso.Load() {
		err := s.write(local, b, segment, ecn, dst, x)
		if !isGSOError(err) {
			return sizeError(err)
		}
		s.gso.Store(false)
	}
	for len(b) > 0 {
		n := min(segment, len(b))
		if err := s.write(local, b[:n], 0, ecn, dst, x); err != nil {
			return sizeError(err)
		}
		b = b[n:]
	}
	return nil
}

func sizeError(err error) error {
	if err != nil && isSizeError(err) {
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	}
	return err
}
