// Package wire holds the formats that a relay and its two kinds of holders speak, and
// nothing that decides: the 8-byte header of every relayed datagram, the bind protocol
// over UDP, the messages inside the outer TLS, and the record-bounded conn under that
// TLS. netstack/relay and netstack/relay/attach use it. Pure but for RecordConn; every
// parser takes untrusted bytes, borrows its input and has a fuzz target.
package wire

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"

	"github.com/postern-zt/postern/proto/ticket"
)

// ALPN names the outer TLS of the relay on the shared TCP port.
const ALPN = "postern-relay/1"

// HeaderLen is the length of the header in front of every relayed datagram:
//
//	type(1) | handle(7, big endian)
const HeaderLen = 8

// Type is the first byte of a datagram; 0x10 to 0x1f are ours (decisions rule 12).
type Type byte

// The types of datagrams. Everything else on the port is dropped without an answer.
const (
	TypeData   Type = 0x10 // both ways, forwarded untouched
	TypeBind   Type = 0x11 // holder: counter | ticket | mac
	TypeCookie Type = 0x12 // relay:  counter | cookie
	TypeProve  Type = 0x13 // holder: counter | cookie | ticket | mac
	TypeBound  Type = 0x14 // relay:  counter | lifetime | mac
	TypePing   Type = 0x15 // holder: counter | mac
	TypePong   Type = 0x16 // relay:  counter | mac
)

const (
	counterLen = 8
	macLen     = 16
	// CookieLen is the length of a cookie: minute(4) | reserved(4) | mac(16).
	CookieLen = 24
	lifeLen   = 4
	// MaxControl bounds a bind datagram.
	MaxControl = HeaderLen + counterLen + CookieLen + 2 + ticket.MaxSealed + macLen
)

// ErrMalformed is the only error of the parsers: the relay answers none of them.
var ErrMalformed = errors.New("malformed relay message")

// Header is type and handle as one comparable word.
type Header uint64

// MakeHeader joins a type and a handle.
func MakeHeader(t Type, h ticket.Handle) Header { return Header(uint64(t)<<56 | uint64(h)&(1<<56-1)) }

// ReadHeader reads the header of a datagram of at least HeaderLen bytes.
func ReadHeader(b []byte) Header { return Header(binary.BigEndian.Uint64(b)) }

// Put writes the header into the first HeaderLen bytes of b.
func (h Header) Put(b []byte) { binary.BigEndian.PutUint64(b, uint64(h)) }

// Type returns the first byte.
func (h Header) Type() Type { return Type(h >> 56) }

// Handle returns the handle.
func (h Header) Handle() ticket.Handle { return ticket.Handle(h & (1<<56 - 1)) }

// EqualRun returns the length of the leading datagrams that share one data header; a
// datagram of any other type is a run of its own.
func EqualRun(b []byte, segment int) int {
	first := min(segment, len(b))
	if first < HeaderLen || Type(b[0]) != TypeData {
		return first
	}
	h, n := ReadHeader(b), first
	for n+HeaderLen <= len(b) && ReadHeader(b[n:]) == h {
		n = min(n+segment, len(b))
	}
	return n
}

// Bind is the first datagram of a holder and, with a cookie, the second.
type Bind struct {
	Handle  ticket.Handle
	Counter uint64
	Cookie  []byte // nil in TypeBind
	Ticket  []byte
	signed  []byte
	mac     []byte
}

// AppendBind appends a bind datagram, proven with key; cookie is nil in the first.
func AppendBind(b []byte, h ticket.Handle, counter uint64, cookie, sealed []byte, key ticket.MACKey) []byte {
	start, typ := len(b), TypeBind
	if cookie != nil {
		typ = TypeProve
	}
	b = appendStart(b, typ, h, counter)
	b = append(b, cookie...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(sealed)))
	b = append(b, sealed...)
	return appendMAC(b, start, key)
}

// ParseBind reads a TypeBind or TypeProve datagram. The result borrows b.
func ParseBind(b []byte) (Bind, error) {
	if len(b) < HeaderLen+counterLen || len(b) > MaxControl {
		return Bind{}, ErrMalformed
	}
	h := ReadHeader(b)
	m := Bind{Handle: h.Handle(), Counter: binary.BigEndian.Uint64(b[HeaderLen:])}
	rest := b[HeaderLen+counterLen:]
	if h.Type() == TypeProve {
		if len(rest) < CookieLen {
			return Bind{}, ErrMalformed
		}
		m.Cookie, rest = rest[:CookieLen], rest[CookieLen:]
	}
	if len(rest) < 2+macLen || int(binary.BigEndian.Uint16(rest)) != len(rest)-2-macLen {
		return Bind{}, ErrMalformed
	}
	m.Ticket = rest[2 : len(rest)-macLen]
	m.signed, m.mac = b[:len(b)-macLen], b[len(b)-macLen:]
	return m, nil
}

// Proves reports whether the datagram was made by the holder of key.
func (m Bind) Proves(key ticket.MACKey) bool { return hmac.Equal(m.mac, mac(key, m.signed)) }

// AppendCookie appends the relay's answer to a first bind: shorter than any bind.
func AppendCookie(b []byte, h ticket.Handle, counter uint64, cookie [CookieLen]byte) []byte {
	return append(appendStart(b, TypeCookie, h, counter), cookie[:]...)
}

// ParseCookie reads a TypeCookie datagram. The cookie borrows b.
func ParseCookie(b []byte) (counter uint64, cookie []byte, err error) {
	if len(b) != HeaderLen+counterLen+CookieLen {
		return 0, nil, ErrMalformed
	}
	return binary.BigEndian.Uint64(b[HeaderLen:]), b[HeaderLen+counterLen:], nil
}

// AppendBound appends the relay's word that the mapping stands for the given seconds of
// the ticket's remaining life.
func AppendBound(b []byte, h ticket.Handle, counter uint64, seconds uint32, key ticket.MACKey) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint32(appendStart(b, TypeBound, h, counter), seconds)
	return appendMAC(b, start, key)
}

// AppendPing appends a TypePing or TypePong datagram.
func AppendPing(b []byte, t Type, h ticket.Handle, counter uint64, key ticket.MACKey) []byte {
	start := len(b)
	return appendMAC(appendStart(b, t, h, counter), start, key)
}

// ParseProven reads a TypeBound, TypePing or TypePong datagram and checks its MAC.
func ParseProven(b []byte, key ticket.MACKey) (counter uint64, err error) {
	want := HeaderLen + counterLen + macLen
	if len(b) >= HeaderLen && ReadHeader(b).Type() == TypeBound {
		want += lifeLen
	}
	if len(b) != want || !hmac.Equal(b[len(b)-macLen:], mac(key, b[:len(b)-macLen])) {
		return 0, ErrMalformed
	}
	return binary.BigEndian.Uint64(b[HeaderLen:]), nil
}

func appendStart(b []byte, t Type, h ticket.Handle, counter uint64) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(MakeHeader(t, h)))
	return binary.BigEndian.AppendUint64(b, counter)
}

// appendMAC proves b[start:]; the type byte inside keeps the messages apart.
func appendMAC(b []byte, start int, key ticket.MACKey) []byte {
	return append(b, mac(key, b[start:])...)
}

func mac(key ticket.MACKey, b []byte) []byte {
	m := hmac.New(sha256.New, key[:])
	m.Write([]byte("postern relay udp/1\x00"))
	m.Write(b)
	return m.Sum(nil)[:macLen]
}
