//go:build unix

package keystore_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/postern-zt/postern/platform/keystore"
)

func open(t *testing.T, dir string) keystore.Key {
	t.Helper()
	key, err := keystore.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func public(t *testing.T, key keystore.Key) *ecdsa.PublicKey {
	t.Helper()
	pub, ok := key.Public().(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		t.Fatalf("public key is %T, want ECDSA P-256", key.Public())
	}
	return pub
}

func TestOpenMakesOneKeyAndKeepsIt(t *testing.T) {
	dir := t.TempDir()
	first, second := open(t, dir), open(t, dir)
	if !public(t, first).Equal(second.Public()) {
		t.Error("the second Open gave another key")
	}
	if first.Hardware() {
		t.Error("a file claims to be hardware")
	}
	if other := open(t, t.TempDir()); public(t, first).Equal(other.Public()) {
		t.Error("two directories share a key")
	}
	info, err := os.Stat(filepath.Join(dir, "identity.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v, want mode 0600", info.Mode(), err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("directory holds %v, want the key alone", entries)
	}
}

func TestKeySigns(t *testing.T) {
	key := open(t, t.TempDir())
	digest := sha256.Sum256([]byte("hello"))
	sig, err := key.Sign(rand.Reader, digest[:], nil)
	if err != nil {
		t.Fatal(err)
	}
	if !ecdsa.VerifyASN1(public(t, key), digest[:], sig) {
		t.Error("the signature does not verify")
	}
	digest[0] ^= 1
	if ecdsa.VerifyASN1(public(t, key), digest[:], sig) {
		t.Error("the signature verifies for another digest")
	}
}

func TestOpenAtTheSameTimeGivesOneKey(t *testing.T) {
	dir := t.TempDir()
	keys := make([]keystore.Key, 8)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() { keys[i], _ = keystore.Open(dir) })
	}
	wg.Wait()
	for i, k := range keys {
		if k == nil || !public(t, keys[0]).Equal(k.Public()) {
			t.Errorf("opener %d got another key", i)
		}
	}
}

func TestOpenRefusesExposedKeys(t *testing.T) {
	for _, mode := range []os.FileMode{0o644, 0o640, 0o604, 0o620, 0o777} {
		dir := t.TempDir()
		open(t, dir)
		if err := os.Chmod(filepath.Join(dir, "identity.key"), mode); err != nil {
			t.Fatal(err)
		}
		if key, err := keystore.Open(dir); key != nil || !errors.Is(err, keystore.ErrExposed) {
			t.Errorf("Open with mode %#o = %v, %v, want ErrExposed", mode, key, err)
		}
	}
}

func TestOpenRefusesLinksAndDirectories(t *testing.T) {
	other, dir := t.TempDir(), t.TempDir()
	open(t, other)
	if err := os.Symlink(filepath.Join(other, "identity.key"), filepath.Join(dir, "identity.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := keystore.Open(dir); !errors.Is(err, keystore.ErrExposed) {
		t.Errorf("Open of a link = %v, want ErrExposed", err)
	}
	dir = t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "identity.key"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := keystore.Open(dir); !errors.Is(err, keystore.ErrExposed) {
		t.Errorf("Open of a directory = %v, want ErrExposed", err)
	}
}

func TestOpenRefusesForeignOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	dir := t.TempDir()
	open(t, dir)
	if err := os.Chown(filepath.Join(dir, "identity.key"), 12345, 12345); err != nil {
		t.Fatal(err)
	}
	if _, err := keystore.Open(dir); !errors.Is(err, keystore.ErrExposed) {
		t.Errorf("Open of a foreign key = %v, want ErrExposed", err)
	}
}

func TestOpenRefusesDamagedKeys(t *testing.T) {
	good := pemOf(t, elliptic.P256())
	for name, content := range map[string][]byte{
		"empty":       {},
		"no PEM":      []byte("hello"),
		"other type":  bytes.ReplaceAll(good, []byte("PRIVATE"), []byte("PUBLIC")),
		"tail":        append(bytes.Clone(good), "more"...),
		"cut":         good[:len(good)/2],
		"bad DER":     pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1, 2, 3}}),
		"other curve": pemOf(t, elliptic.P384()),
		"huge":        append(bytes.Clone(good), bytes.Repeat([]byte("\n"), 8<<10)...),
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "identity.key")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := keystore.Open(dir); !errors.Is(err, keystore.ErrDamaged) {
			t.Errorf("%s: Open = %v, want ErrDamaged", name, err)
		}
		if kept, _ := os.ReadFile(path); !bytes.Equal(kept, content) {
			t.Errorf("%s: Open replaced the damaged key", name)
		}
	}
}

func pemOf(t *testing.T, curve elliptic.Curve) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func TestOpenNeedsTheDirectory(t *testing.T) {
	if _, err := keystore.Open(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("Open in a missing directory succeeded")
	}
}

func TestRemove(t *testing.T) {
	dir := t.TempDir()
	before := open(t, dir)
	for range 2 {
		if err := keystore.Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
	if after := open(t, dir); public(t, before).Equal(after.Public()) {
		t.Error("the removed key came back")
	}
}

func TestKeyDoesNotPrint(t *testing.T) {
	dir := t.TempDir()
	key := open(t, dir)
	asJSON, err := json.Marshal(key)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("test", "key", key)
	for _, s := range []string{
		fmt.Sprint(key), fmt.Sprintf("%+v %#v %s %d %x", key, key, key, key, key), string(asJSON), log.String(),
	} {
		if !strings.Contains(s, "[identity key]") || len(s) > 120 {
			t.Errorf("printed %q", s)
		}
	}
}
