package seal_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"testing"

	"github.com/postern-zt/postern/proto/seal"
)

func signer(b byte) *seal.Signer {
	return seal.NewSigner(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, ed25519.SeedSize)))
}

func TestOpen(t *testing.T) {
	s := signer(1)
	keys := seal.NewKeys(signer(2).Public(), s.Public())
	got, err := keys.Open(seal.Grant, s.Seal(seal.Grant, []byte("payload")))
	if err != nil || string(got) != "payload" {
		t.Fatalf("Open = %q, %v", got, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	s := signer(1)
	keys := seal.NewKeys(s.Public())
	good := s.Seal(seal.Grant, []byte("payload"))
	cases := map[string]struct {
		keys seal.Keys
		d    seal.Domain
		env  []byte
		want error
	}{
		"other domain":   {keys, seal.Statement, good, seal.ErrSignature},
		"foreign key":    {keys, seal.Grant, signer(2).Seal(seal.Grant, []byte("payload")), seal.ErrUnknownKey},
		"nobody trusted": {seal.Keys{}, seal.Grant, good, seal.ErrUnknownKey},
		"truncated":      {keys, seal.Grant, good[:len(good)-1], seal.ErrSignature},
		"header only":    {keys, seal.Grant, good[:40], seal.ErrMalformed},
		"empty":          {keys, seal.Grant, nil, seal.ErrMalformed},
		"too large":      {keys, seal.Grant, make([]byte, seal.MaxEnvelope+1), seal.ErrMalformed},
	}
	for name, c := range cases {
		if _, err := c.keys.Open(c.d, c.env); !errors.Is(err, c.want) {
			t.Errorf("%s: Open = %v, want %v", name, err, c.want)
		}
	}
}

// TestEveryBitCounts flips each bit of an envelope: none of the results may open.
func TestEveryBitCounts(t *testing.T) {
	s := signer(1)
	keys := seal.NewKeys(s.Public())
	good := s.Seal(seal.Ticket, []byte("payload"))
	for i := range len(good) * 8 {
		bad := bytes.Clone(good)
		bad[i/8] ^= 1 << (i % 8)
		if _, err := keys.Open(seal.Ticket, bad); err == nil {
			t.Fatalf("opened with bit %d flipped", i)
		}
	}
}

func FuzzOpen(f *testing.F) {
	s := signer(1)
	keys := seal.NewKeys(s.Public())
	f.Add(s.Seal(seal.Grant, []byte("payload")))
	f.Fuzz(func(t *testing.T, env []byte) {
		payload, err := keys.Open(seal.Grant, env)
		if err == nil && !bytes.Equal(s.Seal(seal.Grant, payload), env) {
			t.Error("opened an envelope that the signer did not make")
		}
	})
}
