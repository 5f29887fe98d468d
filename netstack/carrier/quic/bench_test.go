package quic_test

import (
	"context"
	"io"
	"sync"
	"testing"

	"github.com/postern-zt/postern/netstack/carrier"
)

// sink reads every stream to its end and says so with one byte.
func sink(ctx context.Context, c carrier.Carrier) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		s, err := c.AcceptStream(ctx)
		if err != nil {
			return
		}
		wg.Go(func() {
			_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, s, make([]byte, 256<<10))
			_, _ = s.Write([]byte{1})
			_ = s.CloseWrite()
		})
	}
}

// BenchmarkOneFlow moves 64 MiB per operation over one stream through client, relay and
// connector in this process.
func BenchmarkOneFlow(b *testing.B) { benchFlows(b, 1) }

// BenchmarkHundredFlows moves the same over a hundred streams.
func BenchmarkHundredFlows(b *testing.B) { benchFlows(b, 100) }

func benchFlows(b *testing.B, flows int) {
	w := newWorld(b, sink)
	c := w.dial(b, w.f.Client(w.c, nil))
	const total = 64 << 20
	chunk := random(256 << 10)
	b.SetBytes(total)
	b.ReportAllocs()
	start := cpuTime(b)
	for b.Loop() {
		var wg sync.WaitGroup
		for range flows {
			wg.Go(func() { push(b, c, chunk, total/flows) })
		}
		wg.Wait()
	}
	cpuPerGB(b, start, total*int64(b.N))
	b.ReportMetric(float64(total)*8*float64(b.N)/b.Elapsed().Seconds()/1e9, "Gbit/s")
}

func push(b *testing.B, c carrier.Carrier, chunk []byte, n int) {
	s, err := c.OpenStream(context.Background())
	if err != nil {
		b.Error(err)
		return
	}
	for ; n > 0; n -= len(chunk) {
		if _, err := s.Write(chunk[:min(n, len(chunk))]); err != nil {
			b.Error(err)
			return
		}
	}
	_ = s.CloseWrite()
	if _, err := io.ReadAll(s); err != nil {
		b.Error(err)
	}
}
