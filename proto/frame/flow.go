package frame

import (
	"encoding/binary"
	"fmt"
	"unicode/utf8"

	"github.com/postern-zt/postern/proto/tlv"
)

// Network is the transport of a flow. The zero value is refused.
type Network uint8

// The networks of this release.
const (
	TCP Network = 1
	UDP Network = 2
)

// String returns the name as in net.Dial.
func (n Network) String() string {
	switch n {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	default:
		return fmt.Sprintf("network_%d", uint8(n))
	}
}

// MaxHost bounds the host of an open.
const MaxHost = 255

// Open asks for a new flow. Header value: flow id. Payload:
//
//	 0              8          12     13    14     16         20
//	+--------------+----------+------+-----+------+----------+------------
//	| ref          | epoch    | net  | 0   | port | window   | tlv: 1 host
//	+--------------+----------+------+-----+------+----------+------------
//
// Host is empty for an app with one target; later it selects a host of a wildcard or
// network app and then is critical.
type Open struct {
	Flow    uint64
	Ref     uint64
	Epoch   uint32
	Network Network
	Port    uint16
	// Window is how many bytes the client holds for its program.
	Window uint32
	Host   string
}

const openLen = 20

// AppendOpen appends the frame.
func AppendOpen(b []byte, o Open) []byte {
	p := make([]byte, openLen, openLen+len(o.Host)+4)
	binary.BigEndian.PutUint64(p, o.Ref)
	binary.BigEndian.PutUint32(p[8:], o.Epoch)
	p[12] = byte(o.Network)
	binary.BigEndian.PutUint16(p[14:], o.Port)
	binary.BigEndian.PutUint32(p[16:], o.Window)
	var w tlv.Writer
	w.PutString(1, true, o.Host)
	return appendFrame(b, Header{Type: TypeOpen, Value: o.Flow}, append(p, w.Bytes()...))
}

// ParseOpen reads an open frame.
func ParseOpen(h Header, p []byte) (Open, error) {
	if len(p) < openLen {
		return Open{}, fmt.Errorf("%w: open of %d bytes", ErrPayload, len(p))
	}
	o := Open{
		Flow: h.Value, Ref: binary.BigEndian.Uint64(p), Epoch: binary.BigEndian.Uint32(p[8:]),
		Network: Network(p[12]), Port: binary.BigEndian.Uint16(p[14:]), Window: binary.BigEndian.Uint32(p[16:]),
	}
	if (o.Network != TCP && o.Network != UDP) || p[13] != 0 || o.Port == 0 {
		return Open{}, fmt.Errorf("%w: open network %d port %d", ErrPayload, p[12], o.Port)
	}
	fields, err := tlv.Parse(p[openLen:])
	if err != nil {
		return Open{}, fmt.Errorf("parse open: %w", err)
	}
	for _, f := range fields {
		if f.Number != 1 {
			if err := f.Unknown(); err != nil {
				return Open{}, fmt.Errorf("parse open: %w", err)
			}
			continue
		}
		if o.Host != "" || len(f.Value) == 0 || len(f.Value) > MaxHost {
			return Open{}, fmt.Errorf("%w: open host", ErrPayload)
		}
		o.Host = string(f.Value)
	}
	return o, nil
}

// Opened answers an open. Header value: flow id, code: result. Payload:
//
//	 0                4          8
//	+----------------+----------+-----------------
//	| connect micros | window   | message (utf-8)
//	+----------------+----------+-----------------
type Opened struct {
	Flow          uint64
	Code          Code
	ConnectMicros uint32
	Window        uint32
	Message       string
}

// AppendOpened appends the frame; the message is cut to MaxMessage bytes.
func AppendOpened(b []byte, o Opened) []byte {
	p := make([]byte, 8, 8+MaxMessage)
	binary.BigEndian.PutUint32(p, o.ConnectMicros)
	binary.BigEndian.PutUint32(p[4:], o.Window)
	return appendFrame(b, Header{Type: TypeOpened, Code: o.Code, Value: o.Flow}, append(p, cutText(o.Message)...))
}

// ParseOpened reads an opened frame.
func ParseOpened(h Header, p []byte) (Opened, error) {
	if len(p) < 8 || !validText(p[8:]) {
		return Opened{}, fmt.Errorf("%w: opened of %d bytes", ErrPayload, len(p))
	}
	return Opened{
		Flow: h.Value, Code: h.Code, ConnectMicros: binary.BigEndian.Uint32(p),
		Window: binary.BigEndian.Uint32(p[4:]), Message: string(p[8:]),
	}, nil
}

// Attach continues a flow on another carrier; Attached answers with the connector's
// side. Header value: flow id, flag FinReceived, code (attached). Payload of both:
//
//	 0              8          12         16             24             32
//	+--------------+----------+----------+--------------+--------------+
//	| ref          | epoch    | window   | received     | drained      |
//	+--------------+----------+----------+--------------+--------------+
type Attach struct {
	Flow  uint64
	Ref   uint64
	Epoch uint32
	State Ack
	// Code is the answer; it is zero in an attach.
	Code Code
}

const attachLen = 32

// AppendAttach appends an attach frame.
func AppendAttach(b []byte, a Attach) []byte { return appendAttach(b, TypeAttach, a) }

// AppendAttached appends an attached frame.
func AppendAttached(b []byte, a Attach) []byte { return appendAttach(b, TypeAttached, a) }

func appendAttach(b []byte, t Type, a Attach) []byte {
	var p [attachLen]byte
	binary.BigEndian.PutUint64(p[:], a.Ref)
	binary.BigEndian.PutUint32(p[8:], a.Epoch)
	binary.BigEndian.PutUint32(p[12:], a.State.Window)
	binary.BigEndian.PutUint64(p[16:], a.State.Received)
	binary.BigEndian.PutUint64(p[24:], a.State.Drained)
	return appendFrame(b, Header{Type: t, Flags: finFlag(a.State.Fin), Code: a.Code, Value: a.Flow}, p[:])
}

// ParseAttach reads an attach or attached frame; longer payloads are allowed for later fields.
func ParseAttach(h Header, p []byte) (Attach, error) {
	if len(p) < attachLen {
		return Attach{}, fmt.Errorf("%w: attach of %d bytes", ErrPayload, len(p))
	}
	return Attach{
		Flow: h.Value, Ref: binary.BigEndian.Uint64(p), Epoch: binary.BigEndian.Uint32(p[8:]), Code: h.Code,
		State: Ack{
			Window: binary.BigEndian.Uint32(p[12:]), Received: binary.BigEndian.Uint64(p[16:]),
			Drained: binary.BigEndian.Uint64(p[24:]), Fin: h.Flags&FinReceived != 0,
		},
	}, nil
}

// Ack tells the sender of a flow what it may forget and how far it may send (rule 16).
// Header value: received, flag FinReceived. Payload:
//
//	 0              8          12
//	+--------------+----------+
//	| drained      | window   |
//	+--------------+----------+
type Ack struct {
	// Received bytes are held in the peer's memory: their copies may be freed.
	Received uint64
	// Drained bytes left into the peer's socket: the sender may be at most Window ahead.
	Drained uint64
	Window  uint32
	// Fin says that the final byte and the fin itself are held as well.
	Fin bool
}

// AckLen is the length of a whole ack frame.
const AckLen = HeaderLen + 12

// AppendAck appends the frame without allocating when b has room.
func AppendAck(b []byte, a Ack) []byte {
	var p [AckLen]byte
	PutHeader(p[:], Header{Type: TypeAck, Flags: finFlag(a.Fin), Length: AckLen - HeaderLen, Value: a.Received})
	binary.BigEndian.PutUint64(p[HeaderLen:], a.Drained)
	binary.BigEndian.PutUint32(p[HeaderLen+8:], a.Window)
	return append(b, p[:]...)
}

// ParseAck reads an ack frame.
func ParseAck(h Header, p []byte) (Ack, error) {
	if len(p) < AckLen-HeaderLen {
		return Ack{}, fmt.Errorf("%w: ack of %d bytes", ErrPayload, len(p))
	}
	return Ack{
		Received: h.Value, Drained: binary.BigEndian.Uint64(p),
		Window: binary.BigEndian.Uint32(p[8:]), Fin: h.Flags&FinReceived != 0,
	}, nil
}

// AppendFin appends a fin: the sender's direction ends at offset final.
func AppendFin(b []byte, final uint64) []byte {
	return appendFrame(b, Header{Type: TypeFin, Value: final}, nil)
}

// AppendRst appends a reset. On a flow stream flow is zero; on the control stream it
// names the flow that has no stream at present.
func AppendRst(b []byte, flow uint64, code Code) []byte {
	return appendFrame(b, Header{Type: TypeRst, Code: code, Value: flow}, nil)
}

func finFlag(fin bool) uint8 {
	if fin {
		return FinReceived
	}
	return 0
}

func cutText(s string) string {
	if len(s) > MaxMessage {
		s = s[:MaxMessage]
	}
	for !utf8.ValidString(s) && s != "" {
		s = s[:len(s)-1]
	}
	return s
}

func validText(b []byte) bool { return len(b) <= MaxMessage && utf8.Valid(b) }
