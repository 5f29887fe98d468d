// Package peer is the end-to-end identity of the two ends of a link: which long-lived
// identity key a TLS peer speaks for, without any CA (decisions rule 1). Every carrier
// uses its TLS configurations; client and connector compare the identity with the one
// named in the assignment or the grant. It must not know grants, relays or transports.
//
// A peer shows a chain of exactly two certificates:
//
//	[0] link      fresh P-256 key per process, valid <= 24 h, signed by [1]
//	[1] identity  P-256, self-signed by the identity key; may carry an endorsement
//
// Credentials are safe for concurrent use; everything else is a value.
package peer

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"time"

	"github.com/postern-zt/postern/proto/ids"
)

const (
	// MaxValidity is the longest life of a link certificate (rule 1).
	MaxValidity = 24 * time.Hour
	// Tolerance is how far the two clocks may lie apart (rule 10).
	Tolerance = 5 * time.Minute
	// MaxEndorsement bounds the endorsement carried in an identity certificate.
	MaxEndorsement = 4 << 10
	chainLen       = 2
)

// Errors for errors.Is; each is a reason to refuse the handshake.
var (
	ErrChain      = errors.New("peer certificate chain is not [link, identity]")
	ErrKey        = errors.New("peer key is not ECDSA P-256")
	ErrSignature  = errors.New("peer certificate signature does not hold")
	ErrExpired    = errors.New("peer link certificate is outside its validity")
	ErrUnexpected = errors.New("peer is another identity")
	ErrProtocol   = errors.New("peer speaks another protocol")
)

// endorsementOID marks the organisation's endorsement in an identity certificate. The
// arc is the UUID arc 2.25 with a number of our own.
var endorsementOID = asn1.ObjectIdentifier{2, 25, 1347375956, 1}

// Identity is who stands at the other end.
type Identity struct {
	// KeyID names the identity key.
	KeyID ids.KeyID
	// Endorsement is what the peer showed as the organisation's endorsement of its
	// identity key, not verified here; nil when it showed none (rule 2).
	Endorsement []byte
}

// String is the short form for logs.
func (i Identity) String() string { return i.KeyID.String()[:16] }

// Exactly is an Expect function that accepts one identity key. The zero key accepts nobody.
func Exactly(want ids.KeyID) func(Identity) error {
	return func(got Identity) error {
		if want.IsZero() || got.KeyID != want {
			return fmt.Errorf("%w: got %s", ErrUnexpected, got)
		}
		return nil
	}
}

// Anyone is an Expect function that accepts every valid identity: the caller compares
// it later with what the peer presents (the connector with the grant's device key).
func Anyone(Identity) error { return nil }

// FromState returns the verified identity of a completed handshake; it checks the chain
// again, so a state of any other TLS configuration gives no identity.
func FromState(cs tls.ConnectionState, now time.Time) (Identity, error) {
	return verifyChain(cs.PeerCertificates, now)
}

func verifyChain(chain []*x509.Certificate, now time.Time) (Identity, error) {
	if len(chain) != chainLen {
		return Identity{}, fmt.Errorf("%w: %d certificates", ErrChain, len(chain))
	}
	link, identity := chain[0], chain[1]
	if !isP256(link) || !isP256(identity) {
		return Identity{}, ErrKey
	}
	if link.IsCA || !identity.IsCA || bytes.Equal(link.RawSubjectPublicKeyInfo, identity.RawSubjectPublicKeyInfo) {
		return Identity{}, fmt.Errorf("%w: wrong roles", ErrChain)
	}
	if err := identity.CheckSignatureFrom(identity); err != nil {
		return Identity{}, fmt.Errorf("%w: identity: %w", ErrSignature, err)
	}
	if err := link.CheckSignatureFrom(identity); err != nil {
		return Identity{}, fmt.Errorf("%w: link: %w", ErrSignature, err)
	}
	if err := checkValidity(link, now); err != nil {
		return Identity{}, err
	}
	return identityOf(identity)
}

func isP256(c *x509.Certificate) bool {
	k, ok := c.PublicKey.(*ecdsa.PublicKey)
	return ok && k.Curve == elliptic.P256()
}

// checkValidity allows the backdating and the tolerance on both sides, and refuses a
// certificate that was made for longer than MaxValidity.
func checkValidity(link *x509.Certificate, now time.Time) error {
	if link.NotAfter.Sub(link.NotBefore) > MaxValidity+Tolerance {
		return fmt.Errorf("%w: made for more than %s", ErrExpired, MaxValidity)
	}
	if now.Before(link.NotBefore.Add(-Tolerance)) || now.After(link.NotAfter.Add(Tolerance)) {
		return ErrExpired
	}
	return nil
}

func identityOf(c *x509.Certificate) (Identity, error) {
	id := Identity{KeyID: ids.KeyIDOf(c.RawSubjectPublicKeyInfo)}
	for _, e := range c.Extensions {
		if !e.Id.Equal(endorsementOID) {
			continue
		}
		if len(e.Value) > MaxEndorsement {
			return Identity{}, fmt.Errorf("%w: endorsement of %d bytes", ErrChain, len(e.Value))
		}
		id.Endorsement = bytes.Clone(e.Value)
	}
	return id, nil
}
