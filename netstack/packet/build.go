package packet

import (
	"encoding/binary"
	"net/netip"
)

// Reason says why something cannot be reached; it becomes an ICMP code.
type Reason uint8

// The reasons that programs are told. The zero Reason is no message at all.
const (
	_ Reason = iota
	// ReasonPort gives ECONNREFUSED.
	ReasonPort
	// ReasonHost gives EHOSTUNREACH.
	ReasonHost
	// ReasonProhibited gives EHOSTUNREACH (IPv4) or EACCES (IPv6).
	ReasonProhibited
)

// MaxQuote is how much of the offending packet an unreachable message carries.
// It covers the headers with options, and keeps the message small.
const MaxQuote = 128

const (
	defaultTTL = 64

	icmp4EchoReply   = 0
	icmp4Unreachable = 3
	icmp4EchoRequest = 8
	icmp6Unreachable = 1
	icmp6EchoRequest = 128
	icmp6EchoReply   = 129
)

// icmpCode is indexed by Reason (RFC 1812 section 5.2.7, RFC 4443 section 3.1).
func icmpCode(r Reason, v4 bool) uint8 {
	switch {
	case r == ReasonPort && v4:
		return 3
	case r == ReasonPort:
		return 4
	case r == ReasonHost && v4:
		return 1
	case r == ReasonHost:
		return 3
	case v4:
		return 13
	default:
		return 1
	}
}

// AppendUnreachable appends to dst the ICMP message which says that the packet
// that starts with quote did not arrive. It comes from the address that the packet
// was sent to. quote is cut to MaxQuote; it must hold a whole IP header, else dst
// is returned as it was.
func AppendUnreachable(dst, quote []byte, r Reason) []byte {
	var p Parsed
	if err := p.decodeAddrs(quote); err != nil {
		return dst
	}
	quote = quote[:min(len(quote), MaxQuote)]
	v4 := p.Version == 4
	msg := make([]byte, icmpHeaderLen, icmpHeaderLen+len(quote))
	msg[0], msg[1] = icmp6Unreachable, icmpCode(r, v4)
	if v4 {
		msg[0] = icmp4Unreachable
	}
	return appendICMP(dst, p.Dst.Addr(), p.Src.Addr(), append(msg, quote...))
}

// decodeAddrs reads version and addresses only: a quote is a packet cut short.
func (p *Parsed) decodeAddrs(b []byte) error {
	switch {
	case len(b) >= ipv4HeaderLen && b[0]>>4 == 4:
		p.Version = 4
		p.Src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:16])), 0)
		p.Dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:20])), 0)
	case len(b) >= ipv6HeaderLen && b[0]>>4 == 6:
		p.Version = 6
		p.Src = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), 0)
		p.Dst = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[24:40])), 0)
	default:
		return ErrShort
	}
	return nil
}

// IsEchoRequest says that the packet is a ping.
func (p *Parsed) IsEchoRequest() bool {
	return p.Proto == ProtoICMPv4 && p.Version == 4 && p.ICMPType == icmp4EchoRequest ||
		p.Proto == ProtoICMPv6 && p.Version == 6 && p.ICMPType == icmp6EchoRequest
}

// AppendEchoReply appends the answer to the echo request whose ICMP part is
// request, sent from src to dst.
func AppendEchoReply(b []byte, src, dst netip.Addr, request []byte) []byte {
	if len(request) < icmpHeaderLen {
		return b
	}
	msg := append([]byte(nil), request...)
	msg[0], msg[1], msg[2], msg[3] = icmp4EchoReply, 0, 0, 0
	if dst.Is6() {
		msg[0] = icmp6EchoReply
	}
	return appendICMP(b, dst, src, msg)
}

// AppendReset appends the RST that answers a SYN with sequence number seq, sent
// from src to dst (RFC 9293 section 3.10.7.1).
func AppendReset(b []byte, src, dst netip.AddrPort, seq uint32) []byte {
	t := make([]byte, tcpHeaderLen)
	binary.BigEndian.PutUint16(t, dst.Port())
	binary.BigEndian.PutUint16(t[2:], src.Port())
	binary.BigEndian.PutUint32(t[8:], seq+1)
	t[12], t[13] = tcpHeaderLen/4<<4, FlagRST|FlagACK
	sum := checksum(t, pseudoSum(dst.Addr(), src.Addr(), ProtoTCP, len(t)))
	binary.BigEndian.PutUint16(t[16:], sum)
	return append(appendIP(b, dst.Addr(), src.Addr(), ProtoTCP, len(t)), t...)
}

// MaxUDPPayload is the largest payload that AppendUDP can carry over IPv4; IPv6
// carries a little more.
const MaxUDPPayload = 65535 - ipv4HeaderLen - udpHeaderLen

// AppendUDP appends a datagram from src to dst. The payload must not be longer
// than MaxUDPPayload.
func AppendUDP(b []byte, src, dst netip.AddrPort, payload []byte) []byte {
	length := udpHeaderLen + len(payload)
	b = appendIP(b, src.Addr(), dst.Addr(), ProtoUDP, length)
	start := len(b)
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	b = append(b, 0, 0)
	b = append(b, payload...)
	sum := checksum(b[start:], pseudoSum(src.Addr(), dst.Addr(), ProtoUDP, length))
	if sum == 0 {
		sum = 0xffff // zero would mean: no checksum
	}
	binary.BigEndian.PutUint16(b[start+6:], sum)
	return b
}

// appendICMP fills in the checksum of msg and puts it into a packet.
func appendICMP(b []byte, src, dst netip.Addr, msg []byte) []byte {
	proto, start := ProtoICMPv4, uint32(0)
	if src.Is6() {
		proto = ProtoICMPv6
		start = pseudoSum(src, dst, proto, len(msg))
	}
	binary.BigEndian.PutUint16(msg[2:], checksum(msg, start))
	return append(appendIP(b, src, dst, proto, len(msg)), msg...)
}

func appendIP(b []byte, src, dst netip.Addr, proto Proto, length int) []byte {
	if src.Is6() {
		return appendIPv6(b, src, dst, proto, length)
	}
	start := len(b)
	b = append(b, 0x45, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(ipv4HeaderLen+length))
	b = append(b, 0, 0, 0x40, 0, defaultTTL, byte(proto), 0, 0) // do not fragment
	b = append(b, src.AsSlice()...)
	b = append(b, dst.AsSlice()...)
	binary.BigEndian.PutUint16(b[start+10:], checksum(b[start:], 0))
	return b
}

func appendIPv6(b []byte, src, dst netip.Addr, proto Proto, length int) []byte {
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	b = append(b, byte(proto), defaultTTL)
	s, d := src.As16(), dst.As16()
	b = append(b, s[:]...)
	return append(b, d[:]...)
}

func pseudoSum(src, dst netip.Addr, proto Proto, length int) uint32 {
	s, d := src.As16(), dst.As16() // the ::ffff: of a mapped IPv4 address is left out
	var sum uint32
	if src.Is4() {
		sum = addSum(addSum(0, s[12:]), d[12:])
	} else {
		sum = addSum(addSum(0, s[:]), d[:])
	}
	return sum + uint32(proto) + uint32(length)
}

// addSum adds big-endian 16-bit words. 64 KiB of them fit a uint32 without carry.
func addSum(sum uint32, b []byte) uint32 {
	for len(b) >= 2 {
		sum += uint32(b[0])<<8 | uint32(b[1])
		b = b[2:]
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

// checksum is the internet checksum (RFC 1071).
func checksum(b []byte, start uint32) uint16 {
	sum := uint64(addSum(0, b)) + uint64(start)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
