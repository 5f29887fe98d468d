package keys_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-zt/postern/broker/keys"
	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/broker/store/storetest"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
)

func TestMain(m *testing.M) { storetest.Main(m, storetest.Leaks) }

// org is the installation of the tests.
const org = ids.OrgID("org_00000000000000000000000000")

// ring returns a loaded ring of a broker of its own.
func ring(t *testing.T, s keys.Store, kek *keys.KEK, now func() time.Time) *keys.Ring {
	t.Helper()
	r, err := keys.New(keys.Config{Store: s, KEK: kek, Broker: ids.New[ids.BrokerID](), Org: org, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

func ensure(t *testing.T, r *keys.Ring, p keys.Purpose) *keys.Key {
	t.Helper()
	k, err := r.Ensure(t.Context(), p)
	if err != nil {
		t.Fatalf("Ensure(%s): %v", p, err)
	}
	return k
}

func sqliteRing(t *testing.T, now func() time.Time) *keys.Ring {
	t.Helper()
	r := ring(t, storetest.Open(t, storetest.SQLite(t)), keys.NewKEK(), now)
	ensure(t, r, keys.CAKey)
	return r
}

func TestTwoBrokersShareInstallationKeys(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		kek := keys.NewKEK()
		a, b := ring(t, open(), kek, nil), ring(t, open(), kek, nil)
		// b has not seen what a made: its own creation loses, and it gets that of a.
		if x, y := ensure(t, a, keys.CAKey), ensure(t, b, keys.CAKey); x.ID() != y.ID() {
			t.Errorf("two certificate authorities: %s and %s", x.ID(), y.ID())
		}
		if x, y := ensure(t, a, keys.CookieSecret), ensure(t, b, keys.CookieSecret); !bytes.Equal(x.Secret(), y.Secret()) {
			t.Error("two cookie secrets")
		}
		x, y := ensure(t, a, keys.SigningKey), ensure(t, b, keys.SigningKey)
		if x.ID() == y.ID() {
			t.Error("two brokers have one signing key")
		}
		checkSignerKeys(t, b, x, y)
	})
}

// checkSignerKeys checks that r trusts what the given keys sign.
func checkSignerKeys(t *testing.T, r *keys.Ring, signers ...*keys.Key) {
	t.Helper()
	set, certs, err := r.SignerKeys()
	if err != nil || set.Len() != len(signers) || len(certs) != len(signers) {
		t.Fatalf("SignerKeys = %d keys, %d certificates, %v, want %d", set.Len(), len(certs), err, len(signers))
	}
	for _, k := range signers {
		s, err := k.Seal()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := set.Open(seal.Grant, s.Seal(seal.Grant, []byte("x"))); err != nil {
			t.Errorf("signature of %s: %v", k, err)
		}
	}
}

func TestEveryPurposeSurvivesRestart(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		kek, broker := keys.NewKEK(), ids.New[ids.BrokerID]()
		start := func() *keys.Ring {
			r, err := keys.New(keys.Config{Store: open(), KEK: kek, Broker: broker, Org: org})
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Load(t.Context()); err != nil {
				t.Fatal(err)
			}
			return r
		}
		first := start()
		want := map[keys.Purpose]string{}
		for _, p := range []keys.Purpose{keys.CAKey, keys.OIDCKey, keys.CookieSecret, keys.TokenSecret, keys.DataKey, keys.SigningKey, keys.ServerKey, keys.RelayKey} {
			want[p] = fingerprint(ensure(t, first, p))
		}
		second := start()
		for p, w := range want {
			k, err := second.Newest(p)
			if err != nil || fingerprint(k) != w {
				t.Errorf("%s after restart = %v, %v, want the same key", p, k, err)
			}
		}
	})
}

func fingerprint(k *keys.Key) string { return fmt.Sprintf("%s %x", k.ID(), k.Secret()) }

func TestCreateRotates(t *testing.T) {
	r := sqliteRing(t, nil)
	old := ensure(t, r, keys.OIDCKey)
	fresh, err := r.Create(t.Context(), keys.OIDCKey)
	if err != nil || fresh.ID() == old.ID() {
		t.Fatalf("Create = %v, %v, want a new key", fresh, err)
	}
	all := r.All(keys.OIDCKey)
	if len(all) != 2 || all[0].ID() != fresh.ID() || all[1].ID() != old.ID() {
		t.Errorf("All = %v, want newest first", all)
	}
}

func TestWrongKEKIsNamed(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		right, wrong := keys.NewKEK(), keys.NewKEK()
		s := open()
		ensure(t, ring(t, s, right, nil), keys.CAKey)
		r, err := keys.New(keys.Config{Store: s, KEK: wrong, Broker: ids.New[ids.BrokerID](), Org: org})
		if err != nil {
			t.Fatal(err)
		}
		err = r.Load(t.Context())
		if !errors.Is(err, keys.ErrWrongKEK) || !strings.Contains(err.Error(), right.ID()) || !strings.Contains(err.Error(), wrong.ID()) {
			t.Errorf("Load = %v, want ErrWrongKEK naming %s and %s", err, right.ID(), wrong.ID())
		}
		if _, err := r.CA(); !errors.Is(err, keys.ErrMissing) {
			t.Errorf("CA after a refused load = %v, want ErrMissing", err)
		}
	})
}

func TestRewrap(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		old, next := keys.NewKEK(), keys.NewKEK()
		s := open()
		r := ring(t, s, old, nil)
		pin := ensure(t, r, keys.CAKey).ID()
		ensure(t, r, keys.DataKey)
		data, err := r.Data()
		if err != nil {
			t.Fatal(err)
		}
		sealed := data.Seal("ctx", []byte("refresh token"))
		if err := r.Rewrap(t.Context(), next); err != nil {
			t.Fatal(err)
		}
		again := ring(t, s, next, nil)
		if k := ensure(t, again, keys.CAKey); k.ID() != pin {
			t.Errorf("CA after rewrap = %s, want %s", k.ID(), pin)
		}
		data, err = again.Data()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := data.Open("ctx", sealed); err != nil || string(got) != "refresh token" {
			t.Errorf("data after rewrap: %q, %v", got, err)
		}
	})
}

func TestStoreHoldsNoKeyInClear(t *testing.T) {
	s := storetest.Open(t, storetest.SQLite(t))
	r := ring(t, s, keys.NewKEK(), nil)
	ensure(t, r, keys.CAKey)
	secret := ensure(t, r, keys.CookieSecret).Secret()
	rows, err := s.SealedKeys(t.Context())
	if err != nil || len(rows) != 2 {
		t.Fatalf("SealedKeys = %d rows, %v", len(rows), err)
	}
	for _, row := range rows {
		if !strings.HasPrefix(row.Box, "s1."+r.KEKID()) || bytes.Contains([]byte(row.Box), secret) {
			t.Errorf("%s is not sealed", row.Purpose)
		}
	}
	moved := rows[0]
	moved.Owner, moved.Serial = "", 7
	if _, err := s.AddSealedKey(t.Context(), moved); err != nil {
		t.Fatal(err)
	}
	if err := r.Load(t.Context()); !errors.Is(err, keys.ErrDamaged) {
		t.Errorf("Load with a box moved to another row = %v, want ErrDamaged", err)
	}
}

func TestNothingPrintsSecrets(t *testing.T) {
	r := sqliteRing(t, nil)
	k := ensure(t, r, keys.CookieSecret)
	kek := keys.NewKEK()
	secret := fmt.Sprintf("%x", k.Secret())[:16]
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "key", k, "kek", kek)
	asJSON, err := json.Marshal([]any{k, kek})
	if err != nil {
		t.Fatal(err)
	}
	raw := strings.Fields(string(kek.Export()))[1]
	for _, text := range []string{fmt.Sprintf("%v %+v %#v %s %x", k, k, k, k, k), fmt.Sprintf("%v %+v %#v %s", kek, kek, kek, kek), log.String(), string(asJSON)} {
		if strings.Contains(text, secret) || strings.Contains(text, raw) {
			t.Errorf("a secret is printed: %.80s", text)
		}
	}
}

func TestKEKFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "kek")
	k, created, err := keys.LoadOrCreateKEK(path)
	if err != nil || !created {
		t.Fatalf("LoadOrCreateKEK = %v, %v", created, err)
	}
	again, created, err := keys.LoadOrCreateKEK(path)
	if err != nil || created || again.ID() != k.ID() {
		t.Errorf("second LoadOrCreateKEK = %v, %v, %v, want the same key", again, created, err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := keys.LoadKEK(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("LoadKEK of a readable file = %v, want advice", err)
	}
	for _, text := range []string{"", "postern-kek-1 ", "postern-kek-1 AAAA", "other " + string(k.Export())} {
		if _, err := keys.ParseKEK([]byte(text)); err == nil {
			t.Errorf("ParseKEK(%q) accepted", text)
		}
	}
}

func TestBoxContext(t *testing.T) {
	k := keys.NewKEK()
	sealed := k.Seal("a", []byte("secret"))
	if got, err := k.Open("a", sealed); err != nil || string(got) != "secret" {
		t.Errorf("Open = %q, %v", got, err)
	}
	if _, err := k.Open("b", sealed); !errors.Is(err, keys.ErrDamaged) {
		t.Errorf("Open under another context = %v, want ErrDamaged", err)
	}
	for n := range len(sealed) {
		if _, err := k.Open("a", sealed[:n]); err == nil {
			t.Errorf("Open of %d of %d bytes succeeded", n, len(sealed))
		}
	}
}

func p256(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSignerNeedsCA(t *testing.T) {
	r := ring(t, storetest.Open(t, storetest.SQLite(t)), keys.NewKEK(), nil)
	if _, err := r.Ensure(t.Context(), keys.SigningKey); !errors.Is(err, keys.ErrMissing) {
		t.Errorf("signing key without CA = %v, want ErrMissing", err)
	}
}

func TestVerifySignerRefuses(t *testing.T) {
	r, other := sqliteRing(t, nil), sqliteRing(t, nil)
	ca, err := r.CA()
	if err != nil {
		t.Fatal(err)
	}
	device, err := ca.IssueDevice(p256(t).Public(), ids.New[ids.DeviceID](), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	foreign := ensure(t, other, keys.SigningKey).Certificate().Raw
	for name, der := range map[string][]byte{"device certificate": device, "foreign CA": foreign, "garbage": []byte("x")} {
		if _, _, err := ca.VerifySigner(der); !errors.Is(err, keys.ErrBadCertificate) {
			t.Errorf("VerifySigner(%s) = %v, want ErrBadCertificate", name, err)
		}
	}
	cert := ensure(t, r, keys.SigningKey).Certificate()
	if _, err := ca.Verify(cert, 0); !errors.Is(err, keys.ErrBadCertificate) {
		t.Errorf("signer certificate as TLS client = %v, want ErrBadCertificate", err)
	}
	if _, ok := cert.PublicKey.(ed25519.PublicKey); !ok || cert.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("signer certificate: %T, usage %v", cert.PublicKey, cert.KeyUsage)
	}
}
