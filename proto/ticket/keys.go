package ticket

import (
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"

	"github.com/postern-zt/postern/proto/ids"
)

// Handle is a 56-bit random number that names a link or a connector at a relay. It
// carries no meaning and is no secret, but it is not guessable either.
type Handle uint64

const maxHandle = 1<<56 - 1

// NewHandle draws a fresh handle.
func NewHandle() Handle {
	var b [8]byte
	for {
		rand.Read(b[1:])
		if h := Handle(binary.BigEndian.Uint64(b[:])); h.Valid() {
			return h
		}
	}
}

// Valid reports whether h fits into 56 bits and is not zero.
func (h Handle) Valid() bool { return h > 0 && h <= maxHandle }

// String returns the handle in hexadecimal, as logs show it.
func (h Handle) String() string { return fmt.Sprintf("%014x", uint64(h)) }

// MACKey proves the holder of a ticket to the relay. It never prints.
type MACKey [32]byte

// NewMACKey draws a fresh key.
func NewMACKey() MACKey {
	var k MACKey
	rand.Read(k[:])
	return k
}

func (k MACKey) isZero() bool { return k == MACKey{} }

const redacted = "[redacted]"

// String hides the key.
func (MACKey) String() string { return redacted }

// GoString hides the key.
func (MACKey) GoString() string { return redacted }

// LogValue hides the key.
func (MACKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON hides the key.
func (MACKey) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// PublicKey is what tickets for one relay are sealed to.
type PublicKey struct{ key hpke.PublicKey }

// PrivateKey opens the tickets of one relay. It never prints.
type PrivateKey struct{ key hpke.PrivateKey }

var errKey = errors.New("not an X25519 key")

// GenerateKey makes the key of a relay.
func GenerateKey() (PrivateKey, error) {
	k, err := hpke.DHKEM(ecdh.X25519()).GenerateKey()
	if err != nil {
		return PrivateKey{}, fmt.Errorf("make relay key: %w", err)
	}
	return PrivateKey{key: k}, nil
}

// ParsePrivateKey reads what PrivateKey.Bytes wrote.
func ParsePrivateKey(b []byte) (PrivateKey, error) {
	k, err := hpke.DHKEM(ecdh.X25519()).NewPrivateKey(b)
	if err != nil {
		return PrivateKey{}, errKey
	}
	return PrivateKey{key: k}, nil
}

// ParsePublicKey reads what PublicKey.Bytes wrote.
func ParsePublicKey(b []byte) (PublicKey, error) {
	k, err := hpke.DHKEM(ecdh.X25519()).NewPublicKey(b)
	if err != nil {
		return PublicKey{}, errKey
	}
	return PublicKey{key: k}, nil
}

// Bytes is the stored form of the key; the caller seals it at rest.
func (k PrivateKey) Bytes() ([]byte, error) { return k.key.Bytes() }

// Public returns the half that the broker keeps.
func (k PrivateKey) Public() PublicKey { return PublicKey{key: k.key.PublicKey()} }

// IsZero reports whether the key is missing.
func (k PrivateKey) IsZero() bool { return k.key == nil }

// String hides the key.
func (PrivateKey) String() string { return redacted }

// GoString hides the key.
func (PrivateKey) GoString() string { return redacted }

// LogValue hides the key.
func (PrivateKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON hides the key.
func (PrivateKey) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// Bytes is the transport form of the key.
func (k PublicKey) Bytes() []byte { return k.key.Bytes() }

// String returns the key in hexadecimal.
func (k PublicKey) String() string { return hex.EncodeToString(k.Bytes()) }

// info binds a ciphertext to its purpose and relay.
func info(relay ids.RelayID) []byte { return []byte("postern ticket/1 " + string(relay)) }

func (k PublicKey) seal(relay ids.RelayID, plain []byte) ([]byte, error) {
	if k.key == nil {
		return nil, errKey
	}
	return hpke.Seal(k.key, hpke.HKDFSHA256(), hpke.AES128GCM(), info(relay), plain)
}

func (k PrivateKey) open(relay ids.RelayID, sealed []byte) ([]byte, error) {
	if k.key == nil {
		return nil, errKey
	}
	return hpke.Open(k.key, hpke.HKDFSHA256(), hpke.AES128GCM(), info(relay), sealed)
}
