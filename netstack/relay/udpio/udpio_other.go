//go:build !linux

package udpio

import (
	"net/netip"
	"syscall"
)

// configure has nothing to switch on here: datagrams go one by one, without ECN.
func configure(syscall.RawConn) (bool, error) { return false, nil }

// reportLocal has nothing to switch on here: the system chooses the source address.
func reportLocal(syscall.RawConn, bool) error { return nil }

// Read waits for the next datagram.
func (s *Socket) Read(b []byte, _ *Scratch) (Packet, error) {
	n, src, err := s.conn.ReadFromUDPAddrPort(b)
	if err != nil {
		return Packet{}, err
	}
	return Packet{N: n, Segment: n, Source: src}, nil
}

func (s *Socket) write(_ netip.Addr, b []byte, _ int, _ byte, dst netip.AddrPort, _ *Scratch) error {
	_, err := s.conn.WriteToUDPAddrPort(b, dst)
	return err
}

func isGSOError(error) bool { return false }
