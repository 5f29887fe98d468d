// Package frame is the wire format of a link: what client and connector say to each
// other inside an authenticated carrier. netstack/link and netstack/flow use it; it must
// not do I/O. Pure package; parsed values borrow the input.
//
// Every frame on every stream starts with the same 16 bytes, big endian:
//
//	 0      1       2        4              8                               16
//	+------+-------+--------+--------------+-------------------------------+
//	| type | flags | code   | length       | value                         | payload ...
//	+------+-------+--------+--------------+-------------------------------+
//
// A carrier has one control stream, the first that the client opens (hello, present,
// presented, withdraw, ping, pong, drain, rst by flow id), and one stream per flow, which
// starts with open or attach and then carries data, ack, fin and rst. UDP payload
// travels in datagrams (fragment.go).
//
// An unknown type is skipped when its Optional flag is set and refused otherwise.
package frame

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/postern-zt/postern/proto/seal"
)

// Version is the protocol version of this release; a hello offers a range.
const (
	VersionMin = 1
	VersionMax = 1
)

// HeaderLen is the length of the header of every frame.
const HeaderLen = 16

// Limits on payloads, checked before memory is taken.
const (
	// ChunkLen is a pooled buffer: one data frame with its header.
	ChunkLen = 128 << 10
	// MaxData is the largest payload of a data frame.
	MaxData = ChunkLen - HeaderLen
	// MaxSmall bounds the payload of every other frame except present.
	MaxSmall = 8 << 10
	// MaxMessage bounds the human text of opened and presented.
	MaxMessage = 256
)

// Type says what a frame is.
type Type uint8

// The frame types. Numbers are never reused.
const (
	TypeHello     Type = 1
	TypePresent   Type = 2
	TypePresented Type = 3
	TypeWithdraw  Type = 4
	TypeOpen      Type = 5
	TypeOpened    Type = 6
	TypeAttach    Type = 7
	TypeAttached  Type = 8
	TypeData      Type = 9
	TypeAck       Type = 10
	TypeFin       Type = 11
	TypeRst       Type = 12
	TypePing      Type = 13
	TypePong      Type = 14
	TypeDrain     Type = 15
)

// Flags of the header.
const (
	// FinReceived on ack, attach and attached: all bytes and the peer's fin are held.
	FinReceived uint8 = 1 << 0
	// AckWanted on data: the sender has no room left and waits for an ack.
	AckWanted uint8 = 1 << 1
	// Optional on an unknown type: skip it.
	Optional uint8 = 1 << 7
)

// Errors for errors.Is.
var (
	ErrTruncated = errors.New("frame truncated")
	ErrTooLarge  = errors.New("frame too large")
	ErrType      = errors.New("unknown frame type")
	ErrPayload   = errors.New("malformed frame payload")
	ErrVersion   = errors.New("no common protocol version")
)

// Header is the first 16 bytes of a frame. What Value and Code mean stands beside the
// frame's type: a flow id, a grant reference, an offset or a ping id.
type Header struct {
	Type   Type
	Flags  uint8
	Code   Code
	Length uint32
	Value  uint64
}

// PutHeader writes h into the first HeaderLen bytes of b.
func PutHeader(b []byte, h Header) {
	_ = b[HeaderLen-1]
	b[0], b[1] = byte(h.Type), h.Flags
	binary.BigEndian.PutUint16(b[2:], uint16(h.Code))
	binary.BigEndian.PutUint32(b[4:], h.Length)
	binary.BigEndian.PutUint64(b[8:], h.Value)
}

// ParseHeader reads a header and checks the length against the limit of its type.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderLen {
		return Header{}, ErrTruncated
	}
	h := Header{
		Type: Type(b[0]), Flags: b[1],
		Code:   Code(binary.BigEndian.Uint16(b[2:])),
		Length: binary.BigEndian.Uint32(b[4:]),
		Value:  binary.BigEndian.Uint64(b[8:]),
	}
	if !h.Type.known() && h.Flags&Optional == 0 {
		return Header{}, fmt.Errorf("%w: %d", ErrType, h.Type)
	}
	if h.Length > h.Type.limit() {
		return Header{}, fmt.Errorf("%w: type %d with %d bytes", ErrTooLarge, h.Type, h.Length)
	}
	return h, nil
}

func (t Type) known() bool { return t >= TypeHello && t <= TypeDrain }

func (t Type) limit() uint32 {
	switch t {
	case TypeData:
		return MaxData
	case TypePresent:
		return seal.MaxEnvelope
	default:
		return MaxSmall
	}
}

// appendFrame appends a whole frame.
func appendFrame(b []byte, h Header, payload []byte) []byte {
	h.Length = uint32(len(payload))
	var head [HeaderLen]byte
	PutHeader(head[:], h)
	b = append(b, head[:]...)
	return append(b, payload...)
}
