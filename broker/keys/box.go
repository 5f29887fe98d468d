package keys

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
)

const (
	boxKeyLen = 32 // AES-256
	boxIDLen  = 8
	// sealedPrefix starts a sealed secret: version 1, then key id and base64.
	sealedPrefix = "s1."
)

// Box seals small secrets with AES-256-GCM under one key. It prints as its id only.
//
//	sealed = "s1." key id "." base64(nonce(12) | ciphertext | tag(16))
type Box struct {
	aead cipher.AEAD
	id   string
}

// newBox never fails: the key length is right by its type.
func newBox(raw [boxKeyLen]byte) *Box {
	block, err := aes.NewCipher(raw[:])
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	sum := sha256.Sum256(append([]byte("postern box id\x00"), raw[:]...))
	return &Box{aead: aead, id: hex.EncodeToString(sum[:boxIDLen])}
}

// ParseBox returns the box of a raw key of 32 bytes.
func ParseBox(raw []byte) (*Box, error) {
	if len(raw) != boxKeyLen {
		return nil, fmt.Errorf("%w: a key has %d bytes", ErrDamaged, boxKeyLen)
	}
	return newBox([boxKeyLen]byte(raw)), nil
}

// ID names the key; it may be shown.
func (b *Box) ID() string { return b.id }

// Seal encrypts secret so that it opens only under the same key and context.
func (b *Box) Seal(context string, secret []byte) string {
	nonce := random(b.aead.NonceSize())
	box := b.aead.Seal(nonce, nonce, secret, aad(context))
	return sealedPrefix + b.id + "." + base64.RawStdEncoding.EncodeToString(box)
}

// Open decrypts what Seal returned. ErrWrongKEK names both keys.
func (b *Box) Open(context, sealed string) ([]byte, error) {
	id, body, err := splitSealed(sealed)
	if err != nil {
		return nil, err
	}
	if id != b.id {
		return nil, fmt.Errorf("%w: sealed with %.16q, this one is %q", ErrWrongKEK, id, b.id)
	}
	raw, err := base64.RawStdEncoding.DecodeString(body)
	if err != nil || len(raw) < b.aead.NonceSize() {
		return nil, fmt.Errorf("%w: truncated", ErrDamaged)
	}
	n := b.aead.NonceSize()
	secret, err := b.aead.Open(nil, raw[:n], raw[n:], aad(context))
	if err != nil {
		return nil, fmt.Errorf("%w: changed or moved", ErrDamaged)
	}
	return secret, nil
}

func splitSealed(sealed string) (id, body string, err error) {
	rest, ok := strings.CutPrefix(sealed, sealedPrefix)
	id, body, dot := strings.Cut(rest, ".")
	if !ok || !dot {
		return "", "", fmt.Errorf("%w: unknown format", ErrDamaged)
	}
	return id, body, nil
}

func aad(context string) []byte { return []byte("postern sealed/1\x00" + context) }

// String shows the id alone.
func (b *Box) String() string { return "box " + b.id }

// GoString shows the id alone.
func (b *Box) GoString() string { return b.String() }

// LogValue shows the id alone.
func (b *Box) LogValue() slog.Value { return slog.StringValue(b.String()) }

// MarshalJSON shows the id alone.
func (b *Box) MarshalJSON() ([]byte, error) { return []byte(`"` + b.String() + `"`), nil }

// DataBox seals secrets that rest in the store (refresh tokens, per-user audit keys) with the
// newest data key, and opens those of older ones. Its keys are themselves sealed with the
// KEK, so a change of the KEK leaves the data alone.
type DataBox struct {
	newest *Box
	byID   map[string]*Box
}

// Data returns the box for secrets in the store; Ensure(ctx, DataKey) must have run.
func (r *Ring) Data() (*DataBox, error) {
	newest, err := r.Newest(DataKey)
	if err != nil {
		return nil, err
	}
	d := &DataBox{byID: make(map[string]*Box)}
	for _, k := range r.All(DataKey) {
		box, err := ParseBox(k.secret)
		if err != nil {
			return nil, err
		}
		d.byID[box.ID()] = box
		if k.Serial == newest.Serial {
			d.newest = box
		}
	}
	return d, nil
}

// Seal encrypts secret so that it opens only under the same context.
func (d *DataBox) Seal(context string, secret []byte) string { return d.newest.Seal(context, secret) }

// Open decrypts what Seal returned, with whichever data key it was.
func (d *DataBox) Open(context, sealed string) ([]byte, error) {
	id, _, err := splitSealed(sealed)
	if err != nil {
		return nil, err
	}
	box, ok := d.byID[id]
	if !ok {
		return nil, fmt.Errorf("%w: no data key %.16q", ErrWrongKEK, id)
	}
	return box.Open(context, sealed)
}

// BoxIDOf returns the id of the box that made sealed.
func BoxIDOf(sealed string) (string, error) {
	id, _, err := splitSealed(sealed)
	return id, err
}
