package audit_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/broker/keys"
	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/broker/store/storetest"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
)

func TestMain(m *testing.M) { storetest.Main(m, storetest.Leaks) }

// fixture is one broker's log over a store.
type fixture struct {
	*audit.Log
	broker  ids.BrokerID
	trusted seal.Keys
}

func newLog(t *testing.T, s audit.Store, change ...func(*audit.Config)) fixture {
	t.Helper()
	signer := seal.NewSigner(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize)))
	cfg := audit.Config{
		Store: s, Broker: ids.New[ids.BrokerID](), Signer: signer, Sealer: keys.NewKEK(),
		Log: slog.New(slog.DiscardHandler), SegmentRecords: 4,
	}
	for _, f := range change {
		f(&cfg)
	}
	l, err := audit.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return fixture{Log: l, broker: cfg.Broker, trusted: seal.NewKeys(signer.Public())}
}

func (f fixture) add(t *testing.T, events ...audit.Event) {
	t.Helper()
	for _, ev := range events {
		if _, err := f.Append(t.Context(), ev); err != nil {
			t.Fatalf("Append(%s): %v", ev.Kind, err)
		}
	}
}

// addN appends n decisions.
func (f fixture) addN(t *testing.T, n int) {
	t.Helper()
	for i := range n {
		f.add(t, audit.Event{Kind: audit.Decision, Details: map[string]string{"n": fmt.Sprint(i)}})
	}
}

func (f fixture) head(t *testing.T) audit.Head {
	t.Helper()
	h, err := f.Head(t.Context(), string(f.broker))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (f fixture) verify(t *testing.T, remembered ...audit.Head) audit.Report {
	t.Helper()
	r, err := f.Verify(t.Context(), audit.Trust{Keys: f.trusted, Remembered: remembered})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (f fixture) mustHold(t *testing.T, records uint64, remembered ...audit.Head) {
	t.Helper()
	if r := f.verify(t, remembered...); !r.OK() || r.Records != records {
		t.Errorf("Verify = %d records, breaks %v, want %d and none", r.Records, r.Breaks, records)
	}
}

// wantBreak checks where a report says that the chain broke.
func wantBreak(t *testing.T, r audit.Report, seq uint64, reason string) {
	t.Helper()
	if len(r.Breaks) != 1 || r.Breaks[0].Seq != seq || !strings.Contains(r.Breaks[0].Reason, reason) {
		t.Errorf("breaks = %v, want one at record %d: ...%s...", r.Breaks, seq, reason)
	}
}

func (f fixture) records(t *testing.T, q audit.Query) []audit.Found {
	t.Helper()
	found, _, err := f.Search(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestAppendSurvivesRestartAndVerifies(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		f := newLog(t, open())
		f.addN(t, 3)
		again := newLog(t, open(), func(c *audit.Config) { c.Broker = f.broker })
		again.addN(t, 2)
		again.mustHold(t, 5, f.head(t))
		if err := again.SignSegments(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		r := again.verify(t)
		if !r.OK() || len(r.Writers) != 1 || r.Writers[0].Signed != 5 {
			t.Errorf("Verify after signing = %+v", r)
		}
	})
}

func TestConcurrentAppendsFormOneChain(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		f := newLog(t, open())
		var mu sync.Mutex
		seen := make(map[uint64]bool)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 10 {
					ref, err := f.Append(t.Context(), audit.Event{Kind: audit.Decision})
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					seen[ref.Seq] = true
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if len(seen) != 80 {
			t.Errorf("%d different numbers, want 80", len(seen))
		}
		f.mustHold(t, 80)
	})
}

func TestAppendJoinsTransaction(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		f := newLog(t, s)
		undo := errors.New("undo")
		err := s.InTx(t.Context(), func(tx *store.Tx) error {
			if _, err := f.Append(tx.Context(t.Context()), audit.Event{Kind: audit.Granted}); err != nil {
				return err
			}
			return undo
		})
		if !errors.Is(err, undo) {
			t.Fatalf("InTx = %v", err)
		}
		f.mustHold(t, 0)
		err = s.InTx(t.Context(), func(tx *store.Tx) error {
			_, err := f.Append(tx.Context(t.Context()), audit.Event{Kind: audit.Granted})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		f.mustHold(t, 1)
	})
}

func TestSearchPages(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		f := newLog(t, open())
		ann, wiki, dev, receipt := ids.New[ids.UserID](), ids.New[ids.AppID](), ids.New[ids.DeviceID](), ids.NewReceipt()
		for range 5 {
			f.add(t, audit.Event{Kind: audit.Decision, User: ann, App: wiki}, audit.Event{Kind: audit.Decision, Device: dev})
		}
		f.add(t, audit.Event{Kind: audit.Decision, User: ann, Receipt: receipt, Decision: "allow", Reasons: []string{"rule <x>"}})
		if got := pageThrough(t, f, audit.Query{User: ann, Limit: 4}); len(got) != 6 {
			t.Errorf("records of the user: %v, want 6 different ones", got)
		}
		for name, q := range map[string]audit.Query{"device": {Device: dev}, "app": {App: wiki}} {
			if n := len(f.records(t, q)); n != 5 {
				t.Errorf("by %s: %d records, want 5", name, n)
			}
		}
		one := f.records(t, audit.Query{Receipt: receipt})
		if len(one) != 1 || one[0].Decision != "allow" || one[0].Reasons[0] != "rule <x>" {
			t.Fatalf("by receipt: %+v", one)
		}
		if n := len(f.records(t, audit.Query{To: one[0].Time().AddDate(0, 0, -1)})); n != 0 {
			t.Errorf("before yesterday: %d records", n)
		}
		if n := len(f.records(t, audit.Query{From: one[0].Time().AddDate(0, 0, -1), Kind: audit.Decision})); n != 11 {
			t.Errorf("since yesterday: %d records, want 11", n)
		}
	})
}

// pageThrough reads all pages and returns the numbers, each once.
func pageThrough(t *testing.T, f fixture, q audit.Query) map[uint64]bool {
	t.Helper()
	seen := make(map[uint64]bool)
	for range 10 {
		found, next, err := f.Search(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range found {
			if seen[r.Seq] {
				t.Errorf("record %d on two pages", r.Seq)
			}
			seen[r.Seq] = true
		}
		if next == (audit.Position{}) {
			return seen
		}
		if q.Before, err = audit.ParsePosition(next.String()); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("pages do not end")
	return nil
}

func TestPersonalValuesCanBeErased(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		f := newLog(t, open())
		ann, bob := ids.New[ids.UserID](), ids.New[ids.UserID]()
		for _, u := range []ids.UserID{ann, bob} {
			f.add(t, audit.Event{Kind: audit.SignedIn, User: u, Personal: map[string]string{"mail": "someone@example.com"}})
		}
		for _, r := range f.records(t, audit.Query{}) {
			if bytes.Contains(r.Line, []byte("someone@")) {
				t.Errorf("personal value in clear: %s", r.Line)
			}
			if got, err := f.Personal(t.Context(), r.Record); err != nil || got["mail"] != "someone@example.com" {
				t.Errorf("Personal = %v, %v", got, err)
			}
		}
		if err := f.Erase(t.Context(), ann, bob); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Personal(t.Context(), f.records(t, audit.Query{User: ann, Kind: audit.SignedIn})[0].Record); !errors.Is(err, audit.ErrErased) {
			t.Errorf("Personal after Erase = %v, want ErrErased", err)
		}
		if _, err := f.Personal(t.Context(), f.records(t, audit.Query{User: bob})[0].Record); err != nil {
			t.Errorf("Personal of another user = %v", err)
		}
		f.mustHold(t, 3)
		f.add(t, audit.Event{Kind: audit.SignedIn, User: ann, Personal: map[string]string{"mail": "new@example.com"}})
		if got, err := f.Personal(t.Context(), f.records(t, audit.Query{User: ann, Limit: 1})[0].Record); err != nil || got["mail"] != "new@example.com" {
			t.Errorf("Personal of a later record = %v, %v", got, err)
		}
	})
}

func TestDroppedSegmentsStillVerify(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		f := newLog(t, open())
		f.addN(t, 10) // segments 1-4, 5-8, the rest unsigned
		if err := f.SignSegments(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		old := f.head(t)
		var archive bytes.Buffer
		if err := f.Export(t.Context(), &archive, string(f.broker), 4); err != nil {
			t.Fatal(err)
		}
		if err := f.Drop(t.Context(), string(f.broker), 3, ""); !errors.Is(err, audit.ErrNotSigned) {
			t.Errorf("Drop inside a segment = %v, want ErrNotSigned", err)
		}
		if err := f.Drop(t.Context(), string(f.broker), 4, ""); err != nil {
			t.Fatal(err)
		}
		f.mustHold(t, 7, old) // 5 to 10 and the record of the drop
		if w := f.verify(t).Writers[0]; w.Dropped != 4 || w.First != 5 {
			t.Errorf("writer = %+v, want 4 dropped and the first record 5", w)
		}
		if r, err := audit.VerifyFile(&archive, audit.Trust{Keys: f.trusted}); err != nil || !r.OK() || r.Records != 4 {
			t.Errorf("archive: %+v, %v", r, err)
		}
	})
}

func TestOversizedEventIsRefused(t *testing.T) {
	f := newLog(t, storetest.Open(t, storetest.SQLite(t)))
	for name, ev := range map[string]audit.Event{
		"line":   {Kind: audit.Decision, Reasons: []string{strings.Repeat("x", audit.MaxLine)}},
		"field":  {Kind: audit.Decision, App: ids.AppID(strings.Repeat("x", 200))},
		"binary": {Kind: audit.Decision, App: "a\x00b"},
	} {
		if _, err := f.Append(t.Context(), ev); !errors.Is(err, audit.ErrMalformed) {
			t.Errorf("Append with a bad %s = %v, want ErrMalformed", name, err)
		}
	}
	f.mustHold(t, 0)
}

func BenchmarkAppend(b *testing.B) {
	s, err := store.Open(b.Context(), store.Config{DSN: "sqlite:" + filepath.Join(b.TempDir(), "b.db"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	signer := seal.NewSigner(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
	l, err := audit.New(audit.Config{Store: s, Broker: ids.New[ids.BrokerID](), Signer: signer, Sealer: keys.NewKEK(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.SetParallelism(32)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := l.Append(b.Context(), audit.Event{Kind: audit.Decision, Decision: "allow", Reasons: []string{"rule"}}); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func FuzzParseLine(f *testing.F) {
	f.Add([]byte(`{"v":1,"writer":"w","seq":1,"time_ms":1,"prev":"` + strings.Repeat("0", 64) + `","kind":"k"}`))
	f.Add([]byte(`{"v":1}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := audit.ParseLine(line)
		if err == nil && (r.Seq == 0 || r.Writer == "" || r.Kind == "") {
			t.Errorf("ParseLine(%q) accepted %+v", line, r)
		}
	})
}

func FuzzVerifyFile(f *testing.F) {
	const header = `{"postern":{"header":{"format":"postern-audit/1","time_ms":1}}}` + "\n"
	f.Add([]byte(header + `{"postern":{"end":{"lines":1}}}`))
	f.Add([]byte(header + `{"v":1,"writer":"w","seq":1,"time_ms":1,"prev":"` + strings.Repeat("0", 64) + `","kind":"k"}` + "\n" +
		`{"postern":{"segment":{"writer":"w","signed":"AAAA"}}}`))
	c := newConnector()
	signed := c.signed(c.write(1))
	frame, err := json.Marshal(map[string]any{"postern": map[string]any{"connector": map[string]any{"writer": c.id, "signed": signed.SignedHead}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(header + string(signed.Records[0]) + "\n" + string(frame) + "\n"))
	f.Fuzz(func(t *testing.T, file []byte) {
		_, _ = audit.VerifyFile(bytes.NewReader(file), audit.Trust{}) // must not panic
	})
}

// Interfaces of the failing store of the other tests.
var _ audit.Store = (*brokenStore)(nil)

// brokenStore refuses to write while err is set.
type brokenStore struct {
	*store.Store
	mu  sync.Mutex
	err error
}

func (b *brokenStore) set(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

func (b *brokenStore) AppendAudit(ctx context.Context, writer string, build func(context.Context, audit.Head) ([]audit.Row, error)) error {
	b.mu.Lock()
	err := b.err
	b.mu.Unlock()
	if err != nil {
		return err
	}
	return b.Store.AppendAudit(ctx, writer, build)
}
