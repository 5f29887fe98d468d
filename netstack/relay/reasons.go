package relay

import (
	"errors"
	"sync/atomic"

	"github.com/postern-zt/postern/netstack/relay/wire"
	"github.com/postern-zt/postern/proto/ticket"
)

// Reason says why a datagram was dropped or a connection refused.
type Reason uint8

// The reasons. OK is none.
const (
	OK              Reason = iota
	DropMalformed          // too short, of no known type, or unparsable
	DropRate               // more tickets per second than are verified
	DropSignature          // ticket not signed by the broker
	DropForeign            // ticket for another relay
	DropExpired            // ticket or binding expired
	DropNotYet             // ticket of the future
	DropUnsupported        // ticket with a constraint that this relay does not know
	DropBadTicket          // ticket malformed
	DropRevoked            // ticket revoked
	DropProof              // right ticket, wrong key
	DropCookie             // cookie of another address, or old
	DropReplay             // counter not higher, or an older ticket
	DropHandle             // datagram with a handle that is not bound
	DropAddress            // datagram from another address than the bound ones
	DropNoPeer             // the other side is not bound
	DropPaced              // link over its bytes per second
	DropTooLarge           // datagram larger than the outgoing path
	DropSend               // the socket refused
	DropLimit              // one of Limits
	DropProtocol           // TCP connection that is not ours to serve
	DropNoConnector        // call to a connector that is not attached
	DropDeclined           // call that the connector declined
	DropCallTimeout        // call that the connector did not answer in time
	DropUnknownCall        // answer to no pending call
	DropGreeting           // TCP connection that did not greet in time
	reasonCount
)

var reasonNames = [reasonCount]string{
	"ok", "malformed", "rate", "bad_signature", "foreign_relay", "expired", "not_yet_valid",
	"unsupported_constraint", "bad_ticket", "revoked", "bad_proof", "bad_cookie", "replay",
	"unknown_handle", "foreign_address", "no_peer", "paced", "too_large", "send_failed", "limit",
	"protocol", "no_connector", "declined", "call_timeout", "unknown_call", "no_greeting",
}

// String is the reason's label in metrics.
func (d Reason) String() string {
	if d < reasonCount {
		return reasonNames[d]
	}
	return "unknown"
}

// drops counts by reason; a data path never allocates for it.
type drops [reasonCount]atomic.Uint64

func (d *drops) count(r Reason) { d[r].Add(1) }

// Drops returns how often each reason has occurred; every reason is present.
func (r *Relay) Drops() map[string]uint64 {
	out := make(map[string]uint64, reasonCount-1)
	for i := OK + 1; i < reasonCount; i++ {
		out[i.String()] = r.drops[i].Load()
	}
	return out
}

func ticketReason(err error) Reason {
	switch {
	case errors.Is(err, ticket.ErrSignature):
		return DropSignature
	case errors.Is(err, ticket.ErrForeign):
		return DropForeign
	case errors.Is(err, ticket.ErrExpired):
		return DropExpired
	case errors.Is(err, ticket.ErrNotYet):
		return DropNotYet
	case errors.Is(err, ticket.ErrUnsupported):
		return DropUnsupported
	default:
		return DropBadTicket
	}
}

// code is what a TCP holder is told about a reason.
func (d Reason) code() wire.Code {
	switch d {
	case DropSignature, DropForeign, DropExpired, DropNotYet, DropUnsupported, DropBadTicket, DropProof, DropMalformed:
		return wire.CodeTicket
	case DropRevoked:
		return wire.CodeRevoked
	case DropNoConnector:
		return wire.CodeNoConnector
	case DropDeclined:
		return wire.CodeDeclined
	case DropCallTimeout:
		return wire.CodeTimeout
	case DropLimit:
		return wire.CodeLimit
	case DropUnknownCall:
		return wire.CodeUnknownCall
	default:
		return wire.CodeInternal
	}
}
