package flowlog_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-zt/postern/connector/flowlog"
	"github.com/postern-zt/postern/proto/chain"
	"github.com/postern-zt/postern/proto/ids"
)

var self = ids.ConnectorID("con_" + strings.Repeat("1", 26))

// identity is an identity key, made once.
var identity = sync.OnceValue(func() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
})

func keyID(key crypto.Signer) ids.KeyID {
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		panic(err)
	}
	return ids.KeyIDOf(spki)
}

// receiver is the broker's side: it verifies the chain and remembers what it has.
type receiver struct {
	t     *testing.T
	head  chain.Head
	kinds []string
	fail  error
	// take is how many records of a batch it stores, 0 for all.
	take    int
	batches int
}

func (r *receiver) ship(_ context.Context, b flowlog.Batch) (uint64, error) {
	if r.fail != nil {
		return 0, r.fail
	}
	r.batches++
	h, err := chain.OpenSignedHead(keyID(identity()), b.SignedHead)
	if err != nil || h.Connector != self || h.First != r.head.Seq+1 || h.Count != uint64(len(b.Records)) ||
		h.Hash != chain.HashLine(b.Records[len(b.Records)-1]) || h.Last != h.First+h.Count-1 {
		r.t.Fatalf("%d records after %d are signed as %+v, %v", len(b.Records), r.head.Seq, h, err)
	}
	lines := b.Records
	if r.take > 0 {
		lines = lines[:min(r.take, len(lines))]
	}
	for _, line := range lines {
		rec, err := chain.ParseLine(line)
		if err != nil || rec.Seq != r.head.Seq+1 || rec.Prev != r.head.Hash {
			r.t.Fatalf("record %d does not follow %d: %v", rec.Seq, r.head.Seq, err)
		}
		r.head = chain.Head{Writer: rec.Writer, Seq: rec.Seq, Hash: chain.HashLine(line)}
		r.kinds = append(r.kinds, fmt.Sprintf("%s %s inexact=%v", rec.Kind, rec.Details["flow"], rec.Inexact))
	}
	return r.head.Seq, nil
}

func open(t testing.TB, dir string) *flowlog.Log {
	t.Helper()
	l, err := flowlog.Open(dir, self, identity(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func record(t testing.TB, l *flowlog.Log, kind chain.Kind, flow string) {
	t.Helper()
	if err := l.Append(chain.Event{Kind: kind, Details: map[string]string{"flow": flow}}); err != nil {
		t.Fatal(err)
	}
}

func TestShipsAcrossRestarts(t *testing.T) {
	dir, r := t.TempDir(), &receiver{t: t}
	l := open(t, dir)
	record(t, l, chain.FlowOpened, "a")
	record(t, l, chain.FlowClosed, "a")
	if err := l.Ship(t.Context(), r.ship); err != nil {
		t.Fatal(err)
	}
	record(t, l, chain.FlowOpened, "b")
	l.Close()

	l = open(t, dir) // b was open: it gets its close
	record(t, l, chain.FlowOpened, "c")
	record(t, l, chain.FlowClosed, "c")
	if err := l.Ship(t.Context(), r.ship); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"flow_open a inexact=false", "flow_close a inexact=false", "flow_open b inexact=false",
		"flow_close b inexact=true", "flow_open c inexact=false", "flow_close c inexact=false",
	}
	if got := strings.Join(r.kinds, "|"); got != strings.Join(want, "|") {
		t.Errorf("the broker has %s", got)
	}
	if l.Waiting() != 0 {
		t.Errorf("%d records wait", l.Waiting())
	}
}

// TestLongFlowOutlivesItsFile: the open record was shipped and deleted long ago.
func TestLongFlowOutlivesItsFile(t *testing.T) {
	dir, r := t.TempDir(), &receiver{t: t}
	l := open(t, dir)
	record(t, l, chain.FlowOpened, "long")
	for i := range 9000 {
		record(t, l, []chain.Kind{chain.FlowOpened, chain.FlowClosed}[i%2], "short")
	}
	if err := l.Ship(t.Context(), r.ship); err != nil {
		t.Fatal(err)
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "*.jsonl")); len(files) != 1 {
		t.Errorf("%d files are left", len(files))
	}
	l.Close()
	l = open(t, dir)
	if err := l.Ship(t.Context(), r.ship); err != nil {
		t.Fatal(err)
	}
	if last := r.kinds[len(r.kinds)-1]; last != "flow_close long inexact=true" {
		t.Errorf("the last record is %q", last)
	}
}

// TestCrashInTheMiddleOfAWrite cuts the file at every byte of its last line.
func TestCrashInTheMiddleOfAWrite(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	record(t, l, chain.FlowOpened, "a")
	record(t, l, chain.FlowClosed, "a")
	l.Close()
	files, _ := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	whole, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	first := strings.IndexByte(string(whole), '\n') + 1
	for n := first; n < len(whole); n++ {
		cut := t.TempDir()
		if err := os.WriteFile(filepath.Join(cut, filepath.Base(files[0])), whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		r := &receiver{t: t}
		if err := open(t, cut).Ship(t.Context(), r.ship); err != nil {
			t.Fatalf("cut at %d: %v", n, err)
		}
		if len(r.kinds) != 2 || r.kinds[1] != "flow_close a inexact=true" {
			t.Fatalf("cut at %d: %q", n, r.kinds)
		}
	}
}

func TestOpenRefusesATamperedChain(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	record(t, l, chain.FlowOpened, "a")
	record(t, l, chain.FlowClosed, "a")
	record(t, l, chain.FlowOpened, "b")
	l.Close()
	files, _ := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	b, _ := os.ReadFile(files[0])
	os.WriteFile(files[0], []byte(strings.Replace(string(b), `"flow":"a"`, `"flow":"x"`, 1)), 0o600)
	if _, err := flowlog.Open(dir, self, identity(), nil); err == nil {
		t.Error("a changed record was not noticed")
	}
	if _, err := flowlog.Open(t.TempDir(), self, identity(), nil); err != nil {
		t.Error(err)
	}
}

func TestBrokerAwayKeepsRecords(t *testing.T) {
	l, r := open(t, t.TempDir()), &receiver{t: t, fail: errors.New("away")}
	record(t, l, chain.FlowOpened, "a")
	if err := l.Ship(t.Context(), r.ship); !errors.Is(err, r.fail) || l.Waiting() != 1 {
		t.Errorf("Ship = %v, %d wait", err, l.Waiting())
	}
	r.fail = nil
	if err := l.Ship(t.Context(), r.ship); err != nil || l.Waiting() != 0 {
		t.Errorf("Ship = %v, %d wait", err, l.Waiting())
	}
	liar := func(context.Context, flowlog.Batch) (uint64, error) { return 99, nil }
	record(t, l, chain.FlowClosed, "a")
	if err := l.Ship(t.Context(), liar); err == nil || l.Waiting() != 1 {
		t.Error("an acknowledgement of records that were never sent was believed")
	}
}

func TestClockGoesIntoRecords(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	l, err := flowlog.Open(t.TempDir(), self, identity(), func() time.Time { return at })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	record(t, l, chain.Started, "")
	_ = l.Ship(t.Context(), func(_ context.Context, b flowlog.Batch) (uint64, error) {
		if rec, err := chain.ParseLine(b.Records[0]); err != nil || !rec.Time().Equal(at) {
			t.Errorf("record of %v, %v", rec.Time(), err)
		}
		return 1, nil
	})
}
