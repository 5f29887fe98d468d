// Package ticket is what the broker gives to a client or a connector so that a relay
// serves it, and what the relay opens: sealed to the relay's key, signed by the broker
// (decisions rule 13). The broker seals, netstack/relay opens, netstack/relay/attach
// carries it without being able to read it; the MAC key reaches the holder beside the
// ticket, over the control plane, and a ticket alone is worth nothing.
//
//	ticket  = seal.Envelope("ticket/1", outer)      signature is checked first
//	outer   = tlv{1: relay id, 2: HPKE ciphertext of inner}
//	inner   = tlv, fields below                     X25519, HKDF-SHA256, AES-128-GCM
//
// Pure package; a Ticket is a value. It must not know sockets or clocks.
package ticket

import (
	"errors"
	"fmt"
	"time"

	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
	"github.com/postern-zt/postern/proto/tlv"
)

const (
	// MaxSealed bounds a sealed ticket, so that a bind datagram fits into 1200 bytes.
	MaxSealed = 1000
	// MaxLife is the longest validity that a relay accepts: it also bounds how long a
	// revocation must be remembered.
	MaxLife = 7 * 24 * time.Hour
	// Tolerance is how far the relay's clock may be behind the broker's (rule 10).
	Tolerance = 5 * time.Minute
)

// Errors for errors.Is; Reason names them in counters.
var (
	ErrMalformed   = errors.New("malformed ticket")
	ErrSignature   = errors.New("ticket not signed by the broker")
	ErrForeign     = errors.New("ticket for another relay")
	ErrExpired     = errors.New("ticket expired")
	ErrNotYet      = errors.New("ticket not valid yet")
	ErrUnsupported = errors.New("ticket with an unsupported constraint")
)

// Role is what the holder may do at the relay.
type Role uint8

// The roles. The zero value is no role and is refused.
const (
	RoleClient    Role = 1 // call one connector over one link handle
	RoleConnector Role = 2 // answer the calls to one connector handle
)

// String returns the role's name for logs and counters.
func (r Role) String() string {
	switch r {
	case RoleClient:
		return "client"
	case RoleConnector:
		return "connector"
	default:
		return "unknown"
	}
}

// Ticket is the opened form.
type Ticket struct {
	// Relay is the only relay that may serve it.
	Relay ids.RelayID
	Role  Role
	// Handle is the link handle L of a client, the connector handle C of a connector.
	Handle Handle
	// Connector is the handle C that a client may call; zero for a connector.
	Connector Handle
	// MACKey proves the holder; fresh for each ticket.
	MACKey MACKey
	// Holder is the holder's identity key, so that a revocation can name the device.
	Holder ids.KeyID
	// BytesPerSecond bounds each direction; zero means the relay's own limit only.
	BytesPerSecond uint64
	// Flows bounds concurrent spliced connections; zero means the relay's default.
	Flows uint64
	// NotBefore and Expires bound the validity, in whole seconds.
	NotBefore, Expires time.Time
}

// The fields of the inner message. Numbers are never reused.
const (
	fieldRole      = 1
	fieldHandle    = 2
	fieldConnector = 3
	fieldMACKey    = 4
	fieldHolder    = 5
	fieldRate      = 6
	fieldFlows     = 7
	fieldNotBefore = 8
	fieldExpires   = 9
)

const (
	fieldRelay  = 1
	fieldSealed = 2
)

// Seal returns the ticket t for the relay that holds the private half of pub. It refuses
// a ticket that no relay would open.
func Seal(pub PublicKey, signer *seal.Signer, t Ticket) ([]byte, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	ct, err := pub.seal(t.Relay, t.encode())
	if err != nil {
		return nil, fmt.Errorf("seal ticket: %w", err)
	}
	var w tlv.Writer
	w.PutString(fieldRelay, true, string(t.Relay))
	w.Put(fieldSealed, true, ct)
	return signer.Seal(seal.Ticket, w.Bytes()), nil
}

// Open verifies, decrypts and checks a sealed ticket for the given relay at time now.
// Nothing is decrypted before the signature holds.
func Open(key PrivateKey, keys seal.Keys, relay ids.RelayID, sealed []byte, now time.Time) (Ticket, error) {
	if len(sealed) > MaxSealed {
		return Ticket{}, fmt.Errorf("%w: %d bytes", ErrMalformed, len(sealed))
	}
	outer, err := keys.Open(seal.Ticket, sealed)
	if err != nil {
		return Ticket{}, sealError(err)
	}
	ct, err := openOuter(outer, relay)
	if err != nil {
		return Ticket{}, err
	}
	inner, err := key.open(relay, ct)
	if err != nil {
		return Ticket{}, fmt.Errorf("%w: sealed to another key", ErrForeign)
	}
	t, err := decode(inner)
	if err != nil {
		return Ticket{}, err
	}
	t.Relay = relay
	if err := t.check(); err != nil {
		return Ticket{}, err
	}
	return t, t.Valid(now)
}

func sealError(err error) error {
	if errors.Is(err, seal.ErrMalformed) {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return fmt.Errorf("%w: %w", ErrSignature, err)
}

// Valid says whether the ticket holds at time now.
func (t Ticket) Valid(now time.Time) error {
	if now.Before(t.NotBefore.Add(-Tolerance)) {
		return ErrNotYet
	}
	if !now.Before(t.Expires) {
		return ErrExpired
	}
	return nil
}

// check holds the rules that do not depend on time.
func (t Ticket) check() error {
	switch {
	case t.Role != RoleClient && t.Role != RoleConnector:
		return fmt.Errorf("%w: role %d", ErrUnsupported, t.Role)
	case !t.Handle.Valid():
		return fmt.Errorf("%w: handle", ErrMalformed)
	case t.Role == RoleClient && (!t.Connector.Valid() || t.Connector == t.Handle):
		return fmt.Errorf("%w: client without a connector to call", ErrMalformed)
	case t.Role == RoleConnector && t.Connector != 0:
		return fmt.Errorf("%w: connector that calls", ErrMalformed)
	case t.MACKey.isZero():
		return fmt.Errorf("%w: no MAC key", ErrMalformed)
	case t.NotBefore.Unix() <= 0 || !t.NotBefore.Before(t.Expires):
		return fmt.Errorf("%w: validity", ErrMalformed)
	case t.Expires.Sub(t.NotBefore) > MaxLife:
		return fmt.Errorf("%w: valid for more than %s", ErrUnsupported, MaxLife)
	}
	return nil
}

// Reason is the short name of an error of Open, for counters.
func Reason(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, ErrSignature):
		return "bad_signature"
	case errors.Is(err, ErrForeign):
		return "foreign_relay"
	case errors.Is(err, ErrExpired):
		return "expired"
	case errors.Is(err, ErrNotYet):
		return "not_yet_valid"
	case errors.Is(err, ErrUnsupported):
		return "unsupported_constraint"
	default:
		return "malformed"
	}
}
