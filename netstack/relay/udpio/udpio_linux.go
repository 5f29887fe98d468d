package udpio

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// configure switches on GRO, the reading of ECN and the don't-fragment bit (without
// looking at the cached path MTU: QUIC probes for itself), for the families the socket
// has, and reports whether segmentation on send is known to the kernel.
func configure(raw syscall.RawConn) (gso bool, err error) {
	var df4, df6 error
	err = raw.Control(func(fd uintptr) {
		f := int(fd)
		_ = unix.SetsockoptInt(f, unix.IPPROTO_UDP, unix.UDP_GRO, 1) // older kernel: single datagrams
		_ = unix.SetsockoptInt(f, unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
		_ = unix.SetsockoptInt(f, unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1)
		df4 = unix.SetsockoptInt(f, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
		df6 = unix.SetsockoptInt(f, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
		_, serr := unix.GetsockoptInt(f, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
		gso = serr == nil
	})
	if err == nil && df4 != nil && df6 != nil {
		err = errors.Join(df4, df6)
	}
	return gso, err
}

// reportLocal asks for the destination of each datagram. A socket of both families tells
// it for IPv4 too, as a mapped address.
func reportLocal(raw syscall.RawConn, v4 bool) error {
	level, option := unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO
	if v4 {
		level, option = unix.IPPROTO_IP, unix.IP_PKTINFO
	}
	var set error
	err := raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), level, option, 1) })
	return errors.Join(err, set)
}

// Read waits for the next super-packet; b should hold MaxRead bytes.
func (s *Socket) Read(b []byte, x *Scratch) (Packet, error) {
	n, oobn, flags, src, err := s.conn.ReadMsgUDPAddrPort(b, x.oob[:])
	if err != nil {
		return Packet{}, err
	}
	p := Packet{N: n, Segment: n, Source: src}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		p.N, p.Segment = 0, 0
		return p, nil
	}
	p.readOOB(x.oob[:oobn])
	return p, nil
}

const cmsgHeader = int(unsafe.Sizeof(unix.Cmsghdr{}))

// readOOB walks the control messages without allocating; the kernel wrote them, but
// lengths are checked all the same.
func (p *Packet) readOOB(b []byte) {
	for len(b) >= cmsgHeader {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		if uint64(h.Len) < uint64(cmsgHeader) || uint64(h.Len) > uint64(len(b)) {
			return
		}
		p.control(h.Level, h.Type, b[cmsgHeader:h.Len])
		b = b[min(len(b), unix.CmsgSpace(int(h.Len)-cmsgHeader)):]
	}
}

func (p *Packet) control(level, typ int32, body []byte) {
	switch {
	case level == unix.IPPROTO_UDP && typ == unix.UDP_GRO && len(body) >= 4:
		if seg := int(int32(binary.NativeEndian.Uint32(body))); seg > 0 && seg < p.N {
			p.Segment = seg
		}
	case level == unix.IPPROTO_IP && typ == unix.IP_TOS && len(body) >= 1:
		p.ECN = body[0] & 3
	case level == unix.IPPROTO_IPV6 && typ == unix.IPV6_TCLASS && len(body) >= 4:
		p.ECN = byte(binary.NativeEndian.Uint32(body)) & 3
	case level == unix.IPPROTO_IP && typ == unix.IP_PKTINFO && len(body) >= unix.SizeofInet4Pktinfo:
		p.Local = netip.AddrFrom4([4]byte(body[specDst:]))
	case level == unix.IPPROTO_IPV6 && typ == unix.IPV6_PKTINFO && len(body) >= unix.SizeofInet6Pktinfo:
		p.Local = netip.AddrFrom16([16]byte(body)).Unmap()
	}
}

// specDst is where in_pktinfo {ifindex, spec_dst, addr} has the local address;
// in6_pktinfo {addr, ifindex} begins with it. The interface stays zero on sending: the
// routes decide.
const specDst = 4

// appendLocal asks for the source address of what is sent to dst.
func appendLocal(oob []byte, local netip.Addr, to4 bool) []byte {
	switch {
	case !local.IsValid() || local.Is4() != to4:
		return oob
	case to4:
		oob = appendControl(oob, unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)
		a := local.As4()
		copy(oob[len(oob)-unix.CmsgSpace(unix.SizeofInet4Pktinfo)+cmsgHeader+specDst:], a[:])
	default:
		oob = appendControl(oob, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo)
		a := local.As16()
		copy(oob[len(oob)-unix.CmsgSpace(unix.SizeofInet6Pktinfo)+cmsgHeader:], a[:])
	}
	return oob
}

func (s *Socket) write(local netip.Addr, b []byte, segment int, ecn byte, dst netip.AddrPort, x *Scratch) error {
	to4 := dst.Addr().Unmap().Is4()
	oob := appendLocal(x.oob[:0], local, to4)
	if segment > 0 {
		oob = appendControl(oob, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2)
		binary.NativeEndian.PutUint16(oob[len(oob)-unix.CmsgSpace(2)+cmsgHeader:], uint16(segment))
	}
	if ecn != 0 {
		level, typ := int32(unix.IPPROTO_IPV6), int32(unix.IPV6_TCLASS)
		if to4 {
			level, typ = unix.IPPROTO_IP, unix.IP_TOS
		}
		oob = appendControl(oob, level, typ, 4)
		binary.NativeEndian.PutUint32(oob[len(oob)-unix.CmsgSpace(4)+cmsgHeader:], uint32(ecn))
	}
	_, _, err := s.conn.WriteMsgUDPAddrPort(b, oob, dst)
	return err
}

// appendControl appends a control message with n zero bytes of data.
func appendControl(oob []byte, level, typ int32, n int) []byte {
	start := len(oob)
	oob = oob[:start+unix.CmsgSpace(n)]
	clear(oob[start:])
	h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[start]))
	h.Level, h.Type = level, typ
	h.SetLen(unix.CmsgLen(n))
	return oob
}

// isGSOError recognises a device that cannot checksum, which segmentation needs.
func isGSOError(err error) bool { return errors.Is(err, unix.EIO) }

func isSizeError(err error) bool { return errors.Is(err, unix.EMSGSIZE) }
