package backup_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/broker/backup"
	"github.com/postern-zt/postern/broker/keys"
	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/broker/store/storetest"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
)

func TestMain(m *testing.M) { storetest.Main(m, storetest.Leaks) }

var discard = slog.New(slog.DiscardHandler)

// site is a broker's lasting state.
type site struct {
	*store.Store
	kek    *keys.KEK
	broker ids.BrokerID
	log    *audit.Log
	keys   seal.Keys
}

func newLog(t *testing.T, s *store.Store, kek *keys.KEK, broker ids.BrokerID) (*audit.Log, seal.Keys) {
	t.Helper()
	signer := seal.NewSigner(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{3}, ed25519.SeedSize)))
	l, err := audit.New(audit.Config{Store: s, Broker: broker, Signer: signer, Sealer: kek, Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	return l, seal.NewKeys(signer.Public())
}

// newSite fills a database with a CA, audit records and meta values.
func newSite(t *testing.T, s *store.Store) site {
	t.Helper()
	b := site{Store: s, kek: keys.NewKEK(), broker: ids.New[ids.BrokerID]()}
	r, err := keys.New(keys.Config{Store: s, KEK: b.kek, Broker: b.broker, Org: "org_x"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Ensure(t.Context(), keys.CAKey); err != nil {
		t.Fatal(err)
	}
	if err := s.SetMeta(t.Context(), "odd", "line\nbreak \"quoted\" \u2028 äöü"); err != nil {
		t.Fatal(err)
	}
	b.log, b.keys = newLog(t, s, b.kek, b.broker)
	b.record(t, audit.SignedIn)
	return b
}

func (b site) record(t *testing.T, kind audit.Kind) {
	t.Helper()
	_, err := b.log.Append(t.Context(), audit.Event{Kind: kind, User: ids.New[ids.UserID](), Personal: map[string]string{"mail": "a@b"}})
	if err != nil {
		t.Fatal(err)
	}
}

func passphrase(t *testing.T, p string) backup.Secret {
	t.Helper()
	s, err := backup.Passphrase([]byte(p))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func keyFile(t *testing.T) backup.Secret {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, backup.NewKeyFile(), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := backup.KeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func create(t *testing.T, b site, secret backup.Secret) []byte {
	t.Helper()
	var file bytes.Buffer
	if _, err := backup.Create(t.Context(), b, b.kek, secret, &file); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

func restore(t *testing.T, file []byte, secret backup.Secret, dsn string) (*store.Store, backup.Manifest) {
	t.Helper()
	m, err := backup.Restore(t.Context(), bytes.NewReader(file), secret, store.Config{DSN: dsn, Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	return storetest.Open(t, dsn), m
}

// dump returns all rows as text, without the tables that a restore changes on purpose.
func dump(t *testing.T, s *store.Store) map[string][]string {
	t.Helper()
	all := make(map[string][]string)
	table := ""
	err := s.Dump(t.Context(), func(store.DumpHead) error { return nil }, func(i store.DumpItem) error {
		if i.Row == nil {
			table = i.Table
			all[table] = nil
			return nil
		}
		text := fmt.Sprint(i.Row)
		text = strings.NewReplacer(" true]", " 1]", " false]", " 0]", " true ", " 1 ", " false ", " 0 ").Replace(text)
		all[table] = append(all[table], text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, changed := range []string{"meta", "changes", "change_counter"} {
		delete(all, changed)
	}
	return all
}

// targets runs f for each pair of engines.
func targets(t *testing.T, f func(t *testing.T, from *store.Store, to string)) {
	for name, fresh := range map[string]func(*testing.T) string{"to-sqlite": storetest.SQLite, "to-postgres": storetest.Postgres} {
		t.Run(name, func(t *testing.T) {
			storetest.Each(t, func(t *testing.T, open func() *store.Store) { f(t, open(), fresh(t)) })
		})
	}
}

func TestRestoreBringsEverythingBack(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		b, secret := newSite(t, open()), keyFile(t)
		if err := b.log.SignSegments(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		file := create(t, b, secret)
		for _, to := range []string{storetest.SQLite(t), storetest.Postgres(t)} {
			got, m := restore(t, file, secret, to)
			if diff := cmp.Diff(dump(t, b.Store), dump(t, got)); diff != "" {
				t.Errorf("rows, -backed up +restored:\n%s", diff)
			}
			checkRestored(t, b, got, m)
		}
	})
}

func checkRestored(t *testing.T, b site, got *store.Store, m backup.Manifest) {
	t.Helper()
	kek, err := keys.ParseKEK(m.KEK)
	if err != nil || kek.ID() != b.kek.ID() || m.KEKID != kek.ID() {
		t.Errorf("key-encryption key = %v, %v, want %s", kek, err, b.kek.ID())
	}
	if v, err := got.Meta(t.Context(), "odd"); err != nil || v != "line\nbreak \"quoted\" \u2028 äöü" {
		t.Errorf("meta = %q, %v", v, err)
	}
	before, err := b.Version(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if after, err := got.Version(t.Context()); err != nil || after.Epoch != before.Epoch+1 || after.Seq <= before.Seq {
		t.Errorf("version = %+v, %v, want the epoch after %+v", after, err, before)
	}
	if pending, err := got.RestorePending(t.Context()); err != nil || !pending {
		t.Errorf("RestorePending = %v, %v, want true", pending, err)
	}
	log, trusted := newLog(t, got, b.kek, b.broker)
	if r, err := log.Verify(t.Context(), audit.Trust{Keys: trusted}); err != nil || !r.OK() || r.Records == 0 {
		t.Errorf("audit after restore: %+v, %v", r, err)
	}
}

func TestBackupRunsBesideWriters(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		b, secret := newSite(t, open()), keyFile(t)
		var file bytes.Buffer
		started := make(chan struct{})
		w := writerFunc(func(p []byte) (int, error) {
			select {
			case <-started:
			default: // the first bytes: write into the database now, from the same goroutine
				close(started)
				b.record(t, audit.SignedIn)
			}
			return file.Write(p)
		})
		if _, err := backup.Create(t.Context(), b, nil, secret, w); err != nil {
			t.Fatal(err)
		}
		b.record(t, audit.SignedIn)
		m, err := backup.Check(&file, secret)
		if err != nil || m.KEK != nil {
			t.Errorf("Check = %+v, %v, want no key", m, err)
		}
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestRestoreNeedsAnEmptyDatabase(t *testing.T) {
	storetest.EachDSN(t, func(t *testing.T, dsn string) {
		b, secret := newSite(t, storetest.Open(t, dsn)), keyFile(t)
		file := create(t, b, secret)
		_, err := backup.Restore(t.Context(), bytes.NewReader(file), secret, store.Config{DSN: dsn, Log: discard})
		if !errors.Is(err, store.ErrConflict) || !strings.Contains(err.Error(), "not empty") {
			t.Errorf("Restore over a live database = %v, want ErrConflict", err)
		}
	})
}

func TestFailedRestoreLeavesNothing(t *testing.T) {
	storetest.EachDSN(t, func(t *testing.T, dsn string) {
		b, secret := newSite(t, storetest.Open(t, storetest.SQLite(t))), keyFile(t)
		for range 200 {
			b.record(t, audit.SignedIn)
		}
		file := create(t, b, secret)
		_, err := backup.Restore(t.Context(), bytes.NewReader(file[:len(file)-100]), secret, store.Config{DSN: dsn, Log: discard})
		if !errors.Is(err, backup.ErrDamaged) {
			t.Errorf("Restore of a cut file = %v, want ErrDamaged", err)
		}
		s := storetest.Open(t, dsn)
		if heads, err := s.AuditHeads(t.Context()); err != nil || len(heads) != 0 {
			t.Errorf("audit heads after a failed restore = %v, %v, want none", heads, err)
		}
	})
}

func TestSecrets(t *testing.T) {
	b := newSite(t, storetest.Open(t, storetest.SQLite(t)))
	right := passphrase(t, "correct horse battery")
	file := create(t, b, right)
	if bytes.Contains(file, []byte("quoted")) || bytes.Contains(file, b.kek.Export()) {
		t.Error("the backup is readable")
	}
	if _, err := backup.Check(bytes.NewReader(file), right); err != nil {
		t.Errorf("Check = %v", err)
	}
	for name, s := range map[string]backup.Secret{"other passphrase": passphrase(t, "correct horse bakery"), "key file": keyFile(t)} {
		if _, err := backup.Check(bytes.NewReader(file), s); !errors.Is(err, backup.ErrWrongKey) {
			t.Errorf("Check with the %s = %v, want ErrWrongKey", name, err)
		}
	}
	if _, err := backup.Passphrase([]byte("short")); !errors.Is(err, backup.ErrWeak) {
		t.Errorf("Passphrase(short) = %v, want ErrWeak", err)
	}
	if text := fmt.Sprintf("%v %+v %#v", right, right, right); strings.Contains(text, "horse") || strings.Contains(text, "99 111 114") {
		t.Errorf("the secret prints: %s", text)
	}
}

func TestEveryChangeIsNoticed(t *testing.T) {
	b, secret := newSite(t, storetest.Open(t, storetest.SQLite(t))), keyFile(t)
	for range 300 {
		b.record(t, audit.SignedIn)
	}
	file := create(t, b, secret)
	if len(file) < 2*(64<<10) {
		t.Fatalf("the file has %d bytes: too few chunks for this test", len(file))
	}
	for i := 0; i < len(file); i += 997 {
		changed := bytes.Clone(file)
		changed[i] ^= 1
		if _, err := backup.Check(bytes.NewReader(changed), secret); err == nil {
			t.Errorf("a change at byte %d was not noticed", i)
		}
		if _, err := backup.Check(bytes.NewReader(file[:i]), secret); err == nil {
			t.Errorf("a cut at byte %d was not noticed", i)
		}
	}
	if _, err := backup.Check(bytes.NewReader(append(file, 0)), secret); err == nil {
		t.Error("an appended byte was not noticed")
	}
}

func FuzzCheck(f *testing.F) {
	secret, err := backup.Passphrase([]byte("correct horse battery"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("postern-backup-1\n{\"kdf\":\"argon2id\",\"salt\":\"AAAAAAAAAAAAAAAAAAAAAA==\",\"time\":1,\"memory_kib\":8,\"threads\":1}\nxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"))
	f.Add([]byte("postern-backup-1\n{\"kdf\":\"argon2id\",\"time\":4294967295,\"memory_kib\":4294967295,\"threads\":255}\n"))
	f.Fuzz(func(t *testing.T, file []byte) {
		if _, err := backup.Check(bytes.NewReader(file), secret); err == nil {
			t.Error("Check accepted a file that nobody made")
		}
	})
}

// hooks records what Recover asked for.
type hooks struct {
	log     *audit.Log
	out     int
	applied []ids.UserID
}

func (h *hooks) SignOutAll(context.Context) error { h.out++; return nil }

func (h *hooks) Reapply(ctx context.Context, r audit.Record) (backup.Outcome, error) {
	if r.Kind != audit.Revoked {
		return backup.Unable, nil
	}
	h.applied = append(h.applied, r.User)
	_, err := h.log.Append(ctx, audit.Event{Kind: audit.Revoked, User: r.User})
	return backup.Applied, err
}

// later returns an export of the lost broker after one sign-in, one block and one change.
func later(t *testing.T, b site, blocked ids.UserID) io.ReadSeeker {
	t.Helper()
	b.record(t, audit.SignedIn)
	if _, err := b.log.Append(t.Context(), audit.Event{Kind: audit.Revoked, User: blocked}); err != nil {
		t.Fatal(err)
	}
	b.record(t, audit.Changed)
	var file bytes.Buffer
	if err := b.log.Export(t.Context(), &file, "", 0); err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(file.Bytes())
}

func TestRecoverAppliesLaterBlocks(t *testing.T) {
	targets(t, func(t *testing.T, from *store.Store, to string) {
		b, secret := newSite(t, from), keyFile(t)
		file := create(t, b, secret)
		blocked := ids.New[ids.UserID]()
		export := later(t, b, blocked)
		lost, err := b.log.Head(t.Context(), string(b.broker))
		if err != nil {
			t.Fatal(err)
		}
		s, _ := restore(t, file, secret, to)
		log, trusted := newLog(t, s, b.kek, b.broker)
		h := &hooks{log: log}
		rec := backup.Recovery{Store: s, Audit: log, Hooks: h, Later: export, Trusted: trusted}
		report, err := backup.Recover(t.Context(), rec)
		if err != nil || report.Appended != 3 || len(report.Applied) != 1 || len(report.Listed) != 1 || h.out != 1 || report.Forked {
			t.Errorf("Recover = %+v, %v, signed out %d times", report, err, h.out)
		}
		if len(h.applied) != 1 || h.applied[0] != blocked {
			t.Errorf("blocked again = %v, want %s", h.applied, blocked)
		}
		// Whoever remembered the head of the lost broker still finds it.
		if r, err := log.Verify(t.Context(), audit.Trust{Keys: trusted, Remembered: []audit.Head{lost}}); err != nil || !r.OK() {
			t.Errorf("Verify after recovery = %+v, %v", r, err)
		}
		if report, err := backup.Recover(t.Context(), rec); err != nil || report.Pending || h.out != 1 {
			t.Errorf("second Recover = %+v, %v, want nothing to do", report, err)
		}
	})
}

func TestRecoverRefusesATamperedExport(t *testing.T) {
	b, secret := newSite(t, storetest.Open(t, storetest.SQLite(t))), keyFile(t)
	file := create(t, b, secret)
	export, err := io.ReadAll(later(t, b, ids.New[ids.UserID]()))
	if err != nil {
		t.Fatal(err)
	}
	s, _ := restore(t, file, secret, storetest.SQLite(t))
	log, trusted := newLog(t, s, b.kek, b.broker)
	h := &hooks{log: log}
	tampered := bytes.Replace(export, []byte(`"kind":"revoked"`), []byte(`"kind":"granted"`), 1)
	if _, err := backup.Recover(t.Context(), backup.Recovery{Store: s, Audit: log, Hooks: h, Later: bytes.NewReader(tampered), Trusted: trusted}); err == nil {
		t.Error("Recover used an export that does not verify")
	}
	if pending, err := s.RestorePending(t.Context()); err != nil || !pending || len(h.applied) != 0 {
		t.Errorf("after a refused recovery: pending %v, %v, applied %v", pending, err, h.applied)
	}
}

func TestForkedChainStillBlocks(t *testing.T) {
	b, secret := newSite(t, storetest.Open(t, storetest.SQLite(t))), keyFile(t)
	file := create(t, b, secret)
	blocked := ids.New[ids.UserID]()
	export := later(t, b, blocked)
	s, _ := restore(t, file, secret, storetest.SQLite(t))
	log, trusted := newLog(t, s, b.kek, b.broker)
	if _, err := log.Append(t.Context(), audit.Event{Kind: audit.Started}); err != nil { // too early
		t.Fatal(err)
	}
	h := &hooks{log: log}
	report, err := backup.Recover(t.Context(), backup.Recovery{Store: s, Audit: log, Hooks: h, Later: export, Trusted: trusted})
	if err != nil || !report.Forked || len(h.applied) != 1 || h.applied[0] != blocked {
		t.Errorf("Recover = %+v, %v, blocked again %v", report, err, h.applied)
	}
}
