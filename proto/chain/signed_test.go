package chain

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
	"github.com/postern-zt/postern/proto/tlv"
)

var update = flag.Bool("update", false, "write the known-answer file anew")

func testKey(t testing.TB) (crypto.Signer, ids.KeyID) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return key, ids.KeyIDOf(spki)
}

func sampleHead() SignedHead {
	return SignedHead{
		Connector: ids.ConnectorID("con_" + strings.Repeat("0", 26)), First: 7, Last: 506, Count: 500,
		Hash: HashLine([]byte("record 506")), At: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC),
	}
}

func TestSignedHead(t *testing.T) {
	key, id := testKey(t)
	env, err := sampleHead().Seal(key)
	if err != nil {
		t.Fatal(err)
	}
	got, err := OpenSignedHead(id, env)
	if diff := cmp.Diff(sampleHead(), got); err != nil || diff != "" {
		t.Errorf("OpenSignedHead: %v\n%s", err, diff)
	}
	if _, err := OpenSignedHead(ids.KeyIDOf([]byte("another")), env); !errors.Is(err, seal.ErrUnknownKey) {
		t.Errorf("by another key: %v, want %v", err, seal.ErrUnknownKey)
	}
	env[len(env)-1] ^= 1
	if _, err := OpenSignedHead(id, env); !errors.Is(err, seal.ErrSignature) {
		t.Errorf("with a changed time: %v, want %v", err, seal.ErrSignature)
	}
}

// TestSignedHeadRefuses: what carries a signature of the connector and makes no sense.
func TestSignedHeadRefuses(t *testing.T) {
	cases := map[string]func(*SignedHead){
		"no connector":        func(h *SignedHead) { h.Connector = "" },
		"another kind of id":  func(h *SignedHead) { h.Connector = "dev_" + ids.ConnectorID(strings.Repeat("0", 26)) },
		"first zero":          func(h *SignedHead) { h.First, h.Count = 0, 507 },
		"backwards":           func(h *SignedHead) { h.First = 507 },
		"count does not fit":  func(h *SignedHead) { h.Count-- },
		"count overflows":     func(h *SignedHead) { h.First, h.Last, h.Count = 1, 1<<64-1, 1<<64-1 },
		"no hash":             func(h *SignedHead) { h.Hash = Hash{} },
		"no time":             func(h *SignedHead) { h.At = time.Time{} },
		"time beyond reality": func(h *SignedHead) { h.At = time.UnixMilli(1<<50 + 1) },
	}
	key, id := testKey(t)
	for name, edit := range cases {
		h := sampleHead()
		edit(&h)
		env, err := h.Seal(key)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := OpenSignedHead(id, env); err == nil {
			t.Errorf("%s: accepted %+v", name, got)
		}
	}
}

// TestSignedHeadOfLater: a later release may add fields, and say which must be understood.
func TestSignedHeadOfLater(t *testing.T) {
	later := func(critical bool) []byte {
		var w tlv.Writer
		w.Put(8, critical, []byte("new"))
		return append(sampleHead().encode(), w.Bytes()...)
	}
	if h, err := parseSignedHead(later(false)); err != nil || h != sampleHead() {
		t.Errorf("an optional field: %v", err)
	}
	if _, err := parseSignedHead(later(true)); !errors.Is(err, tlv.ErrUnknownCritical) {
		t.Errorf("a critical field: %v, want %v", err, tlv.ErrUnknownCritical)
	}
	if _, err := parseSignedHead(bytes.Replace(sampleHead().encode(), []byte{3, 1, 1}, []byte{3, 1, 2}, 1)); err == nil {
		t.Error("another version is accepted")
	}
	twice := append(sampleHead().encode(), sampleHead().encode()[len(sampleHead().encode())-8:]...)
	if _, err := parseSignedHead(twice); err == nil {
		t.Error("a field that stands twice is accepted")
	}
}

func TestSignedHeadTruncated(t *testing.T) {
	good := sampleHead().encode()
	for n := range good {
		if h, err := parseSignedHead(good[:n]); err == nil {
			t.Errorf("the first %d of %d bytes are accepted as %+v", n, len(good), h)
		}
	}
}

// TestOldestSignedHead opens what the first release wrote.
func TestOldestSignedHead(t *testing.T) {
	path := filepath.Join("testdata", "signed-head-v1.hex")
	if *update {
		key, _ := testKey(t)
		env, err := sampleHead().Seal(key)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(hex.EncodeToString(env)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	env, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	id, err := seal.ClaimedIdentity(env)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := OpenSignedHead(id, env); err != nil || got != sampleHead() {
		t.Errorf("OpenSignedHead = %+v, %v", got, err)
	}
}

func FuzzSignedHead(f *testing.F) {
	f.Add(sampleHead().encode())
	f.Add([]byte{3, 1, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseSignedHead(b)
		if err != nil {
			return
		}
		again, err := parseSignedHead(h.encode())
		if err != nil || again != h {
			t.Errorf("a parsed head does not survive: %+v, %v", again, err)
		}
	})
}
