package broker

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/broker/backup"
	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/keys"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/session"
	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
)

var quiet = slog.New(slog.DiscardHandler)

func testConfig(t *testing.T) Config {
	cfg := DefaultConfig(filepath.Join(t.TempDir(), "data"), "")
	cfg.Listen, cfg.URL = "127.0.0.1:0", "https://127.0.0.1:8443"
	return cfg
}

// firstStart makes a broker in the directory of cfg and ends it.
func firstStart(t *testing.T, cfg Config) {
	t.Helper()
	b, err := New(t.Context(), cfg, "test", quiet)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

func maintain(t *testing.T, cfg Config) *Maintenance {
	t.Helper()
	m, err := OpenMaintenance(t.Context(), cfg, "test", quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func secret(t *testing.T) backup.Secret {
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

func TestMaintenanceMakesNoBroker(t *testing.T) {
	cfg := testConfig(t)
	if _, err := OpenMaintenance(t.Context(), cfg, "test", quiet); !errors.Is(err, ErrNoBroker) {
		t.Errorf("OpenMaintenance = %v, want %v", err, ErrNoBroker)
	}
	if _, err := os.Stat(cfg.DataDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory was made: %v", err)
	}
}

// access is a device with a live session and a live grant.
type access struct {
	device  registry.Device
	session session.Session
	grant   *grants.Grant
}

func giveAccess(t *testing.T, b *Broker) access {
	t.Helper()
	ctx, now := t.Context(), time.Now()
	if err := b.openLedger(ctx); err != nil {
		t.Fatal(err)
	}
	u, _, err := b.identity.CreateUser(ctx, "ann", "Ann", "")
	if err != nil {
		t.Fatal(err)
	}
	spki, key := deviceKey(t)
	d, err := b.registry.EnrolDevice(ctx, registry.Device{User: u.ID, Name: "laptop", Identity: registry.Identity{Key: key, SPKI: spki}}, now)
	if err != nil {
		t.Fatal(err)
	}
	s, _, err := b.sessions.Create(ctx, session.Session{User: u.ID, Device: d.ID, DeviceKey: key, ACR: "urn:postern:acr:password", AMR: []string{"pwd"}, AuthTime: now, MaxAge: time.Hour}, now)
	if err != nil {
		t.Fatal(err)
	}
	g, _, err := b.ledger.Issue(ctx, grants.Grant{
		Receipt: ids.NewReceipt(), Session: s.ID, User: u.ID, Device: d.ID, PeerKind: grant.PeerDevice, PeerKey: key,
		App: ids.New[ids.AppID](), AppName: "wiki", Ports: []grant.Ports{{Network: grant.TCP, First: 80, Last: 80}},
		Verbs: []string{"connect"}, Outage: catalog.Outage{Mode: grant.OutageCut}, Connectors: []ids.ConnectorID{ids.New[ids.ConnectorID]()}, HardEnd: now.Add(time.Hour),
	}, b.ledger.Sequence(), now)
	if err != nil {
		t.Fatal(err)
	}
	return access{d, s, g}
}

func deviceKey(t *testing.T) ([]byte, ids.KeyID) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&priv.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return spki, ids.KeyIDOf(spki)
}

// TestRestoreBringsNoAccessBack: what was open in the backup is closed before anybody is
// served, and what was taken away afterwards stays away.
func TestRestoreBringsNoAccessBack(t *testing.T) {
	ctx, cfg := t.Context(), testConfig(t)
	firstStart(t, cfg)
	lost := maintain(t, cfg)
	had := giveAccess(t, lost.b)
	var saved bytes.Buffer
	sec := secret(t)
	if _, err := lost.Backup(ctx, sec, true, &saved); err != nil {
		t.Fatal(err)
	}
	blocked := audit.Event{Kind: audit.Changed, Device: had.device.ID, Details: map[string]string{"what": "block device"}}
	if _, err := lost.b.audit.Append(ctx, blocked); err != nil {
		t.Fatal(err)
	}
	var later bytes.Buffer
	if err := lost.b.audit.Export(ctx, &later, "", 0); err != nil {
		t.Fatal(err)
	}

	cfg = testConfig(t)
	if _, err := Restore(ctx, cfg, "test", quiet, bytes.NewReader(saved.Bytes()), sec); err != nil {
		t.Fatal(err)
	}
	if _, err := New(ctx, cfg, "test", quiet); !errors.Is(err, ErrRestorePending) {
		t.Errorf("a half restored broker starts: %v, want %v", err, ErrRestorePending)
	}
	m := maintain(t, cfg)
	report, err := m.FinishRestore(ctx, bytes.NewReader(later.Bytes()))
	if err != nil || len(report.Applied) != 1 || len(report.Listed) != 0 {
		t.Fatalf("FinishRestore = %+v, %v; want one block applied", report, err)
	}
	requireClosed(t, m.b, had)
	firstStart(t, cfg)
}

func requireClosed(t *testing.T, b *Broker, had access) {
	t.Helper()
	ctx := t.Context()
	if s, err := b.sessions.Session(ctx, had.session.ID); err != nil || s.EndCause != session.CauseRestore {
		t.Errorf("session = %+v, %v; want it ended by the restore", s, err)
	}
	if g, ok := b.ledger.Grant(had.grant.ID); ok {
		t.Errorf("the grant %v is live", g.ID)
	}
	if err := b.openLedger(ctx); err != nil { // as the next start reads it
		t.Fatal(err)
	}
	if _, ok := b.ledger.Grant(had.grant.ID); ok || b.ledger.Queued() != 0 {
		t.Error("the end of the grant is not durable")
	}
	if d, err := b.registry.Device(ctx, had.device.ID); err != nil || d.State != registry.Blocked {
		t.Errorf("device = %+v, %v; want it blocked again", d, err)
	}
}

func TestReapply(t *testing.T) {
	cfg := testConfig(t)
	firstStart(t, cfg)
	m := maintain(t, cfg)
	had := giveAccess(t, m.b)
	changed := func(what string, e audit.Event, details ...string) audit.Record {
		e.Kind, e.Details = audit.Changed, map[string]string{"what": what}
		for i := 0; i < len(details); i += 2 {
			e.Details[details[i]] = details[i+1]
		}
		return audit.Record{Event: e}
	}
	tests := []struct {
		name string
		rec  audit.Record
		want backup.Outcome
	}{
		{"disable", changed("disable user", audit.Event{User: had.session.User}), backup.Applied},
		{"disable somebody unknown", changed("disable user", audit.Event{User: ids.New[ids.UserID]()}), backup.Ignored},
		{"block", changed("block device", audit.Event{Device: had.device.ID}), backup.Applied},
		{"remove", changed("remove device", audit.Event{Device: had.device.ID}), backup.Applied},
		{"remove again", changed("remove device", audit.Event{Device: had.device.ID}), backup.Applied},
		{"unknown connector", changed("block connector", audit.Event{Connector: ids.New[ids.ConnectorID]()}), backup.Ignored},
		{"unknown token", changed("revoke join token", audit.Event{}, "token", string(ids.New[ids.TokenID]())), backup.Ignored},
		{"unknown app", changed("retire app", audit.Event{App: ids.New[ids.AppID]()}), backup.Ignored},
		{"unknown group", changed("remove member", audit.Event{User: had.session.User}, "group", "staff"), backup.Ignored},
		{"gives", changed("publish app", audit.Event{}), backup.Ignored},
		{"lets in again", changed("enable user", audit.Event{User: had.session.User}), backup.Unable},
		{"a rule", changed("delete rule x", audit.Event{}), backup.Unable},
		{"something of a later version", changed("quarantine device", audit.Event{Device: had.device.ID}), backup.Unable},
		{"an unknown kind", audit.Record{Event: audit.Event{Kind: "new"}}, backup.Unable},
		{"a revocation", audit.Record{Event: audit.Event{Kind: audit.Revoked}}, backup.Ignored},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := (recovery{m.b}).Reapply(t.Context(), tt.rec); err != nil || got != tt.want {
				t.Errorf("Reapply = %v, %v; want %v", got, err, tt.want)
			}
		})
	}
}

func TestRestoreKEK(t *testing.T) {
	ours, theirs := keys.NewKEK(), keys.NewKEK()
	path := filepath.Join(t.TempDir(), "sub", "kek")
	if _, err := restoreKEK(path, backup.Manifest{KEKID: ours.ID()}); err == nil {
		t.Error("a backup without its key was accepted where there is none")
	}
	if wrote, err := restoreKEK(path, backup.Manifest{KEKID: ours.ID(), KEK: ours.Export()}); err != nil || !wrote {
		t.Errorf("restoreKEK = %v, %v; want it written", wrote, err)
	}
	if wrote, err := restoreKEK(path, backup.Manifest{KEKID: ours.ID()}); err != nil || wrote {
		t.Errorf("restoreKEK = %v, %v; want the present one used", wrote, err)
	}
	if _, err := restoreKEK(path, backup.Manifest{KEKID: theirs.ID(), KEK: theirs.Export()}); err == nil {
		t.Error("another key was overwritten or used")
	}
	if got, err := keys.LoadKEK(path); err != nil || got.ID() != ours.ID() {
		t.Errorf("the file holds %v, %v; want %s", got, err, ours.ID())
	}
}

func TestRestoreLeavesABrokerAlone(t *testing.T) {
	ctx, cfg := t.Context(), testConfig(t)
	firstStart(t, cfg)
	var saved bytes.Buffer
	sec := secret(t)
	if _, err := maintain(t, cfg).Backup(ctx, sec, true, &saved); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(ctx, cfg, "test", quiet, bytes.NewReader(saved.Bytes()), sec); err == nil {
		t.Error("a backup was restored over a broker")
	}
	empty := testConfig(t)
	if _, err := Restore(ctx, empty, "test", quiet, bytes.NewReader(saved.Bytes()[:saved.Len()-10]), sec); err == nil {
		t.Error("a cut backup was restored")
	}
	if _, err := os.Stat(empty.DataDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something of a cut backup was written: %v", err)
	}
	firstStart(t, cfg)
}

// export returns an exported audit and the keys for it.
func export(t *testing.T) (lines, pemKeys []byte, pin ids.KeyID) {
	t.Helper()
	cfg := testConfig(t)
	firstStart(t, cfg)
	m := maintain(t, cfg)
	if _, err := m.OwnerLink(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.b.audit.SignSegments(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := m.b.audit.Export(t.Context(), &out, "", 0); err != nil {
		t.Fatal(err)
	}
	pemKeys, err := m.AuditKeys()
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), pemKeys, m.b.ca.Pin()
}

func TestVerifyAuditFileElsewhere(t *testing.T) {
	lines, good, pin := export(t)
	_, others, _ := export(t)
	verify := func(lines, keys []byte, pin ids.KeyID) (bool, error) {
		report, _, err := VerifyAuditFile(bytes.NewReader(lines), keys, pin, audit.Trust{})
		return err == nil && report.OK(), err
	}
	if ok, err := verify(lines, good, pin); !ok {
		t.Errorf("the whole file does not verify: %v", err)
	}
	if _, found, err := VerifyAuditFile(bytes.NewReader(lines), good, ids.KeyID{}, audit.Trust{}); err != nil || found != pin {
		t.Errorf("without a pin: %v, %v; want the pin %v to compare", found, err, pin)
	}
	if ok, _ := verify(lines, others, pin); ok {
		t.Error("the keys of another broker passed under our pin")
	}
	if ok, _ := verify(lines, others, ids.KeyID{}); ok {
		t.Error("the file verified with the keys of another broker")
	}
	ca, _, _ := bytes.Cut(good, []byte("-----END CERTIFICATE-----\n"))
	mixed := append(append(ca, "-----END CERTIFICATE-----\n"...), others...)
	if _, err := verify(lines, mixed, pin); !errors.Is(err, ErrAuditKeys) {
		t.Errorf("signing keys of another CA: %v, want %v", err, ErrAuditKeys)
	}
	if ok, _ := verify(bytes.Replace(lines, []byte("new owner link"), []byte("new Owner link"), 1), good, pin); ok {
		t.Error("a changed file verified")
	}
}

func TestOwnerLinkIsRecorded(t *testing.T) {
	cfg := testConfig(t)
	firstStart(t, cfg)
	m := maintain(t, cfg)
	link, err := m.OwnerLink(t.Context())
	if err != nil || !strings.HasPrefix(link, "https://127.0.0.1:8443/setup#") {
		t.Errorf("OwnerLink gave another form of link: %v", err)
	}
	found, _, err := m.b.audit.Search(t.Context(), audit.Query{Kind: audit.Changed})
	if err != nil || len(found) != 1 || found[0].Details["what"] != "new owner link" {
		t.Errorf("recorded %d, %v; want the new owner link", len(found), err)
	}
}

func FuzzAuditKeys(f *testing.F) {
	ca, err := keysForFuzz()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(ca)
	f.Add(encodeAuditKeys([]byte("x"), [][]byte{[]byte("y")}))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, _, err := parseAuditKeys(data, ids.KeyID{1}); err == nil {
			t.Error("keys passed under a pin that nobody has")
		}
		_, _, _ = parseAuditKeys(data, ids.KeyID{}) // must not panic
	})
}

// keysForFuzz are the keys of a real broker.
func keysForFuzz() ([]byte, error) {
	dir, err := os.MkdirTemp("", "postern-fuzz")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	cfg := DefaultConfig(filepath.Join(dir, "data"), "")
	cfg.Listen, cfg.URL = "127.0.0.1:0", "https://127.0.0.1:8443"
	b, err := New(context.Background(), cfg, "test", quiet)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return (&Maintenance{b}).AuditKeys()
}
