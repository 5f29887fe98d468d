package quic

import (
	"encoding/binary"
	"net"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// oobConn adds to packetConn what makes quic-go read in batches, write with UDP_SEGMENT
// and use ECN.
type oobConn struct{ *packetConn }

var _ interface {
	net.PacketConn
	ReadBatch([]ipv4.Message, int) (int, error)
} = oobConn{}

func (c *packetConn) forQUIC() net.PacketConn { return oobConn{c} }

const cmsgHeader = int(unsafe.Sizeof(unix.Cmsghdr{}))

// ReadBatch fills ms with the next datagrams of the present super-packet.
func (c oobConn) ReadBatch(ms []ipv4.Message, _ int) (int, error) {
	for {
		room, err := c.next(len(ms))
		if err != nil {
			return 0, err
		}
		n := 0
		for n < room && len(c.left) > 0 {
			p := c.take()
			if p == nil || len(p) > len(ms[n].Buffers[0]) {
				continue
			}
			c.fill(&ms[n], p)
			n++
		}
		if n > 0 {
			return n, nil
		}
	}
}

// fill copies one datagram; its congestion bits travel as those of IPv6, which the
// synthetic address is.
func (c oobConn) fill(m *ipv4.Message, p []byte) {
	m.N = copy(m.Buffers[0], p)
	m.Addr, m.Flags = c.remote, 0
	m.NN = putTrafficClass(m.OOB, c.in.ECN)
}

func putTrafficClass(oob []byte, ecn byte) int {
	n := unix.CmsgSpace(4)
	if len(oob) < n {
		return 0
	}
	clear(oob[:n])
	h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
	h.Level, h.Type = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	h.SetLen(unix.CmsgLen(4))
	binary.NativeEndian.PutUint32(oob[cmsgHeader:], uint32(ecn))
	return n
}

// WriteMsgUDP takes a batch; its control messages name segment size and congestion bits.
func (c oobConn) WriteMsgUDP(b, oob []byte, _ *net.UDPAddr) (int, int, error) {
	segment, ecn := readControl(oob)
	if err := c.write(b, segment, ecn); err != nil {
		return 0, 0, err
	}
	return len(b), len(oob), nil
}

func readControl(oob []byte) (segment int, ecn byte) {
	for len(oob) >= cmsgHeader {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
		if uint64(h.Len) < uint64(cmsgHeader) || uint64(h.Len) > uint64(len(oob)) {
			return segment, ecn
		}
		body := oob[cmsgHeader:h.Len]
		switch {
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_SEGMENT && len(body) >= 2:
			segment = int(binary.NativeEndian.Uint16(body))
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_TCLASS && len(body) >= 4:
			ecn = byte(binary.NativeEndian.Uint32(body)) & 3
		}
		oob = oob[min(len(oob), unix.CmsgSpace(len(body))):]
	}
	return segment, ecn
}

// ReadMsgUDP reads one datagram; quic-go prefers ReadBatch.
func (c oobConn) ReadMsgUDP(b, oob []byte) (n, oobn, flags int, addr *net.UDPAddr, err error) {
	n, _, err = c.ReadFrom(b)
	if err != nil {
		return 0, 0, 0, nil, err
	}
	return n, putTrafficClass(oob, c.in.ECN), 0, c.remote, nil
}
