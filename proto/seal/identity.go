package seal

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"

	"github.com/postern-zt/postern/proto/ids"
)

// An identity envelope is signed with the identity key of a machine, ECDSA P-256, which may
// live in hardware: slow, and without Ed25519. It carries its public key, so that whoever
// knows only the key id, which is the hash of it, can check the signature.
//
//	envelope = version(1)=2 | n(1) | public key (SPKI, n) | m(1) | signature (ASN.1, m) | payload
//	signed   = SHA-256("postern " domain 0x00 | SHA-256 of public key(32) | payload)
const identityVersion = 2

// SealIdentity returns the envelope of payload for one domain, signed with an identity key.
// It takes as long as the key's holder needs.
func SealIdentity(key crypto.Signer, d Domain, payload []byte) ([]byte, error) {
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("identity key: %w", err)
	}
	if _, err := identityKey(spki); err != nil {
		return nil, err
	}
	sig, err := key.Sign(rand.Reader, identityDigest(d, ids.KeyIDOf(spki), payload), crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("sign with the identity key: %w", err)
	}
	out := make([]byte, 0, 3+len(spki)+len(sig)+len(payload))
	out = append(out, identityVersion, byte(len(spki)))
	out = append(out, spki...)
	out = append(out, byte(len(sig)))
	out = append(out, sig...)
	return append(out, payload...), nil
}

// OpenIdentity verifies an envelope of SealIdentity by the key with the id want, and returns
// its payload, borrowed from the input. Of a foreign key not even the public key is parsed.
func OpenIdentity(want ids.KeyID, d Domain, envelope []byte) ([]byte, error) {
	e, err := splitIdentity(envelope)
	if err != nil {
		return nil, err
	}
	id := ids.KeyIDOf(e.spki)
	if id != want {
		return nil, fmt.Errorf("%w: %s", ErrUnknownKey, id)
	}
	pub, err := identityKey(e.spki)
	if err != nil {
		return nil, err
	}
	if !ecdsa.VerifyASN1(pub, identityDigest(d, id, e.payload), e.signature) {
		return nil, ErrSignature
	}
	return e.payload, nil
}

// ClaimedIdentity returns the id of the key in an envelope. Nothing is verified: it tells
// whom to ask about, or which key to show for comparison.
func ClaimedIdentity(envelope []byte) (ids.KeyID, error) {
	e, err := splitIdentity(envelope)
	if err != nil {
		return ids.KeyID{}, err
	}
	return ids.KeyIDOf(e.spki), nil
}

// identityEnvelope is an envelope in its parts, borrowed.
type identityEnvelope struct{ spki, signature, payload []byte }

func splitIdentity(b []byte) (e identityEnvelope, err error) {
	if len(b) == 0 || len(b) > MaxEnvelope || b[0] != identityVersion {
		return e, ErrMalformed
	}
	b = b[1:]
	for _, part := range []*[]byte{&e.spki, &e.signature} {
		if len(b) == 0 || len(b)-1 < int(b[0]) {
			return e, ErrMalformed
		}
		n := 1 + int(b[0])
		*part, b = b[1:n:n], b[n:]
	}
	e.payload = b
	return e, nil
}

func identityKey(spki []byte) (*ecdsa.PublicKey, error) {
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, fmt.Errorf("%w: public key", ErrMalformed)
	}
	pub, ok := parsed.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%w: not a P-256 key", ErrMalformed)
	}
	return pub, nil
}

func identityDigest(d Domain, id ids.KeyID, payload []byte) []byte {
	h := sha256.New()
	h.Write([]byte("postern " + string(d) + "\x00"))
	h.Write(id[:])
	h.Write(payload)
	return h.Sum(nil)
}
