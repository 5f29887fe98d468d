package scenario

import (
	"database/sql"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker"
	"github.com/postern-zt/postern/broker/identity/identitytest"
	"github.com/postern-zt/postern/broker/store/storetest"
	"github.com/postern-zt/postern/netstack/carrier"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	"github.com/postern-zt/postern/proto/frame"
)

// TestFaultDatabaseReadOnly: when the database of a running broker takes no more writes,
// nobody new gets in, who is in goes on, and revocation works and stays.
func TestFaultDatabaseReadOnly(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) {
		w := newWorld(t, "ann")
		readOnlyStory(t, w, w.readOnlySQLite)
	})
	t.Run("postgres", func(t *testing.T) {
		dsn := storetest.Postgres(t)
		w := newWorldWith(t, func(c *broker.Config) { c.Database = dsn }, "ann")
		readOnlyStory(t, w, func() (heal func()) { return w.readOnlyPostgres(dsn) })
	})
}

func readOnlyStory(t *testing.T, w *world, readOnly func() (heal func())) {
	wiki, other := echo(t), echo(t)
	s := w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	w.publish("other", "berlin", other.target())
	w.allow("ann", "wiki")
	w.allow("ann", "other")
	d := w.device("ann", "ann-laptop")
	tn, ref, g := d.open("wiki", carrier.TLS)
	f := tn.tcp(ref, wiki.port())
	defer f.Close()
	echoes(t, f, "before")

	heal := readOnly()
	eventually(t, "an administrator is told that the database is read-only", func() bool {
		_, err := w.admin.sites.CreateSite(w.ctx(), connect.NewRequest(&adminv1.CreateSiteRequest{Name: "munich"}))
		return err != nil && strings.Contains(err.Error(), "read-only")
	})
	resp, err := d.authorize("other")
	if err == nil {
		t.Errorf("a decision that cannot be written gave %v", resp)
	}
	w.staysOut("ann")
	echoes(t, f, "who is in goes on")
	again := tn.tcp(ref, wiki.port()) // a live grant needs no broker
	echoes(t, again, "and opens more")
	again.Close()
	if other.hits() != 0 {
		t.Errorf("the other app saw %d connections", other.hits())
	}
	w.revoke(g)
	if code, _ := tn.awaitClosed(ref); code != frame.Revoked {
		t.Errorf("the micro-tunnel ended with %v", code)
	}
	wiki.awaitEnds(t, 2)

	heal()
	s.serves()
	eventually(t, "the other app is allowed again", func() bool {
		resp, err := d.authorize("other")
		return err == nil && len(resp.Grant) > 0
	})
	if _, err := tn.present(g.Grant); frame.CodeOf(err) != frame.Revoked {
		t.Errorf("the revoked grant: %v, want %v", err, frame.Revoked)
	}
}

// staysOut checks that a user cannot sign in on another device.
func (w *world) staysOut(user string) {
	w.t.Helper()
	d := w.stranger("another device")
	tokens, err := identitytest.SignIn(w.ctx(), w.signInAt(d.member.KeyID()), identitytest.Person{Login: user, Password: password})
	if err == nil {
		err = d.redeem(tokens)
	}
	if err == nil {
		w.t.Error(errEnrolled)
	}
}

// readOnlySQLite makes SQLite itself take the file for one that it must not write: a write
// version that it does not know (sqlite.org/fileformat2.html, section 1.3.3), which root
// cannot overrule as it can a file's mode. It is healed with a copy of before.
func (w *world) readOnlySQLite() (heal func()) {
	w.t.Helper()
	const writeVersion, unknown = 18, 3
	before := w.saveDatabase()
	db := w.database()
	defer db.Close()
	var page []byte
	if err := db.QueryRowContext(w.ctx(), `SELECT data FROM sqlite_dbpage WHERE pgno = 1`).Scan(&page); err != nil {
		w.t.Fatal(err)
	}
	page[writeVersion] = unknown
	if _, err := db.ExecContext(w.ctx(), `UPDATE sqlite_dbpage SET data = $1 WHERE pgno = 1`, page); err != nil {
		w.t.Fatal(err)
	}
	return func() {
		w.t.Helper()
		w.proc.tolerate = true // it may complain that it could not write its last words
		_ = w.proc.stop()      // tolerated
		w.putDatabase(before)
		w.startBroker()
	}
}

// readOnlyPostgres makes the server read-only for the broker, as one that has lost its
// primary is: every connection is replaced by one that may not write.
func (w *world) readOnlyPostgres(dsn string) (heal func()) {
	w.t.Helper()
	db, err := sql.Open("pgx", dsn) // the driver is broker/store's
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { db.Close() })
	conn, err := db.Conn(w.t.Context()) // of before: it may write
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	exec := func(stmt string) {
		w.t.Helper()
		if _, err := conn.ExecContext(w.ctx(), stmt); err != nil {
			w.t.Fatalf("%s: %v", stmt, err)
		}
	}
	var name string
	if err := conn.QueryRowContext(w.ctx(), `SELECT current_database()`).Scan(&name); err != nil {
		w.t.Fatal(err)
	}
	const others = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`
	exec(`ALTER DATABASE ` + name + ` SET default_transaction_read_only = on`)
	exec(others)
	return func() {
		w.t.Helper()
		exec(`ALTER DATABASE ` + name + ` RESET default_transaction_read_only`)
		exec(others)
		eventually(w.t, "the revocation is stored after all", func() bool {
			var n int
			err := conn.QueryRowContext(w.ctx(), `SELECT count(*) FROM revocations`).Scan(&n)
			return err == nil && n > 0
		})
	}
}
