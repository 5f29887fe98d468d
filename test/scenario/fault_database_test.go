package scenario

import (
	"bytes"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker"
	"github.com/postern-zt/postern/broker/backup"
	"github.com/postern-zt/postern/connector"
	"github.com/postern-zt/postern/netstack/carrier"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	"github.com/postern-zt/postern/proto/frame"
)

// refuses checks that no broker starts on the world's configuration and that the error says
// what is wrong and what to do.
func (w *world) refuses(what string, words ...string) {
	w.t.Helper()
	b, err := broker.New(within(w.t), w.cfg, version, w.log.With("role", "broker"))
	if err == nil {
		b.Close()
		w.t.Fatalf("%s: a broker starts", what)
	}
	says(w.t, what, err, words...)
}

// TestFaultDatabaseLocked: while another program holds the database nobody new gets in, who
// is in goes on, revocation works, and afterwards everything is as before.
func TestFaultDatabaseLocked(t *testing.T) {
	w, s, d, wiki := wikiWorld(t)
	s.startWith(func(*connector.Config) {})
	s.await()
	tn, ref, g := d.open("wiki", carrier.TLS)
	f := tn.tcp(ref, wiki.port())
	defer f.Close()
	other := w.publish("other", "berlin", wiki.target())
	w.allow("ann", "other")

	db := w.database()
	lock, err := db.Conn(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if _, err := lock.ExecContext(w.ctx(), `BEGIN IMMEDIATE`); err != nil {
		t.Fatal(err)
	}
	asked := make(chan error, 1)
	var asking sync.WaitGroup
	defer asking.Wait()
	asking.Go(func() { // it may wait for the lock; nothing below waits for it
		resp, err := d.authorize(other.Name)
		if err == nil {
			t.Errorf("a decision that cannot be written gave %v", resp)
		}
		asked <- err
	})
	echoes(t, f, "who is in goes on")
	w.revoke(g)
	if code, _ := tn.awaitClosed(ref); code != frame.Revoked {
		t.Errorf("the micro-tunnel ended with %v", code)
	}
	says(t, "asking for more", <-asked)
	if _, err := lock.ExecContext(w.ctx(), `ROLLBACK`); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other app is allowed again", func() bool {
		resp, err := d.authorize(other.Name)
		return err == nil && len(resp.Grant) > 0
	})
}

// saveDatabase returns the whole database as one file.
func (w *world) saveDatabase() []byte {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), "copy.db")
	w.exec(`VACUUM INTO '` + path + `'`)
	content, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	return content
}

// putDatabase replaces the database of a broker that stands still.
func (w *world) putDatabase(content []byte) {
	w.t.Helper()
	path := filepath.Join(w.cfg.DataDir, "broker.db")
	for _, journal := range []string{"-wal", "-shm"} {
		if err := os.Remove(path + journal); err != nil && !errors.Is(err, fs.ErrNotExist) {
			w.t.Fatal(err)
		}
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// TestFaultDatabaseDamaged: a broker does not start on a damaged file and names the way out;
// with the file back it starts and serves.
func TestFaultDatabaseDamaged(t *testing.T) {
	w, s, d, wiki := wikiWorld(t)
	w.stopBroker()
	whole := w.saveDatabase()
	damaged := bytes.Clone(whole)
	for i := 4096; i < len(damaged); i++ {
		damaged[i] ^= 0xa5
	}
	for what, content := range map[string][]byte{"damaged pages": damaged, "no database": bytes.Repeat([]byte("text "), 4096)} {
		w.putDatabase(content)
		w.refuses(what, "damaged", "restore the last backup")
	}
	w.putDatabase(whole)
	w.startBroker()
	s.startWith(func(*connector.Config) {})
	s.await()
	reachable(w, d, carrier.TLS, wiki)
}

// TestFaultDatabaseRestored: a backup of yesterday brings the installation back; everybody
// signs in again, what was blocked since stays blocked, and no grant of before is good.
func TestFaultDatabaseRestored(t *testing.T) {
	w, s, d, wiki := wikiWorld(t)
	s.startWith(func(*connector.Config) {})
	s.await()
	_, _, old := d.open("wiki", carrier.TLS)
	secret, err := backup.Passphrase([]byte("a long passphrase for tests"))
	if err != nil {
		t.Fatal(err)
	}
	yesterday := w.backUp(secret)
	w.disableLater("ann")
	var records []byte
	eventually(t, "the audit holds what happened since", func() bool {
		records = w.exportAudit()
		return bytes.Contains(records, []byte("disable user"))
	})
	w.stopBroker()

	w.restore(secret, yesterday, records)
	w.startBroker()
	s.serves()
	if !d.cut(old) {
		t.Error("the relay takes a ticket of before the restore, on whose link no grant is left")
	}
	if _, err := d.authorize("wiki"); err == nil {
		t.Error("a session of before the restore still opens apps")
	}
	if u := w.user("ann"); !u.Disabled {
		t.Error("who was disabled after the backup is enabled again")
	}
	if wiki.hits() != 0 {
		t.Errorf("the app saw %d connections", wiki.hits())
	}
	resp, err := w.admin.users.EnableUser(w.ctx(), connect.NewRequest(&adminv1.UserRef{User: "ann"}))
	must(t, resp, err)
	again := w.device("ann", "ann-phone")
	reachable(w, again, carrier.TLS, wiki)
}

// TestFaultDatabaseCopiedBack: somebody puts yesterday's file back by hand, without a restore.
// The connector knows more than the broker then; it comes back, what it was told to refuse
// stays refused, and what nobody ended can be used.
func TestFaultDatabaseCopiedBack(t *testing.T) {
	w, s, d, wiki := wikiWorld(t)
	s.startWith(func(*connector.Config) {})
	s.await()
	tn, ref, g := d.open("wiki", carrier.TLS)
	other := echo(t)
	w.publish("other", "berlin", other.target())
	w.allow("ann", "other")
	w.stopBroker()
	yesterday := w.saveDatabase()
	w.startBroker()
	s.serves()
	w.revoke(g)
	if code, _ := tn.awaitClosed(ref); code != frame.Revoked {
		t.Errorf("the micro-tunnel ended with %v", code)
	}
	w.stopBroker()
	w.putDatabase(yesterday)
	w.startBroker()
	eventually(t, "the connector has come back", func() bool { return s.conn.Uplink().Connected })
	s.serves()
	if _, err := tn.present(g.Grant); frame.CodeOf(err) != frame.Revoked {
		t.Errorf("the revoked grant: %v, want %v", err, frame.Revoked)
	}
	if wiki.hits() != 0 {
		t.Errorf("the app saw %d connections", wiki.hits())
	}
	tn.tcp(tn.accepted(d.granted("other").Grant), other.port()).Close()
}

func (w *world) backUp(secret backup.Secret) []byte {
	w.t.Helper()
	m, err := broker.OpenMaintenance(w.ctx(), w.cfg, version, w.log)
	if err != nil {
		w.t.Fatal(err)
	}
	defer m.Close()
	var out bytes.Buffer
	if _, err := m.Backup(w.ctx(), secret, true, &out); err != nil {
		w.t.Fatalf("back up: %v", err)
	}
	return out.Bytes()
}

func (w *world) disableLater(user string) {
	w.t.Helper()
	resp, err := w.admin.users.DisableUser(w.ctx(), connect.NewRequest(&adminv1.UserRef{User: user}))
	must(w.t, resp, err)
}

func (w *world) user(login string) *adminv1.User {
	w.t.Helper()
	resp, err := w.admin.users.ListUsers(w.ctx(), connect.NewRequest(&adminv1.ListUsersRequest{}))
	for _, u := range must(w.t, resp, err).Users {
		if u.Name == login || u.Subject == login || u.Mail == login {
			return u
		}
	}
	w.t.Fatalf("there is no user %s", login)
	return nil
}

// exportAudit is the audit as it was exported to another machine.
func (w *world) exportAudit() []byte {
	w.t.Helper()
	stream, err := w.admin.audit.Export(w.ctx(), connect.NewRequest(&adminv1.ExportRequest{}))
	if err != nil {
		w.t.Fatal(err)
	}
	defer stream.Close()
	var out bytes.Buffer
	for stream.Receive() {
		out.Write(stream.Msg().Lines)
	}
	if err := stream.Err(); err != nil {
		w.t.Fatalf("export the audit: %v", err)
	}
	return out.Bytes()
}

// restore brings a backup back into an empty data directory; until it is finished no broker
// starts there.
func (w *world) restore(secret backup.Secret, saved, records []byte) {
	w.t.Helper()
	if err := os.RemoveAll(w.cfg.DataDir); err != nil {
		w.t.Fatal(err)
	}
	if _, err := broker.Restore(w.ctx(), w.cfg, version, w.log, bytes.NewReader(saved), secret); err != nil {
		w.t.Fatalf("restore: %v", err)
	}
	w.refuses("a restore that was not finished", "restore --finish")
	m, err := broker.OpenMaintenance(w.ctx(), w.cfg, version, w.log)
	if err != nil {
		w.t.Fatal(err)
	}
	defer m.Close()
	report, err := m.FinishRestore(w.ctx(), bytes.NewReader(records))
	if err != nil {
		w.t.Fatalf("finish the restore: %v", err)
	}
	w.t.Logf("finished: %d taken away again, %d listed", len(report.Applied), len(report.Listed))
}

// TestFaultPortTaken: a broker whose port another program has says so, for TCP and for UDP,
// leaves nothing open, and starts when the port is free.
func TestFaultPortTaken(t *testing.T) {
	w := newWorld(t)
	w.stopBroker()
	tcp, err := net.Listen("tcp", w.cfg.Listen)
	if err != nil {
		t.Fatal(err)
	}
	w.refuses("TCP port taken", "address already in use", "Choose another with listen")
	tcp.Close()
	udp, err := net.ListenPacket("udp", w.cfg.Listen)
	if err != nil {
		t.Fatal(err)
	}
	w.refuses("UDP port taken", "address already in use", "UDP", "Choose another with listen")
	udp.Close()
	w.startBroker()
}
