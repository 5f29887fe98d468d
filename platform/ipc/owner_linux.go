package ipc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Sizes of the structures of linux/inet_diag.h and linux/netlink.h.
//
//	nlmsghdr          len u32 | type u16 | flags u16 | seq u32 | pid u32
//	inet_diag_req_v2  family u8 | protocol u8 | ext u8 | pad u8 | states u32 | sockid
//	inet_diag_msg     family u8 | state u8 | timer u8 | retrans u8 | sockid |
//	                  expires u32 | rqueue u32 | wqueue u32 | uid u32 | inode u32
//	sockid            sport be16 | dport be16 | src [16] | dst [16] | if u32 | cookie [2]u32
const (
	headerLen = 16
	sockIDLen = 48
	requestAt = headerLen + 8
	reqLen    = requestAt + sockIDLen
	replyAt   = headerLen + 4
	uidAt     = replyAt + sockIDLen + 12
	replyMin  = uidAt + 8
)

// Offsets inside sockid.
const (
	sportAt, dportAt = 0, 2
	srcAt, dstAt     = 4, 20
	cookieAt         = 40
)

// sequence marks request and reply; one socket carries one of each.
const sequence = 1

// ownerWait bounds the wait for the kernel, which answers inside the send.
const ownerWait = 1 // second

func owner(proto Protocol, local, remote netip.AddrPort) (uint32, error) {
	reply, err := ask(encodeOwnerRequest(proto, local, remote))
	if err != nil {
		return 0, fmt.Errorf("ask for socket owner: %w", err)
	}
	return decodeOwnerReply(reply, proto, local, remote)
}

func ask(request []byte) ([]byte, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	wait := unix.Timeval{Sec: ownerWait}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return nil, err
	}
	kernel := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	if err := unix.Sendto(fd, request, 0, kernel); err != nil {
		return nil, err
	}
	buf := make([]byte, 4<<10) // a reply without extensions has under 200 bytes
	n, from, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return nil, err
	}
	if nl, ok := from.(*unix.SockaddrNetlink); !ok || nl.Pid != 0 {
		return nil, errors.New("answer does not come from the kernel")
	}
	return buf[:n], nil
}

// encodeOwnerRequest asks for one exact socket, not for a dump.
func encodeOwnerRequest(proto Protocol, local, remote netip.AddrPort) []byte {
	b := make([]byte, reqLen)
	ne := binary.NativeEndian
	ne.PutUint32(b[0:], reqLen)
	ne.PutUint16(b[4:], unix.SOCK_DIAG_BY_FAMILY)
	ne.PutUint16(b[6:], unix.NLM_F_REQUEST)
	ne.PutUint32(b[8:], sequence)
	b[headerLen] = unix.AF_INET6
	if local.Addr().Is4() {
		b[headerLen] = unix.AF_INET
	}
	b[headerLen+1] = byte(proto)
	ne.PutUint32(b[headerLen+4:], ^uint32(0)) // any state
	src, dst := local, remote
	if proto == UDP {
		// For UDP the kernel reads the two ends swapped, "for historical reasons"
		// (net/ipv4/udp_diag.c, udp_dump_one).
		src, dst = remote, local
	}
	id := b[requestAt:]
	binary.BigEndian.PutUint16(id[sportAt:], src.Port())
	binary.BigEndian.PutUint16(id[dportAt:], dst.Port())
	copy(id[srcAt:], src.Addr().AsSlice())
	copy(id[dstAt:], dst.Addr().AsSlice())
	for i := range 8 {
		id[cookieAt+i] = 0xff // INET_DIAG_NOCOOKIE
	}
	return b
}

// decodeOwnerReply accepts only the socket that was asked for: the kernel also
// answers with a listener on the same port.
func decodeOwnerReply(b []byte, proto Protocol, local, remote netip.AddrPort) (uint32, error) {
	ne := binary.NativeEndian
	if len(b) < headerLen+4 {
		return 0, errors.New("short answer of the kernel")
	}
	switch typ := ne.Uint16(b[4:]); typ {
	case unix.NLMSG_ERROR:
		return 0, kernelError(int32(ne.Uint32(b[headerLen:])))
	case unix.SOCK_DIAG_BY_FAMILY:
	default:
		return 0, fmt.Errorf("answer of the kernel has type %d", typ)
	}
	if len(b) < replyMin || ne.Uint32(b[8:]) != sequence {
		return 0, errors.New("short or foreign answer of the kernel")
	}
	gotLocal, gotRemote, err := decodeSockID(b[headerLen], b[replyAt:replyAt+sockIDLen])
	if err != nil {
		return 0, err
	}
	if !ends(proto, gotLocal, local, false) || !ends(proto, gotRemote, remote, true) {
		return 0, ErrNoOwner
	}
	return ne.Uint32(b[uidAt:]), nil
}

func kernelError(code int32) error {
	errno := unix.Errno(-code)
	if errno == unix.ENOENT {
		return ErrNoOwner
	}
	return fmt.Errorf("socket owner: %w", errno)
}

func decodeSockID(family byte, id []byte) (local, remote netip.AddrPort, err error) {
	size := 16
	switch family {
	case unix.AF_INET:
		size = 4
	case unix.AF_INET6:
	default:
		return local, remote, fmt.Errorf("answer of the kernel has family %d", family)
	}
	src, _ := netip.AddrFromSlice(id[srcAt : srcAt+size])
	dst, _ := netip.AddrFromSlice(id[dstAt : dstAt+size])
	local = netip.AddrPortFrom(src.Unmap(), binary.BigEndian.Uint16(id[sportAt:]))
	remote = netip.AddrPortFrom(dst.Unmap(), binary.BigEndian.Uint16(id[dportAt:]))
	return local, remote, nil
}

// ends tells whether one end of the found socket is the asked one. A UDP socket
// may be bound to every address and connected to none; a TCP socket that sends a
// SYN has both ends.
func ends(proto Protocol, got, want netip.AddrPort, far bool) bool {
	if got == want {
		return true
	}
	if proto != UDP || !got.Addr().IsUnspecified() {
		return false
	}
	return got.Port() == want.Port() || far && got.Port() == 0
}
