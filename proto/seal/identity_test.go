package seal_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"testing"

	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
)

func identity(t testing.TB, curve elliptic.Curve) (crypto.Signer, ids.KeyID) {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return key, ids.KeyIDOf(spki)
}

func sealed(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	env, err := seal.SealIdentity(key, seal.ChainHead, []byte("payload"))
	if err != nil {
		t.Fatal(err)
	}
	return env
}

func TestOpenIdentity(t *testing.T) {
	key, id := identity(t, elliptic.P256())
	env := sealed(t, key)
	if got, err := seal.OpenIdentity(id, seal.ChainHead, env); err != nil || string(got) != "payload" {
		t.Fatalf("OpenIdentity = %q, %v", got, err)
	}
	if got, err := seal.ClaimedIdentity(env); err != nil || got != id {
		t.Errorf("ClaimedIdentity = %s, %v, want %s", got, err, id)
	}
}

func TestOpenIdentityRefuses(t *testing.T) {
	key, id := identity(t, elliptic.P256())
	other, otherID := identity(t, elliptic.P256())
	good := sealed(t, key)
	cases := map[string]struct {
		want ids.KeyID
		d    seal.Domain
		env  []byte
		err  error
	}{
		"other domain":      {id, seal.Segment, good, seal.ErrSignature},
		"foreign key":       {id, seal.ChainHead, sealed(t, other), seal.ErrUnknownKey},
		"expected of other": {otherID, seal.ChainHead, good, seal.ErrUnknownKey},
		"truncated":         {id, seal.ChainHead, good[:len(good)-1], seal.ErrSignature},
		"header only":       {id, seal.ChainHead, good[:50], seal.ErrMalformed},
		"empty":             {id, seal.ChainHead, nil, seal.ErrMalformed},
		"too large":         {id, seal.ChainHead, append(bytes.Clone(good), make([]byte, seal.MaxEnvelope)...), seal.ErrMalformed},
		"broker's envelope": {id, seal.ChainHead, signer(1).Seal(seal.ChainHead, []byte("payload")), seal.ErrMalformed},
		"no public key":     {ids.KeyIDOf([]byte("x")), seal.ChainHead, []byte{2, 1, 'x', 1, 's', 'p'}, seal.ErrMalformed},
	}
	for name, c := range cases {
		if _, err := seal.OpenIdentity(c.want, c.d, c.env); !errors.Is(err, c.err) {
			t.Errorf("%s: OpenIdentity = %v, want %v", name, err, c.err)
		}
	}
}

// TestEveryBitOfAnIdentityEnvelopeCounts flips each bit: none of the results may open.
func TestEveryBitOfAnIdentityEnvelopeCounts(t *testing.T) {
	key, id := identity(t, elliptic.P256())
	good := sealed(t, key)
	for i := range len(good) * 8 {
		bad := bytes.Clone(good)
		bad[i/8] ^= 1 << (i % 8)
		if _, err := seal.OpenIdentity(id, seal.ChainHead, bad); err == nil {
			t.Fatalf("opened with bit %d flipped", i)
		}
	}
}

func TestSealIdentityTakesP256Only(t *testing.T) {
	p384, _ := identity(t, elliptic.P384())
	for name, key := range map[string]crypto.Signer{
		"P-384": p384, "Ed25519": ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)),
	} {
		if _, err := seal.SealIdentity(key, seal.ChainHead, nil); err == nil {
			t.Errorf("%s key accepted", name)
		}
	}
}

func FuzzOpenIdentity(f *testing.F) {
	key, id := identity(f, elliptic.P256())
	f.Add(sealed(f, key))
	f.Fuzz(func(t *testing.T, env []byte) {
		payload, err := seal.OpenIdentity(id, seal.ChainHead, env)
		if err == nil && string(payload) != "payload" {
			t.Errorf("opened %q, which nobody signed", payload)
		}
		if claimed, err := seal.ClaimedIdentity(env); err == nil { // a key that anybody may name
			_, _ = seal.OpenIdentity(claimed, seal.ChainHead, env)
		}
	})
}
