package scenario

import (
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/netstack/carrier"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	"github.com/postern-zt/postern/proto/frame"
)

// database opens the broker's database beside the broker, as a thief or a fault would.
func (w *world) database() *sql.DB {
	w.t.Helper()
	u := url.URL{Scheme: "file", Path: filepath.Join(w.cfg.DataDir, "broker.db"), RawQuery: "_pragma=busy_timeout(10000)"}
	db, err := sql.Open("sqlite", u.String()) // the driver is broker/store's
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { db.Close() })
	return db
}

// exec runs statements on the broker's database.
func (w *world) exec(statements ...string) {
	w.t.Helper()
	db := w.database()
	defer db.Close()
	for _, s := range statements {
		if _, err := db.ExecContext(w.ctx(), s); err != nil {
			w.t.Fatalf("%s: %v", s, err)
		}
	}
}

// refuseWrites makes the database take no new rows into tables, as a full disk does, until
// heal is called.
func (w *world) refuseWrites(tables ...string) (heal func()) {
	w.t.Helper()
	var undo []string
	for _, table := range tables {
		for _, act := range []string{"INSERT", "UPDATE", "DELETE"} {
			name := "full_" + table + "_" + act
			w.exec(fmt.Sprintf(`CREATE TRIGGER %s BEFORE %s ON %s BEGIN SELECT RAISE(ABORT, 'the disk is full'); END`, name, act, table))
			undo = append(undo, "DROP TRIGGER "+name)
		}
	}
	return func() { w.t.Helper(); w.exec(undo...) }
}

// tables lists all tables of the database.
func (w *world) tables() []string {
	w.t.Helper()
	rows, err := w.database().QueryContext(w.ctx(), `SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'`)
	if err != nil {
		w.t.Fatal(err)
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			w.t.Fatal(err)
		}
		all = append(all, name)
	}
	if err := rows.Err(); err != nil {
		w.t.Fatal(err)
	}
	return all
}

// TestNoGrantBeforeTheDecisionIsDurable: whatever of a permission cannot be stored, nothing
// is given and the app is not touched (invariant 1).
func TestNoGrantBeforeTheDecisionIsDurable(t *testing.T) {
	wiki := echo(t)
	w := newWorld(t, "ann")
	w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	w.allow("ann", "wiki")
	d := w.device("ann", "ann-laptop")
	for _, table := range []string{"decisions", "audit_records", "grants"} {
		heal := w.refuseWrites(table)
		resp, err := d.authorize("wiki")
		if err == nil && (len(resp.Grant) != 0 || resp.GrantId != "") {
			t.Errorf("with %s full a grant was given", table)
		}
		if err == nil {
			t.Errorf("with %s full the answer is %v, want an error", table, resp.Receipt)
		}
		heal()
	}
	if wiki.hits() != 0 {
		t.Errorf("the app saw %d connections", wiki.hits())
	}
	tn, ref, _ := d.open("wiki", carrier.TLS)
	tn.tcp(ref, wiki.port()).Close()
	if wiki.hits() != 1 {
		t.Errorf("with space on the disk the app saw %d connections, want 1", wiki.hits())
	}
}

// TestNoDialBeforeTheFlowIsRecorded: a connector that cannot write its flow record does
// not dial (invariant 1, decisions rule 31).
func TestNoDialBeforeTheFlowIsRecorded(t *testing.T) {
	wiki := echo(t)
	w := newWorld(t, "ann")
	s := w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	w.allow("ann", "wiki")
	d := w.device("ann", "ann-laptop")
	flows := filepath.Join(s.store.Dir(), "flows")
	if err := os.Rename(flows, flows+".gone"); err != nil {
		t.Fatal(err)
	}
	tn, ref, _ := d.open("wiki", carrier.TLS)
	if got := tn.tcpCode(ref, wiki.port()); got != frame.AuditUnavailable {
		t.Errorf("a flow that cannot be recorded: %v, want %v", got, frame.AuditUnavailable)
	}
	if wiki.hits() != 0 {
		t.Errorf("the app saw %d connections", wiki.hits())
	}
	if err := os.Rename(flows+".gone", flows); err != nil {
		t.Fatal(err)
	}
	tn.tcp(ref, wiki.port()).Close()
}

// TestRevocationNeedsNoDisk: with a full disk nobody new gets in, and whoever is told to
// go, goes; what was revoked meanwhile stays revoked over a restart.
func TestRevocationNeedsNoDisk(t *testing.T) {
	wiki := echo(t)
	w := newWorld(t, "ann", "bob")
	w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	w.allow("ann", "wiki")
	w.allow("bob", "wiki")
	ann, bob := w.device("ann", "ann-laptop"), w.device("bob", "bob-laptop")
	annLink, annRef, annGrant := ann.open("wiki", carrier.TLS)
	bobLink, bobRef, _ := bob.open("wiki", carrier.QUIC)
	defer annLink.tcp(annRef, wiki.port()).Close()
	defer bobLink.tcp(bobRef, wiki.port()).Close()
	heal := w.refuseWrites(w.tables()...)
	resp, err := w.admin.sessions.RevokeGrant(w.ctx(), connect.NewRequest(&adminv1.GrantRef{Grant: annGrant.GrantId}))
	if fx := must(t, resp, err); fx.Grants != 1 {
		t.Errorf("effect: %v", fx)
	}
	if code, _ := annLink.awaitClosed(annRef); code != frame.Revoked {
		t.Errorf("ann's micro-tunnel ended with %v", code)
	}
	// That bob is disabled cannot be written down, and the answer says so; his access ends.
	if _, err := w.admin.users.DisableUser(w.ctx(), connect.NewRequest(&adminv1.UserRef{User: "bob"})); err == nil {
		t.Error("disabling was stored on a full disk")
	}
	if code, _ := bobLink.awaitClosed(bobRef); code != frame.Revoked {
		t.Errorf("bob's micro-tunnel ended with %v", code)
	}
	wiki.awaitEnds(t, 2)
	if r, err := ann.authorize("wiki"); err == nil {
		t.Errorf("a full disk gave %v", r)
	}
	heal()
	eventually(t, "the revocations are stored", func() bool { return w.count("revocations") >= 2 })
	if _, err := annLink.present(annGrant.Grant); frame.CodeOf(err) != frame.Revoked {
		t.Errorf("the revoked grant again: %v", err)
	}
}

// count is how many rows a table has.
func (w *world) count(table string) (n int) {
	w.t.Helper()
	db := w.database()
	defer db.Close()
	if err := db.QueryRowContext(w.ctx(), "SELECT count(*) FROM "+table).Scan(&n); err != nil {
		w.t.Fatal(err)
	}
	return n
}
