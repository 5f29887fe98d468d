package scenario

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/netstack/control"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	"github.com/postern-zt/postern/proto/chain"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/control/v1/controlv1connect"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
)

// pins is what an administrator reads in `postern-connector status`.
func (s *site) pins() map[ids.ConnectorID]ids.KeyID {
	s.w.t.Helper()
	st := s.conn.Status()
	key, err := ids.ParseKeyID(st.Key)
	if err != nil {
		s.w.t.Fatal(err)
	}
	return map[ids.ConnectorID]ids.KeyID{ids.ConnectorID(st.ID): key}
}

// TestConnectorsSignTheirRecords: what a connector recorded is signed with its own key, so
// that a broker which rewrites it, with all keys of its own, is found out by whoever knows the
// connector's key (invariants 9 and 10).
func TestConnectorsSignTheirRecords(t *testing.T) {
	wiki := echo(t)
	w := newWorld(t, "ann")
	s := w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	w.allow("ann", "wiki")
	d := w.device("ann", "ann-laptop")
	tn, ref, _ := d.open("wiki", bothCarriers[0])
	for range 3 {
		talk(t, tn.tcp(ref, wiki.port()), 100)
	}
	eventually(t, "all records are shipped", func() bool { return len(w.records(chain.FlowClosed)) == 3 })
	v, row := w.verify(), s.row()
	i := slices.IndexFunc(v.Chains, func(c *adminv1.ChainState) bool { return c.Writer == row.Id })
	if !v.Ok || i < 0 || v.Chains[i].OwnSigned != v.Chains[i].Last || v.Chains[i].OwnKey != s.conn.Status().Key {
		t.Fatalf("verify says %v; the connector's key is %s", v, s.conn.Status().Key)
	}
	trust := audit.Trust{Keys: seal.NewKeys(w.signer().Public()), Pinned: s.pins()}
	var shipped chain.Head
	eventually(t, "the connector knows what it has shipped", func() bool {
		var err error
		shipped, err = chain.ParseHead(s.conn.Status().AuditHeads[0])
		return err == nil && shipped.Seq >= v.Chains[i].Last
	})
	trust.Remembered = []chain.Head{shipped} // and what it says that it has shipped
	requireVerifies(t, "the export", w.exportAudit(), trust, "")
	shipForged(t, s)
	if err := s.proc.stop(); err != nil {
		t.Fatal(err)
	}
	rewriteHistory(t, w, row.Id, `"to_app":"100"`, `"to_app":"999"`)
	retold := w.exportAudit()
	requireVerifies(t, "a history that the broker wrote, without the connector's key", retold, audit.Trust{Keys: trust.Keys}, "")
	requireVerifies(t, "a history that the broker wrote", retold, audit.Trust{Keys: trust.Keys, Pinned: trust.Pinned}, "not signed with the connector's key")
	requireVerifies(t, "a history that the broker wrote, by its head", retold, audit.Trust{Keys: trust.Keys, Remembered: trust.Remembered}, "differs from the head that was remembered")
}

// rewriteHistory does what a broker's process can: it changes records of a connector, computes
// all hashes again, and leaves nothing behind that was signed; the broker signs it anew.
func rewriteHistory(t *testing.T, w *world, writer, old, fresh string) {
	t.Helper()
	db := w.database()
	defer db.Close()
	rows, err := db.QueryContext(t.Context(), `SELECT line FROM audit_records WHERE writer = ? ORDER BY seq`, writer)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var lines []string
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, line)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(lines, ""), old) {
		t.Fatalf("no record holds %s", old)
	}
	head := chain.Head{Writer: writer}
	for _, line := range lines {
		rec, err := chain.ParseLine([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		line = strings.Replace(strings.Replace(line, old, fresh, 1), rec.Prev.String(), head.Hash.String(), 1)
		head = chain.Head{Writer: writer, Seq: rec.Seq, Hash: chain.HashLine([]byte(line))}
		if _, err := db.ExecContext(t.Context(), `UPDATE audit_records SET line = ?, hash = ? WHERE writer = ? AND seq = ?`,
			line, head.Hash.String(), writer, rec.Seq); err != nil {
			t.Fatal(err)
		}
	}
	w.exec(`DELETE FROM audit_connector_heads`, `DELETE FROM audit_segments WHERE writer = '`+writer+`'`,
		`UPDATE audit_heads SET hash = '`+head.Hash.String()+`' WHERE writer = '`+writer+`'`)
}

// shipForged sends records in the connector's name that somebody else signed: they are refused
// with a reason, and the refusal is recorded.
func shipForged(t *testing.T, s *site) {
	t.Helper()
	m, err := s.store.Load()
	if err != nil {
		t.Fatal(err)
	}
	to, err := m.Broker()
	if err != nil {
		t.Fatal(err)
	}
	member, err := control.NewMember(s.store.Key(), m.Chain, nil)
	if err != nil {
		t.Fatal(err)
	}
	hc := control.NewClient(control.ClientConfig{Broker: to, Certificate: member.Certificate})
	defer hc.CloseIdleConnections()
	_, line, next, err := chain.Head{Writer: string(m.Connector), Seq: 1000}.Next(chain.Event{Kind: chain.FlowOpened}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	thief, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := chain.SignedHead{Connector: m.Connector, First: next.Seq, Last: next.Seq, Count: 1, Hash: next.Hash, At: time.Now()}.Seal(thief)
	if err != nil {
		t.Fatal(err)
	}
	c := controlv1connect.NewConnectorServiceClient(hc, to.BaseURL())
	_, err = c.Ship(t.Context(), connect.NewRequest(&controlv1.ShipRequest{Records: [][]byte{line}, SignedHead: signed}))
	if connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), "records_signature") {
		t.Errorf("records that another key signed: %v, want records_signature", err)
	}
	eventually(t, "the refusal is recorded", func() bool {
		return slices.ContainsFunc(s.w.records(chain.Denied), func(r chain.Record) bool {
			return r.Connector == m.Connector && slices.Contains(r.Reasons, "records_signature")
		})
	})
}

func requireVerifies(t *testing.T, what string, export []byte, trust audit.Trust, want string) {
	t.Helper()
	r, err := audit.VerifyFile(bytes.NewReader(export), trust)
	switch {
	case err != nil && want == "":
		t.Errorf("%s: %v", what, err)
	case want == "" && !r.OK():
		t.Errorf("%s: %v", what, r.Breaks)
	case want != "" && err == nil && !slices.ContainsFunc(r.Breaks, func(b *audit.Break) bool { return strings.Contains(b.Reason, want) }):
		t.Errorf("%s: breaks %v, want ...%s...", what, r.Breaks, want)
	}
}

// TestCutAuditShows: a broker whose audit was cut while it was down, so that everything in its
// database fits together, is found out by those who remember; one that was only restarted is
// not (decisions rule 31).
func TestCutAuditShows(t *testing.T) {
	w := newWorld(t, "ann")
	s := w.connector("berlin-1", w.site("berlin"))
	d, wiki := w.device("ann", "ann-laptop"), echo(t)
	own := w.verifyWriter("brk_")
	eventually(t, "both remember a head", func() bool { return len(s.conn.Status().AuditHeads) > 0 && len(d.witness.Heads()) > 0 })
	restart := func(app string, change func()) {
		t.Helper()
		w.publish(app, "berlin", wiki.target()) // a record that nobody remembers yet
		before := [2]string{last(s.conn.Status().AuditHeads), last(d.witness.Heads())}
		w.stopBroker()
		change()
		w.startBroker()
		eventually(t, "both have heard of the broker again", func() bool {
			return last(s.conn.Status().AuditHeads) != before[0] && last(d.witness.Heads()) != before[1]
		})
	}
	restart("one", func() {})
	if p := s.conn.Status().AuditProblem + d.witness.Problem(); p != "" {
		t.Fatalf("after a plain restart: %s", p)
	}
	restart("two", func() {
		w.exec(`DELETE FROM audit_records WHERE writer = '`+own+`' AND seq > 3`,
			`DELETE FROM audit_segments WHERE writer = '`+own+`'`,
			`UPDATE audit_heads SET seq = 3, hash = (SELECT hash FROM audit_records WHERE writer = '`+own+`' AND seq = 3) WHERE writer = '`+own+`'`)
	})
	if v := w.verify(); !v.Ok {
		t.Fatalf("the broker itself must not notice, or this test shows nothing: %s", v.Problem)
	}
	eventually(t, "both say so", func() bool {
		return strings.Contains(s.conn.Status().AuditProblem, "lost records") && strings.Contains(d.witness.Problem(), "lost records")
	})
	w.proc.tolerate = true
}

// verifyWriter is the one writer whose id begins so.
func (w *world) verifyWriter(prefix string) string {
	w.t.Helper()
	for _, c := range w.verify().Chains {
		if strings.HasPrefix(c.Writer, prefix) {
			return c.Writer
		}
	}
	w.t.Fatalf("no writer %s", prefix)
	return ""
}

func last(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[len(list)-1]
}
