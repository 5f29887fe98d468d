package identity_test

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"log/slog"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/broker/identity"
	"github.com/postern-zt/postern/broker/identity/identitytest"
	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/broker/store/storetest"
	"github.com/postern-zt/postern/proto/ids"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const password = "correct horse battery"

// world is one broker's identity service behind a real HTTPS server.
type world struct {
	t       *testing.T
	svc     *identity.Service
	dir     *directory.Directory
	store   *store.Store
	keys    *testKeys
	metrics *testMetrics
	audit   *testAudit
	target  identitytest.Target

	mu     sync.Mutex
	ahead  time.Duration
	suffix string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	srv := httptest.NewUnstartedServer(nil)
	w := &world{
		t: t, store: storetest.Open(t, storetest.SQLite(t)), keys: newTestKeys(t), metrics: &testMetrics{}, audit: &testAudit{},
		target: identitytest.Target{
			Issuer: "https://" + srv.Listener.Addr().String(), Device: ids.KeyIDOf([]byte("ann's laptop")), DeviceName: "ann's laptop",
		},
	}
	w.dir = directory.New(w.store, w.now)
	svc, err := identity.New(identity.Config{
		URL: w.target.Issuer, Directory: w.dir, Store: w.store, Keys: w.keys, Sealer: newTestSealer(t),
		Secret: slices.Repeat([]byte{7}, 32), Settings: w, Log: slog.New(slog.DiscardHandler), Metrics: w.metrics, Audit: w.audit,
		Hash: identity.HashParams{MemoryKiB: 64, Time: 1, Threads: 1}, Now: w.now,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.svc = svc
	srv.Config.Handler = svc.Handler()
	srv.StartTLS()
	t.Cleanup(srv.Close)
	w.target.Transport = srv.Client().Transport
	return w
}

func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Add(w.ahead)
}

// later moves the service's clock.
func (w *world) later(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ahead += d
}

// CheckNameSuffix implements identity.Settings as the broker does.
func (w *world) CheckNameSuffix(suffix string) ([]string, error) {
	_, warnings, err := catalog.CheckSuffixes([]string{suffix})
	return warnings, err
}

// SetNameSuffix implements identity.Settings.
func (w *world) SetNameSuffix(_ context.Context, suffix string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.suffix = suffix
	return nil
}

// ann creates a local user with a password.
func (w *world) ann() directory.User {
	w.t.Helper()
	u, _, err := w.svc.CreateUser(w.t.Context(), "ann", "Ann Example", "ann@example.com")
	if err == nil {
		err = w.svc.SetPassword(w.t.Context(), u.ID, identity.NewSecret(password))
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return u
}

func annPerson() identitytest.Person { return identitytest.Person{Login: "ann", Password: password} }

func (w *world) mustSignIn(who identitytest.Person) identitytest.Tokens {
	w.t.Helper()
	tokens, err := identitytest.SignIn(w.t.Context(), w.target, who)
	if err != nil {
		w.t.Fatalf("sign in %s: %v", who.Login, err)
	}
	return tokens
}

// verify returns the reason with which a token is refused, "" when it is accepted.
func (w *world) verify(token string, peer ids.KeyID) identity.Reason {
	w.t.Helper()
	_, err := w.svc.Verifier().Verify(w.t.Context(), token, peer)
	return identity.ReasonOf(err)
}

// testKeys hands in signing keys that a test can rotate.
type testKeys struct {
	mu     sync.Mutex
	signer identity.SigningKey
	all    []identity.VerifyKey
}

func newTestKeys(t *testing.T) *testKeys {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k := &testKeys{}
	k.use("first", identity.SigningKey{ID: "first", Signer: key})
	return k
}

func (k *testKeys) use(id string, s identity.SigningKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.signer = s
	k.all = append(k.all, identity.VerifyKey{ID: id, Public: s.Signer.Public()})
}

// rotate signs with a fresh Ed25519 key from now on.
func (k *testKeys) rotate(t *testing.T, id string) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k.use(id, identity.SigningKey{ID: id, Signer: key})
}

func (k *testKeys) forget(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.all = slices.DeleteFunc(k.all, func(v identity.VerifyKey) bool { return v.ID == id })
}

func (k *testKeys) SigningKey(context.Context) (identity.SigningKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.signer, nil
}

func (k *testKeys) VerifyKeys(context.Context) ([]identity.VerifyKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.all), nil
}

// testSealer is AES-GCM with the purpose as associated data.
type testSealer struct{ aead cipher.AEAD }

func newTestSealer(t *testing.T) testSealer {
	t.Helper()
	key := sha256.Sum256([]byte(t.Name()))
	block, err := aes.NewCipher(key[:])
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	return testSealer{aead}
}

func (s testSealer) Seal(_ context.Context, purpose string, plain []byte) ([]byte, error) {
	return s.aead.Seal(nil, nil, plain, []byte(purpose)), nil
}

func (s testSealer) Open(_ context.Context, purpose string, sealed []byte) ([]byte, error) {
	return s.aead.Open(nil, nil, sealed, []byte(purpose))
}

// testMetrics remembers reasons.
type testMetrics struct {
	mu       sync.Mutex
	failures []identity.Reason
	attempts []string
}

func (m *testMetrics) AuthAttempt(idp, result string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.attempts = append(m.attempts, idp+" "+result)
}

func (m *testMetrics) AuthFailure(r identity.Reason) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failures = append(m.failures, r)
}

func (m *testMetrics) AuthLatency(time.Duration) {}

// last returns the newest reason and forgets all.
func (m *testMetrics) last() identity.Reason {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.failures) == 0 {
		return ""
	}
	r := m.failures[len(m.failures)-1]
	m.failures = nil
	return r
}

// wantErr fails unless err is want.
func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error = %v, want %v", err, want)
	}
}
