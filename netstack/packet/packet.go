// Package packet gives views of IPv4, IPv6, TCP, UDP and ICMP headers and builds
// the few packets that a network owes to a local program: unreachable messages,
// TCP resets, echo replies and UDP datagrams.
//
// It is used by netstack/stack in front of the user-space stack, and by tests. It
// is pure: no I/O, no clock, no state, no allocation while parsing. It must not
// decide anything about a packet.
//
// A Parsed is owned by one goroutine at a time; the functions are safe for
// concurrent use.
package packet

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// Proto is an IP protocol number.
type Proto uint8

// The protocols that have a view here.
const (
	ProtoICMPv4 Proto = 1
	ProtoTCP    Proto = 6
	ProtoUDP    Proto = 17
	ProtoICMPv6 Proto = 58
)

// TCP flags as they stand in the header.
const (
	FlagFIN uint8 = 1 << iota
	FlagSYN
	FlagRST
	FlagPSH
	FlagACK
)

// Header lengths in bytes, without options.
const (
	ipv4HeaderLen = 20
	ipv6HeaderLen = 40
	tcpHeaderLen  = 20
	udpHeaderLen  = 8
	icmpHeaderLen = 8
)

// maxExtensions bounds the walk over IPv6 extension headers: real packets carry
// one or two.
const maxExtensions = 8

// Parse errors. A packet that gives one must be dropped.
var (
	ErrShort   = errors.New("packet is shorter than its headers say")
	ErrVersion = errors.New("not an IPv4 or IPv6 packet")
	ErrHeader  = errors.New("header field out of range")
)

// Parsed is the view of one packet. All slices borrow the packet given to Decode
// and are valid as long as it is.
type Parsed struct {
	// Version is 4 or 6.
	Version uint8
	// Proto is the transport protocol, after IPv6 extension headers.
	Proto Proto
	// Fragment says that the packet is not a whole datagram. Ports, flags and
	// Payload are then not filled.
	Fragment bool
	// Src and Dst hold the addresses, and for TCP and UDP the ports.
	Src, Dst netip.AddrPort
	// TCPFlags and Seq are filled for TCP.
	TCPFlags uint8
	Seq      uint32
	// ICMPType and ICMPCode are filled for ICMPv4 and ICMPv6.
	ICMPType, ICMPCode uint8
	// Transport is the packet from the transport header on, cut to the length
	// in the IP header.
	Transport []byte
	// Payload is what follows the transport header.
	Payload []byte
}

// Decode fills p from the packet b. It never allocates. After an error p holds
// nothing of use.
func (p *Parsed) Decode(b []byte) error {
	*p = Parsed{}
	if len(b) == 0 {
		return ErrShort
	}
	var err error
	switch b[0] >> 4 {
	case 4:
		err = p.decodeIPv4(b)
	case 6:
		err = p.decodeIPv6(b)
	default:
		return ErrVersion
	}
	if err != nil || p.Fragment {
		return err
	}
	return p.decodeTransport()
}

func (p *Parsed) decodeIPv4(b []byte) error {
	if len(b) < ipv4HeaderLen {
		return ErrShort
	}
	headerLen, total := int(b[0]&0x0f)*4, int(binary.BigEndian.Uint16(b[2:]))
	if headerLen < ipv4HeaderLen || total < headerLen {
		return ErrHeader
	}
	if len(b) < total {
		return ErrShort
	}
	p.Version, p.Proto = 4, Proto(b[9])
	p.Fragment = binary.BigEndian.Uint16(b[6:])&0x3fff != 0 // more-fragments or an offset
	p.Src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:16])), 0)
	p.Dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:20])), 0)
	p.Transport = b[headerLen:total]
	return nil
}

func (p *Parsed) decodeIPv6(b []byte) error {
	if len(b) < ipv6HeaderLen {
		return ErrShort
	}
	total := ipv6HeaderLen + int(binary.BigEndian.Uint16(b[4:]))
	if len(b) < total {
		return ErrShort
	}
	p.Version = 6
	p.Src = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), 0)
	p.Dst = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[24:40])), 0)
	return p.skipExtensions(b[6], b[ipv6HeaderLen:total])
}

// IPv6 extension headers that may stand before the transport header (RFC 8200
// section 4). Others, such as ESP, are left to the caller as the protocol.
const (
	extHopByHop = 0
	extRouting  = 43
	extFragment = 44
	extDestOpts = 60
)

func (p *Parsed) skipExtensions(next uint8, rest []byte) error {
	for range maxExtensions {
		switch next {
		case extHopByHop, extRouting, extDestOpts:
		case extFragment:
			if len(rest) < 8 {
				return ErrShort
			}
			if binary.BigEndian.Uint16(rest[2:])&0xfff9 != 0 {
				p.Fragment, p.Proto, p.Transport = true, Proto(rest[0]), rest[8:]
				return nil
			}
			next, rest = rest[0], rest[8:] // an atomic fragment is a whole packet (RFC 6946)
			continue
		default:
			p.Proto, p.Transport = Proto(next), rest
			return nil
		}
		if len(rest) < 8 {
			return ErrShort
		}
		length := 8 + int(rest[1])*8
		if len(rest) < length {
			return ErrShort
		}
		next, rest = rest[0], rest[length:]
	}
	return ErrHeader
}

func (p *Parsed) decodeTransport() error {
	switch p.Proto {
	case ProtoTCP:
		return p.decodeTCP()
	case ProtoUDP:
		return p.decodeUDP()
	case ProtoICMPv4, ProtoICMPv6:
		return p.decodeICMP()
	default:
		return nil
	}
}

func (p *Parsed) decodeTCP() error {
	t := p.Transport
	if len(t) < tcpHeaderLen {
		return ErrShort
	}
	offset := int(t[12]>>4) * 4
	if offset < tcpHeaderLen {
		return ErrHeader
	}
	if len(t) < offset {
		return ErrShort
	}
	p.setPorts(t)
	p.Seq, p.TCPFlags, p.Payload = binary.BigEndian.Uint32(t[4:]), t[13], t[offset:]
	return nil
}

func (p *Parsed) decodeUDP() error {
	t := p.Transport
	if len(t) < udpHeaderLen {
		return ErrShort
	}
	length := int(binary.BigEndian.Uint16(t[4:]))
	if length < udpHeaderLen {
		return ErrHeader
	}
	if len(t) < length {
		return ErrShort
	}
	p.setPorts(t)
	p.Payload = t[udpHeaderLen:length]
	return nil
}

func (p *Parsed) decodeICMP() error {
	t := p.Transport
	if len(t) < icmpHeaderLen {
		return ErrShort
	}
	p.ICMPType, p.ICMPCode, p.Payload = t[0], t[1], t[icmpHeaderLen:]
	return nil
}

func (p *Parsed) setPorts(t []byte) {
	p.Src = netip.AddrPortFrom(p.Src.Addr(), binary.BigEndian.Uint16(t))
	p.Dst = netip.AddrPortFrom(p.Dst.Addr(), binary.BigEndian.Uint16(t[2:]))
}
