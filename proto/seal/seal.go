// Package seal signs and opens the messages that connectors, clients and relays accept
// only from the broker, and that the broker accepts only from a connector: Ed25519 over
// the exact bytes received, a domain string first, the key id beside it (decisions rule
// 6). Nothing is parsed before its signature holds. Pure package.
//
//	envelope = version(1)=1 | key id(8) | signature(64) | payload
//	signed   = "postern " domain 0x00 | key id(8) | payload
//
// What a machine signs with its identity key has an envelope of its own, see SealIdentity.
package seal

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
)

// Domain separates the kinds of signed messages: a signature made for one never opens another.
type Domain string

// The domains of this release.
const (
	Grant      Domain = "grant/1"
	Statement  Domain = "statement/1"
	Assignment Domain = "assignment/1"
	Ticket     Domain = "ticket/1"
	Revocation Domain = "revocation/1"
	Segment    Domain = "audit-segment/1"
	Endorse    Domain = "endorsement/1"
	ChainHead  Domain = "chain-head/1" // an identity envelope
)

const (
	version   = 1
	keyIDLen  = 8
	headerLen = 1 + keyIDLen + ed25519.SignatureSize
	// MaxEnvelope bounds an envelope before its signature is checked.
	MaxEnvelope = 64<<10 + headerLen
)

// Errors for errors.Is.
var (
	ErrMalformed  = errors.New("malformed envelope")
	ErrUnknownKey = errors.New("signed by an unknown key")
	ErrSignature  = errors.New("signature does not hold")
)

// KeyID names a verification key: the first 8 bytes of the SHA-256 of its 32 bytes.
type KeyID [keyIDLen]byte

// KeyIDOf returns the id of pub.
func KeyIDOf(pub ed25519.PublicKey) KeyID {
	sum := sha256.Sum256(pub)
	return KeyID(sum[:keyIDLen])
}

// String returns the id in hexadecimal.
func (k KeyID) String() string { return hex.EncodeToString(k[:]) }

// Signer signs with one private key. It is safe for concurrent use.
type Signer struct {
	key ed25519.PrivateKey
	id  KeyID
}

// NewSigner returns a signer for key.
func NewSigner(key ed25519.PrivateKey) *Signer {
	return &Signer{key: key, id: KeyIDOf(key.Public().(ed25519.PublicKey))}
}

// KeyID names the signer's key.
func (s *Signer) KeyID() KeyID { return s.id }

// Public returns the key that opens what this signer seals.
func (s *Signer) Public() ed25519.PublicKey { return s.key.Public().(ed25519.PublicKey) }

// Seal returns the envelope of payload for one domain.
func (s *Signer) Seal(d Domain, payload []byte) []byte {
	sig := ed25519.Sign(s.key, signedBytes(d, s.id, payload))
	out := make([]byte, 0, headerLen+len(payload))
	out = append(out, version)
	out = append(out, s.id[:]...)
	out = append(out, sig...)
	return append(out, payload...)
}

// Keys is the set of keys that are trusted for a purpose. It is immutable after
// construction; the zero value trusts nobody.
type Keys struct {
	byID map[KeyID]ed25519.PublicKey
}

// NewKeys returns the set of the given keys; keys of a wrong length are left out.
func NewKeys(pubs ...ed25519.PublicKey) Keys {
	m := make(map[KeyID]ed25519.PublicKey, len(pubs))
	for _, p := range pubs {
		if len(p) == ed25519.PublicKeySize {
			m[KeyIDOf(p)] = p
		}
	}
	return Keys{byID: m}
}

// Len returns how many keys are trusted.
func (k Keys) Len() int { return len(k.byID) }

// Open verifies an envelope and returns its payload, borrowed from the input.
func (k Keys) Open(d Domain, envelope []byte) ([]byte, error) {
	if len(envelope) < headerLen || len(envelope) > MaxEnvelope || envelope[0] != version {
		return nil, ErrMalformed
	}
	id := KeyID(envelope[1 : 1+keyIDLen])
	pub, ok := k.byID[id]
	if !ok {
		return nil, fmt.Errorf("%w: %s", ErrUnknownKey, id)
	}
	payload := envelope[headerLen:]
	if !ed25519.Verify(pub, signedBytes(d, id, payload), envelope[1+keyIDLen:headerLen]) {
		return nil, ErrSignature
	}
	return payload, nil
}

func signedBytes(d Domain, id KeyID, payload []byte) []byte {
	b := make([]byte, 0, len("postern ")+len(d)+1+keyIDLen+len(payload))
	b = append(b, "postern "...)
	b = append(b, d...)
	b = append(b, 0)
	b = append(b, id[:]...)
	return append(b, payload...)
}
