package audit_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/broker/store/storetest"
	"github.com/postern-zt/postern/proto/seal"
)

// tampered is a store whose content someone changed behind the broker's back.
type tampered struct {
	*store.Store
	rows     func([]audit.Row) []audit.Row
	heads    func([]audit.Head) []audit.Head
	segments func([]audit.Segment) []audit.Segment
}

func (s *tampered) AuditRows(ctx context.Context, writer string, after uint64, limit int) ([]audit.Row, error) {
	rows, err := s.Store.AuditRows(ctx, writer, 0, 1<<20)
	if s.rows != nil {
		rows = s.rows(rows)
	}
	rows = slices.DeleteFunc(rows, func(r audit.Row) bool { return r.Seq <= after })
	return rows[:min(limit, len(rows))], err
}

func (s *tampered) AuditHeads(ctx context.Context) ([]audit.Head, error) {
	heads, err := s.Store.AuditHeads(ctx)
	if s.heads != nil {
		heads = s.heads(heads)
	}
	return heads, err
}

func (s *tampered) AuditSegments(ctx context.Context, writer string) ([]audit.Segment, error) {
	segs, err := s.Store.AuditSegments(ctx, writer)
	if s.segments != nil {
		segs = s.segments(segs)
	}
	return segs, err
}

// rewrite changes the text of record seq and computes every later hash again, as a thief of
// the database would.
func rewrite(seq uint64, old, fresh string) func([]audit.Row) []audit.Row {
	return func(rows []audit.Row) []audit.Row {
		prev := audit.Hash{}
		for i := range rows {
			r := &rows[i]
			if r.Seq >= seq {
				var rec audit.Record
				if err := json.Unmarshal(r.Line, &rec); err != nil {
					panic(err)
				}
				line := bytes.Replace(r.Line, []byte(rec.Prev.String()), []byte(prev.String()), 1)
				if r.Seq == seq {
					line = bytes.Replace(line, []byte(old), []byte(fresh), 1)
				}
				r.Line, r.Hash = line, audit.HashLine(line)
			}
			prev = r.Hash
		}
		return rows
	}
}

func without(seqs ...uint64) func([]audit.Row) []audit.Row {
	return func(rows []audit.Row) []audit.Row {
		return slices.DeleteFunc(rows, func(r audit.Row) bool { return slices.Contains(seqs, r.Seq) })
	}
}

func TestVerifyFindsTheFirstBreak(t *testing.T) {
	cases := map[string]struct {
		tamper func(*tampered)
		seq    uint64
		reason string
	}{
		"changed record": {func(s *tampered) {
			s.rows = func(rows []audit.Row) []audit.Row {
				rows[4].Line = bytes.Replace(rows[4].Line, []byte(`"4"`), []byte(`"5"`), 1)
				return rows
			}
		}, 5, "searchable columns"},
		"changed record and its hash": {func(s *tampered) {
			s.rows = func(rows []audit.Row) []audit.Row {
				rows[4].Line = bytes.Replace(rows[4].Line, []byte(`"4"`), []byte(`"5"`), 1)
				rows[4].Hash = audit.HashLine(rows[4].Line)
				return rows
			}
		}, 6, "does not follow"},
		"all hashes computed again, signed part":   {func(s *tampered) { s.rows = rewrite(3, `"2"`, `"9"`) }, 4, "signed segment 1 to 4"},
		"all hashes computed again, unsigned part": {func(s *tampered) { s.rows = rewrite(9, `"8"`, `"9"`) }, 10, "remembered"},
		"removed record": {func(s *tampered) { s.rows = without(3) }, 3, "missing, record 4 follows"},
		"changed column": {func(s *tampered) {
			s.rows = func(rows []audit.Row) []audit.Row { rows[1].User = "usr_other"; return rows }
		}, 2, "searchable columns"},
		"cut tail": {func(s *tampered) { s.rows = without(9, 10) }, 9, "own head is 10"},
		"cut tail and head": {func(s *tampered) {
			s.rows = without(10)
			s.heads = func(h []audit.Head) []audit.Head { return cutHead(s, h) }
		}, 10, "tail was cut"},
		"segment removed": {func(s *tampered) {
			s.segments = func(g []audit.Segment) []audit.Segment { return g[1:] }
		}, 1, "does not follow"},
		"segment with a foreign signature": {func(s *tampered) {
			s.segments = func(g []audit.Segment) []audit.Segment { g[0].Signed[40] ^= 1; return g }
		}, 1, "signature does not hold"},
		"records called dropped": {func(s *tampered) {
			s.segments = func(g []audit.Segment) []audit.Segment { g[1].Dropped = true; return g }
			s.rows = without(7, 8, 9)
		}, 9, "missing, record 10 follows"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := &tampered{Store: storetest.Open(t, storetest.SQLite(t))}
			f := newLog(t, s)
			f.addN(t, 10)
			if err := f.SignSegments(t.Context(), false); err != nil {
				t.Fatal(err)
			}
			remembered := f.head(t)
			f.mustHold(t, 10, remembered)
			c.tamper(s)
			wantBreak(t, f.verify(t, remembered), c.seq, c.reason)
		})
	}
}

// cutHead makes the store's own head fit the rows that are left.
func cutHead(s *tampered, heads []audit.Head) []audit.Head {
	rows, err := s.AuditRows(context.Background(), heads[0].Writer, 0, 1<<20)
	if err != nil {
		panic(err)
	}
	last := rows[len(rows)-1]
	heads[0].Seq, heads[0].Hash = last.Seq, last.Hash
	return heads
}

func TestWholeChainRemoved(t *testing.T) {
	s := &tampered{Store: storetest.Open(t, storetest.SQLite(t))}
	f := newLog(t, s)
	f.addN(t, 3)
	remembered := f.head(t)
	s.heads = func([]audit.Head) []audit.Head { return nil }
	wantBreak(t, f.verify(t, remembered), 1, "tail was cut")
}

func TestForeignKeyIsNotTrusted(t *testing.T) {
	f := newLog(t, storetest.Open(t, storetest.SQLite(t)))
	f.addN(t, 4)
	if err := f.SignSegments(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	other := seal.NewSigner(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{9}, ed25519.SeedSize)))
	r, err := f.Verify(t.Context(), audit.Trust{Keys: seal.NewKeys(other.Public())})
	if err != nil {
		t.Fatal(err)
	}
	wantBreak(t, r, 1, "unknown key")
}

func TestSignerRefusesToCoverAChange(t *testing.T) {
	s := &tampered{Store: storetest.Open(t, storetest.SQLite(t)), rows: without(2)}
	f := newLog(t, s)
	f.addN(t, 4)
	var b *audit.Break
	if err := f.SignSegments(t.Context(), true); !errors.As(err, &b) || b.Seq != 2 {
		t.Errorf("SignSegments over a hole = %v, want a break at 2", err)
	}
}

// exported returns the lines of a file with two chains, and the log.
func exported(t *testing.T, s audit.Store) (fixture, []string) {
	t.Helper()
	f := newLog(t, s)
	f.addN(t, 6)
	ship(t, f, newConnector(), 3)
	if err := f.SignSegments(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if err := f.Export(t.Context(), &file, "", 0); err != nil {
		t.Fatal(err)
	}
	return f, strings.Split(strings.TrimSuffix(file.String(), "\n"), "\n")
}

func TestVerifyFile(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		f, lines := exported(t, open())
		r, err := audit.VerifyFile(strings.NewReader(strings.Join(lines, "\n")), audit.Trust{Keys: f.trusted, Remembered: []audit.Head{f.head(t)}})
		if err != nil || !r.OK() || r.Records != 9 || len(r.Writers) != 2 {
			t.Errorf("VerifyFile = %+v, %v, want 9 records of two writers", r, err)
		}
	})
}

func TestVerifyFileFindsEachChangedLine(t *testing.T) {
	f, lines := exported(t, storetest.Open(t, storetest.SQLite(t)))
	remembered := []audit.Head{f.head(t)}
	check := func(what string, changed []string) {
		r, err := audit.VerifyFile(strings.NewReader(strings.Join(changed, "\n")), audit.Trust{Keys: f.trusted, Remembered: remembered})
		if err == nil && r.OK() {
			t.Errorf("%s: the file verifies", what)
		}
	}
	for i := range lines {
		if i > 0 { // the header carries nothing that is verified
			check(fmt.Sprintf("line %d removed", i+1), slices.Delete(slices.Clone(lines), i, i+1))
		}
		if !strings.HasPrefix(lines[i], `{"postern":`) {
			changed := slices.Clone(lines)
			changed[i] = strings.Replace(changed[i], `"kind":"`, `"kind":"x`, 1)
			check(fmt.Sprintf("line %d changed", i+1), changed)
		}
	}
	check("cut file", lines[:len(lines)-1])
}

func TestVerifyFileNamesTheLine(t *testing.T) {
	f, lines := exported(t, storetest.Open(t, storetest.SQLite(t)))
	i := slices.IndexFunc(lines, func(l string) bool {
		return strings.Contains(l, string(f.broker)) && strings.Contains(l, `"seq":3,`)
	})
	lines[i] = strings.Replace(lines[i], `"n":"2"`, `"n":"7"`, 1)
	r, err := audit.VerifyFile(strings.NewReader(strings.Join(lines, "\n")), audit.Trust{Keys: f.trusted})
	if err != nil || len(r.Breaks) != 1 || r.Breaks[0].Line != i+2 || r.Breaks[0].Seq != 4 {
		t.Errorf("VerifyFile = %+v, %v, want a break at line %d: record 4 does not follow 3", r, err, i+2)
	}
}

func TestVerifyFileRefusesGarbage(t *testing.T) {
	for name, file := range map[string]string{
		"empty": "", "no header": `{"v":1}`, "other format": `{"postern":{"header":{"format":"x"}}}`,
		"unknown line": "{\"postern\":{\"header\":{\"format\":\"postern-audit/1\"}}}\n{\"postern\":{}}",
		"long line":    "{\"postern\":{\"header\":{\"format\":\"postern-audit/1\"}}}\n" + strings.Repeat("x", 64<<10),
	} {
		if _, err := audit.VerifyFile(strings.NewReader(file), audit.Trust{}); err == nil {
			t.Errorf("VerifyFile(%s) accepted", name)
		}
	}
}
