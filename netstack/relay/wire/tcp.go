package wire

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/postern-zt/postern/proto/ticket"
)

// Kind is the type of a message inside the outer TLS:
//
//	message = kind(1) | length(2) | body       one TLS record each
//
//	hello    purpose(1) | call id(16) | proof(32) | ticket
//	refused  code(1)
//	call     link handle(8) | call id(16)
//	decline  call id(16)
//	attached, ready, ping, pong: empty
type Kind byte

// The kinds. The holder speaks first, with hello; what follows depends on its purpose.
const (
	KindHello    Kind = 1
	KindReady    Kind = 2 // relay: the next byte is raw, both ways
	KindRefused  Kind = 3 // relay, then it closes
	KindCall     Kind = 4 // relay, on a control connection
	KindDecline  Kind = 5 // connector, on a control connection
	KindPing     Kind = 6 // connector
	KindPong     Kind = 7 // relay
	KindAttached Kind = 8 // relay: the control connection stands, or the renewal holds
)

// Purpose says what a holder opened the connection for.
type Purpose byte

// The purposes.
const (
	PurposeCall    Purpose = 1 // client: call my connector
	PurposeControl Purpose = 2 // connector: standing connection for calls
	PurposeAnswer  Purpose = 3 // connector: I am the other end of this call
	PurposeRenew   Purpose = 4 // client: my link lives on under this newer ticket
)

// Code says why a relay refused.
type Code byte

// The codes; an unknown one is treated as CodeInternal.
const (
	CodeInternal    Code = 0
	CodeTicket      Code = 1 // ticket or proof not accepted
	CodeRevoked     Code = 2
	CodeNoConnector Code = 3 // the connector is not attached here
	CodeDeclined    Code = 4 // the connector does not want the call
	CodeTimeout     Code = 5 // the connector did not answer
	CodeLimit       Code = 6 // too many connections or calls
	CodeUnknownCall Code = 7
)

// String names the code as logs and counters show it.
func (c Code) String() string {
	names := [...]string{"internal", "ticket", "revoked", "no_connector", "declined", "timeout", "limit", "unknown_call"}
	if int(c) < len(names) {
		return names[c]
	}
	return names[CodeInternal]
}

const (
	// CallIDLen is the length of a call id.
	CallIDLen = 16
	proofLen  = 32
	headLen   = 3
	helloMin  = 1 + CallIDLen + proofLen
	callLen   = 8 + CallIDLen
	// MaxMessage bounds a message's body.
	MaxMessage = helloMin + ticket.MaxSealed
)

// CallID names one pending call; it is random and used once.
type CallID [CallIDLen]byte

// Hello is a holder's first message.
type Hello struct {
	Purpose Purpose
	Call    CallID
	Proof   [proofLen]byte
	Ticket  []byte
}

// NewHello proves the holder of key on this TLS connection: the exporter binds the proof
// to the connection, so a copied ticket or hello opens nothing.
func NewHello(cs *tls.ConnectionState, p Purpose, call CallID, sealed []byte, key ticket.MACKey) (Hello, error) {
	h := Hello{Purpose: p, Call: call, Ticket: sealed}
	proof, err := h.prove(cs, key)
	if err != nil {
		return Hello{}, err
	}
	copy(h.Proof[:], proof)
	return h, nil
}

// Proves reports whether the holder of key made h on this connection.
func (h Hello) Proves(cs *tls.ConnectionState, key ticket.MACKey) bool {
	want, err := h.prove(cs, key)
	return err == nil && hmac.Equal(want, h.Proof[:])
}

func (h Hello) prove(cs *tls.ConnectionState, key ticket.MACKey) ([]byte, error) {
	exported, err := cs.ExportKeyingMaterial("EXPORTER-postern-relay-1", nil, sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("export keying material: %w", err)
	}
	m := hmac.New(sha256.New, key[:])
	m.Write([]byte("postern relay tcp/1\x00"))
	m.Write([]byte{byte(h.Purpose)})
	m.Write(h.Call[:])
	m.Write(exported)
	return m.Sum(nil), nil
}

// AppendHello appends the hello message.
func AppendHello(b []byte, h Hello) []byte {
	body := append([]byte{byte(h.Purpose)}, h.Call[:]...)
	body = append(body, h.Proof[:]...)
	return AppendMessage(b, KindHello, append(body, h.Ticket...))
}

// ParseHello reads the body of a hello; the ticket borrows it.
func ParseHello(body []byte) (Hello, error) {
	if len(body) < helloMin || len(body) > MaxMessage {
		return Hello{}, ErrMalformed
	}
	h := Hello{Purpose: Purpose(body[0]), Ticket: body[helloMin:]}
	copy(h.Call[:], body[1:])
	copy(h.Proof[:], body[1+CallIDLen:])
	return h, nil
}

// AppendCall appends a call message.
func AppendCall(b []byte, link ticket.Handle, call CallID) []byte {
	body := binary.BigEndian.AppendUint64(nil, uint64(link))
	return AppendMessage(b, KindCall, append(body, call[:]...))
}

// ParseCall reads the body of a call.
func ParseCall(body []byte) (link ticket.Handle, call CallID, err error) {
	if len(body) != callLen {
		return 0, call, ErrMalformed
	}
	link = ticket.Handle(binary.BigEndian.Uint64(body))
	if !link.Valid() {
		return 0, call, ErrMalformed
	}
	copy(call[:], body[8:])
	return link, call, nil
}

// ParseDecline reads the body of a decline.
func ParseDecline(body []byte) (call CallID, err error) {
	if len(body) != CallIDLen {
		return call, ErrMalformed
	}
	copy(call[:], body)
	return call, nil
}

// ParseRefused reads the body of a refusal; an unknown code is CodeInternal.
func ParseRefused(body []byte) Code {
	if len(body) != 1 || Code(body[0]) > CodeUnknownCall {
		return CodeInternal
	}
	return Code(body[0])
}

// AppendMessage appends one message; the caller writes it with a single Write.
func AppendMessage(b []byte, k Kind, body []byte) []byte {
	b = append(b, byte(k))
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	return append(b, body...)
}

// ReadMessage reads one message; it never reads past it. The caller sets the deadline.
func ReadMessage(r io.Reader) (Kind, []byte, error) {
	var head [headLen]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, fmt.Errorf("read relay message: %w", err)
	}
	n := int(binary.BigEndian.Uint16(head[1:]))
	if n > MaxMessage {
		return 0, nil, ErrMalformed
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, fmt.Errorf("read relay message: %w", err)
	}
	return Kind(head[0]), body, nil
}
