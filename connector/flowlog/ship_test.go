package flowlog_test

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-zt/postern/connector/flowlog"
	"github.com/postern-zt/postern/proto/chain"
)

// many appends n records of flows that have ended.
func many(t testing.TB, l *flowlog.Log, n int) {
	t.Helper()
	for i := range n {
		record(t, l, []chain.Kind{chain.FlowOpened, chain.FlowClosed}[i%2], fmt.Sprint(i/2))
	}
}

// TestShipsInParts: whatever part of a batch the broker takes, over the ends of files, restarts
// and records that come meanwhile, it gets each record once, and each batch is signed.
func TestShipsInParts(t *testing.T) {
	dir, r := t.TempDir(), &receiver{t: t}
	l := open(t, dir)
	many(t, l, 4000)
	for i, take := range []int{1, 499, 0, 77, 0, 300} {
		r.take = take
		part := 0
		err := l.Ship(t.Context(), func(ctx context.Context, b flowlog.Batch) (uint64, error) {
			if part++; part > 3 {
				return 0, io.ErrUnexpectedEOF
			}
			many(t, l, 100) // while it ships
			return r.ship(ctx, b)
		})
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
		if i%2 == 1 {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = open(t, dir)
		}
	}
	r.take = 0
	if err := l.Ship(t.Context(), r.ship); err != nil || l.Waiting() != 0 {
		t.Fatalf("Ship = %v, %d wait", err, l.Waiting())
	}
	if want := 4000 + 6*3*100; len(r.kinds) != want || r.head != l.Head() || r.head != l.Shipped() {
		t.Errorf("the broker has %d records to %v, want %d to %v", len(r.kinds), r.head, want, l.Head())
	}
}

// badKey cannot sign.
type badKey struct{ crypto.Signer }

var errNoHardware = errors.New("the hardware does not answer")

func (badKey) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return nil, errNoHardware }

// TestNothingIsShippedUnsigned: flows go on being recorded, and the records wait.
func TestNothingIsShippedUnsigned(t *testing.T) {
	dir, r := t.TempDir(), &receiver{t: t}
	l, err := flowlog.Open(dir, self, badKey{identity()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	record(t, l, chain.FlowOpened, "a")
	record(t, l, chain.FlowClosed, "a")
	if err := l.Ship(t.Context(), r.ship); !errors.Is(err, flowlog.ErrSign) || !errors.Is(err, errNoHardware) || l.Waiting() != 2 {
		t.Errorf("Ship = %v, %d wait; want %v and 2", err, l.Waiting(), flowlog.ErrSign)
	}
	l.Close()
	if err := open(t, dir).Ship(t.Context(), r.ship); err != nil || len(r.kinds) != 2 {
		t.Errorf("with a key that signs: %v, %d records", err, len(r.kinds))
	}
	if _, err := flowlog.Open(dir, self, nil, nil); !errors.Is(err, flowlog.ErrSign) {
		t.Errorf("Open without a key = %v, want %v", err, flowlog.ErrSign)
	}
}

// TestChangedRecordIsNotSigned: what somebody changed on disk gets no signature.
func TestChangedRecordIsNotSigned(t *testing.T) {
	dir, r := t.TempDir(), &receiver{t: t}
	l := open(t, dir)
	record(t, l, chain.FlowOpened, "a")
	record(t, l, chain.FlowClosed, "a")
	files, _ := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	whole, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []chain.Kind{chain.FlowOpened, chain.FlowClosed} {
		changed := strings.Replace(string(whole), string(kind), strings.ToUpper(string(kind)), 1)
		if err := os.WriteFile(files[0], []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := l.Ship(t.Context(), r.ship); !errors.Is(err, flowlog.ErrSign) || r.batches > 0 {
			t.Errorf("%s changed: Ship = %v, %d batches", kind, err, r.batches)
		}
	}
	if err := os.WriteFile(files[0], whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.Ship(t.Context(), r.ship); err != nil || len(r.kinds) != 2 {
		t.Errorf("as it was written: %v, %d records", err, len(r.kinds))
	}
}

// BenchmarkShip ships a burst of 4,000 records, nearly a whole file.
func BenchmarkShip(b *testing.B) {
	const burst = 4000
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		l := open(b, b.TempDir())
		many(b, l, burst)
		b.StartTimer()
		err := l.Ship(b.Context(), func(_ context.Context, batch flowlog.Batch) (uint64, error) {
			rec, err := chain.ParseLine(batch.Records[len(batch.Records)-1])
			return rec.Seq, err
		})
		b.StopTimer()
		if err != nil || l.Waiting() != 0 {
			b.Fatal(err)
		}
		l.Close()
		b.StartTimer()
	}
}
