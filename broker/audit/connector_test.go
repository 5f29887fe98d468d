package audit_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/broker/store/storetest"
	"github.com/postern-zt/postern/proto/chain"
	"github.com/postern-zt/postern/proto/ids"
)

// shipSigned ships the next n records.
func shipSigned(t *testing.T, f fixture, c *connector, n int) audit.Shipment {
	t.Helper()
	s := c.signed(c.write(n))
	if through, err := f.Ingest(t.Context(), s); err != nil || through != c.seq {
		t.Fatalf("Ingest = %d, %v, want %d", through, err, c.seq)
	}
	return s
}

// state is the report on one connector's chain.
func state(t *testing.T, r audit.Report, c *connector) audit.WriterReport {
	t.Helper()
	for _, w := range r.Writers {
		if w.Writer == string(c.id) {
			return w
		}
	}
	t.Fatalf("no report on %s in %+v", c.id, r)
	return audit.WriterReport{}
}

func pins(c *connector, key ids.KeyID) map[ids.ConnectorID]ids.KeyID {
	return map[ids.ConnectorID]ids.KeyID{c.id: key}
}

func TestIngestOfSignedRecords(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		f, c := newLog(t, open()), newConnector()
		first := shipSigned(t, f, c, 3)
		if through, err := f.Ingest(t.Context(), first); err != nil || through != 3 { // the answer was lost
			t.Errorf("the same shipment again: %d, %v", through, err)
		}
		shipSigned(t, f, c, 2)
		r := f.verify(t)
		if w := state(t, r, c); !r.OK() || w.OwnSigned != 5 || w.Unsigned() != 0 || w.OwnKey != c.keyID().String() {
			t.Errorf("report = %+v, breaks %v; want 5 signed with %s", w, r.Breaks, c.keyID())
		}
		c.write(2) // lost with a restored database
		shipSigned(t, f, c, 2)
		if w := state(t, f.verify(t), c); w.OwnSigned != 9 || w.Missing != 2 {
			t.Errorf("behind a gap: %+v, want 9 signed and 2 missing", w)
		}
	})
}

// TestUnsignedRecordsAreShown: an older connector is served, and nobody takes its records for
// signed ones.
func TestUnsignedRecordsAreShown(t *testing.T) {
	f, c := newLog(t, storetest.Open(t, storetest.SQLite(t))), newConnector()
	ship(t, f, c, 3)
	if w := state(t, f.verify(t), c); !w.Connector || w.OwnSigned != 0 || w.OwnKey != "" || w.Unsigned() != 3 {
		t.Errorf("unsigned: %+v", w)
	}
	shipSigned(t, f, c, 2) // a signature covers the chain before it
	if w := state(t, f.verify(t), c); w.OwnSigned != 5 || w.Unsigned() != 0 {
		t.Errorf("after an update of the connector: %+v", w)
	}
	ship(t, f, c, 1)
	if w := state(t, f.verify(t), c); w.OwnSigned != 5 || w.Unsigned() != 1 {
		t.Errorf("after it went back: %+v", w)
	}
}

func TestIngestRefusesASignature(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		f, c, other := newLog(t, open()), newConnector(), newConnector()
		old := shipSigned(t, f, c, 2)
		lines := c.write(3)
		good := c.signed(lines)
		with := func(change func(*audit.Shipment)) audit.Shipment {
			s := good
			change(&s)
			return s
		}
		flipped := bytes.Clone(good.SignedHead)
		flipped[len(flipped)-1] ^= 1
		tampered := bytes.Replace(lines[2], []byte(`"flow_open"`), []byte(`"flow_opem"`), 1)
		cases := []struct {
			name string
			s    audit.Shipment
			want error
			code string
		}{
			{"changed signature", with(func(s *audit.Shipment) { s.SignedHead = flipped }), audit.ErrSignature, "records_signature"},
			{"foreign key", with(func(s *audit.Shipment) { s.Key = other.keyID() }), audit.ErrSignature, "records_signature"},
			{"garbage", with(func(s *audit.Shipment) { s.SignedHead = []byte("x") }), audit.ErrSignature, "records_signature"},
			{"head of another connector", c.signed(lines, func(h *chain.SignedHead) { h.Connector = other.id }), audit.ErrOtherRecords, "records_other"},
			{"replayed head", with(func(s *audit.Shipment) { s.SignedHead = old.SignedHead }), audit.ErrOtherRecords, "records_other"},
			{"changed last record", with(func(s *audit.Shipment) { s.Records = [][]byte{lines[0], lines[1], tampered} }), audit.ErrOtherRecords, "records_other"},
			{"changed first record", with(func(s *audit.Shipment) {
				s.Records = [][]byte{bytes.Replace(lines[0], []byte(`"flow_open"`), []byte(`"flow_opem"`), 1), lines[1], lines[2]}
			}), audit.ErrForked, "records_forked"},
			{"hole", with(func(s *audit.Shipment) { s.Records = [][]byte{lines[0], lines[2]} }), audit.ErrOtherRecords, "records_other"},
			{"hole that is signed", c.signed([][]byte{lines[0], lines[2]}), audit.ErrForked, "records_forked"},
			{"missing first record", with(func(s *audit.Shipment) { s.Records = lines[1:] }), audit.ErrOtherRecords, "records_other"},
			{"another range", c.signed(lines, func(h *chain.SignedHead) { h.First, h.Last = h.First+1, h.Last+1 }), audit.ErrOtherRecords, "records_other"},
			{"no records", with(func(s *audit.Shipment) { s.Records = nil }), audit.ErrOtherRecords, "records_other"},
		}
		for _, bad := range cases {
			if _, err := f.Ingest(t.Context(), bad.s); !errors.Is(err, bad.want) || audit.Reason(err) != bad.code {
				t.Errorf("Ingest with %s = %v (%s), want %v (%s)", bad.name, err, audit.Reason(err), bad.want, bad.code)
			}
		}
		if err := f.Flush(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		for _, code := range []string{"records_signature", "records_other", "records_forked"} {
			if !slices.ContainsFunc(f.records(t, audit.Query{Kind: audit.Denied}), func(r audit.Found) bool {
				return r.Connector == c.id && slices.Contains(r.Reasons, code)
			}) {
				t.Errorf("no record of the refusal %s", code)
			}
		}
		if through, err := f.Ingest(t.Context(), good); err != nil || through != 5 {
			t.Errorf("the good shipment = %d, %v, want 5", through, err)
		}
	})
}

// forged is a broker that rewrites what it took from a connector, with all its own keys.
type forged struct {
	*store.Store
	heads func([]audit.ConnectorHead) []audit.ConnectorHead
}

func (s *forged) ConnectorHeads(ctx context.Context, writer string, after uint64, limit int) ([]audit.ConnectorHead, error) {
	list, err := s.Store.ConnectorHeads(ctx, writer, after, limit)
	if s.heads != nil {
		list = s.heads(list)
	}
	return list, err
}

// retold is a connector that has the same id and says something else.
func retold(t *testing.T, c *connector, key bool, n int) (fixture, *connector) {
	t.Helper()
	f, liar := newLog(t, storetest.Open(t, storetest.SQLite(t))), newConnector()
	liar.id, liar.lie = c.id, 1
	if key {
		shipSigned(t, f, liar, n)
	} else {
		ship(t, f, liar, n)
	}
	return f, liar
}

// TestVerifyConnectors: what a broker's process can do to a connector's records, and how it
// shows (decisions rule 35).
func TestVerifyConnectors(t *testing.T) {
	c := newConnector()
	pinned := func(f fixture, key ids.KeyID) audit.Trust { return audit.Trust{Keys: f.trusted, Pinned: pins(c, key)} }
	check := func(name string, f fixture, trust audit.Trust, want string) {
		t.Helper()
		online, err := f.Verify(t.Context(), trust)
		if err != nil {
			t.Fatal(err)
		}
		var file bytes.Buffer
		if err := f.Export(t.Context(), &file, "", 0); err != nil {
			t.Fatal(err)
		}
		offline, err := audit.VerifyFile(&file, trust)
		if err != nil {
			t.Fatal(err)
		}
		for where, r := range map[string]audit.Report{"online": online, "file": offline} {
			switch {
			case want == "" && !r.OK():
				t.Errorf("%s, %s: %v, want whole", name, where, r.Breaks)
			case want != "" && (r.OK() || !strings.Contains(r.Breaks[0].Reason, want)):
				t.Errorf("%s, %s: %v, want ...%s...", name, where, r.Breaks, want)
			}
		}
	}
	s := &forged{Store: storetest.Open(t, storetest.SQLite(t))}
	f := newLog(t, s)
	shipSigned(t, f, c, 3)
	shipSigned(t, f, c, 3)
	check("untouched", f, audit.Trust{Keys: f.trusted}, "")
	check("untouched, registered", f, audit.Trust{Keys: f.trusted, Registered: pins(c, c.keyID())}, "")
	check("untouched, pinned", f, pinned(f, c.keyID()), "")
	check("another key is pinned", f, pinned(f, newConnector().keyID()), "connector's key is")
	check("another key is registered", f, audit.Trust{Keys: f.trusted, Registered: pins(c, newConnector().keyID())}, "connector's key is")

	s.heads = func(h []audit.ConnectorHead) []audit.ConnectorHead {
		for i := range h {
			h[i].Signed = bytes.Clone(h[i].Signed)
			h[i].Signed[len(h[i].Signed)-1] ^= 1
		}
		return h
	}
	check("changed signature", f, audit.Trust{Keys: f.trusted}, "signature does not hold")
	s.heads = func(h []audit.ConnectorHead) []audit.ConnectorHead {
		if len(h) == 2 {
			h[0].Signed, h[1].Signed = h[1].Signed, h[0].Signed
		}
		return h
	}
	check("signatures of other records", f, audit.Trust{Keys: f.trusted}, "differs from what the connector signed")
	s.heads = func(h []audit.ConnectorHead) []audit.ConnectorHead { return h[:len(h)/2] }
	check("last signature removed, nothing pinned", f, audit.Trust{Keys: f.trusted}, "")
	check("last signature removed", f, pinned(f, c.keyID()), "not signed with the connector's key")
	s.heads = nil

	rewritten, _ := retold(t, c, false, 6)
	check("rewritten without signatures, nothing pinned", rewritten, audit.Trust{Keys: rewritten.trusted}, "")
	check("rewritten without signatures", rewritten, pinned(rewritten, c.keyID()), "not signed with the connector's key")
	resigned, liar := retold(t, c, true, 6)
	check("rewritten and signed with a made-up key", resigned, pinned(resigned, c.keyID()), "connector's key is")
	if w := state(t, resigned.verify(t), liar); w.OwnKey == c.keyID().String() || w.OwnKey == "" {
		t.Errorf("the key that is shown is %q; a person could not tell it from %s", w.OwnKey, c.keyID())
	}
	gone := newLog(t, storetest.Open(t, storetest.SQLite(t)))
	check("whole chain removed", gone, pinned(gone, c.keyID()), "nothing of this connector is there")
}

// TestSignedRecordsAreArchived: segments end where a connector signed, so that both the
// archive and what is left verify with the connector's key alone.
func TestSignedRecordsAreArchived(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		f, c := newLog(t, open()), newConnector()
		for range 4 {
			shipSigned(t, f, c, 3) // heads at 3, 6, 9, 12; a segment has up to 4 records
		}
		if err := f.SignSegments(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		trust := audit.Trust{Keys: f.trusted, Pinned: pins(c, c.keyID())}
		var archive bytes.Buffer
		if err := f.Export(t.Context(), &archive, string(c.id), 6); err != nil {
			t.Fatal(err)
		}
		if err := f.Drop(t.Context(), string(c.id), 6, ""); err != nil {
			t.Fatal(err)
		}
		if r, err := audit.VerifyFile(&archive, trust); err != nil || !r.OK() || r.Records != 6 {
			t.Errorf("archive: %+v, %v", r, err)
		}
		check := func(what string, want uint64) {
			t.Helper()
			r, err := f.Verify(t.Context(), trust)
			if w := state(t, r, c); err != nil || !r.OK() || w.Dropped != want || w.OwnSigned != 12 {
				t.Errorf("%s: %+v, breaks %v, %v", what, w, r.Breaks, err)
			}
		}
		check("the rest", 6)
		if err := f.Drop(t.Context(), string(c.id), 12, ""); err != nil {
			t.Fatal(err)
		}
		check("nothing left but the last signature", 12)
	})
}

// TestReplayBringsSignaturesBack: after a restore the later export returns what connectors
// signed.
func TestReplayBringsSignaturesBack(t *testing.T) {
	f, c := newLog(t, storetest.Open(t, storetest.SQLite(t))), newConnector()
	shipSigned(t, f, c, 3)
	shipSigned(t, f, c, 700)
	var file bytes.Buffer
	if err := f.Export(t.Context(), &file, "", 0); err != nil {
		t.Fatal(err)
	}
	again := newLog(t, storetest.Open(t, storetest.SQLite(t)))
	if _, err := again.Replay(t.Context(), bytes.NewReader(file.Bytes()), nil, func(audit.Record) {}); err != nil {
		t.Fatal(err)
	}
	r, err := again.Verify(t.Context(), audit.Trust{Keys: again.trusted, Pinned: pins(c, c.keyID())})
	if w := state(t, r, c); err != nil || !r.OK() || w.OwnSigned != 703 {
		t.Errorf("after the replay: %+v, breaks %v, %v", w, r.Breaks, err)
	}
	forked, _ := retold(t, c, false, 703)
	if _, err := forked.Replay(t.Context(), bytes.NewReader(file.Bytes()), nil, func(audit.Record) {}); !errors.Is(err, audit.ErrForked) {
		t.Errorf("Replay over another history = %v, want %v", err, audit.ErrForked)
	}
	if w := state(t, forked.verify(t), c); w.OwnSigned != 0 {
		t.Errorf("signatures stand beside records that they do not cover: %+v", w)
	}
}

// TestRecall: who remembers a record is told its hash or that it was archived, and nobody is
// told of connectors' chains.
func TestRecall(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		f, c := newLog(t, open()), newConnector()
		ship(t, f, c, 2)
		var heads []audit.Head
		for range 10 {
			f.addN(t, 1)
			heads = append(heads, f.head(t))
		}
		if own, err := f.Own(t.Context()); err != nil || own != heads[9] {
			t.Errorf("Own = %v, %v, want %v", own, err, heads[9])
		}
		if err := f.SignSegments(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		if err := f.Drop(t.Context(), string(f.broker), 8, ""); err != nil { // segments of 4
			t.Fatal(err)
		}
		for seq, want := range map[uint64]struct {
			hash     audit.Hash
			archived bool
		}{
			10: {heads[9].Hash, false}, 9: {heads[8].Hash, false},
			8: {heads[7].Hash, false}, 4: {heads[3].Hash, false}, // ends of segments
			7: {audit.Hash{}, true}, 1: {audit.Hash{}, true},
			99: {}, 0: {}, 1 << 63: {},
		} {
			h, archived, err := f.Recall(t.Context(), string(f.broker), seq)
			if err != nil || h.Hash != want.hash || archived != want.archived || h.Seq != seq {
				t.Errorf("Recall(%d) = %v, %v, %v, want %v", seq, h, archived, err, want)
			}
		}
		for _, writer := range []string{string(c.id), "", "brk_x"} {
			if h, archived, err := f.Recall(t.Context(), writer, 1); err != nil || archived || h.Hash != (audit.Hash{}) {
				t.Errorf("Recall of %q = %v, %v, %v", writer, h, archived, err)
			}
		}
	})
}
