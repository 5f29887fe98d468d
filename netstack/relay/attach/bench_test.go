package attach_test

import (
	"context"
	"io"
	"net"
	"testing"

	"github.com/postern-zt/postern/netstack/relay"
	"github.com/postern-zt/postern/netstack/relay/relaytest"
	"github.com/postern-zt/postern/proto/ticket"
)

// BenchmarkRawSplice moves 64 MiB per operation over one raw connection through the
// relay; the connector answers each with one byte.
func BenchmarkRawSplice(b *testing.B) {
	f := relaytest.New(b, relay.Limits{})
	c := ticket.NewHandle()
	const total = 64 << 20
	serve(b, f, c, func(_ context.Context, _ ticket.Handle, raw net.Conn) {
		defer raw.Close()
		buf := make([]byte, 256<<10)
		for {
			if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{io.LimitReader(raw, total)}, buf); err != nil {
				return
			}
			if _, err := raw.Write([]byte{1}); err != nil {
				return
			}
		}
	})
	conn := dial(b, f, f.Client(c, nil))
	chunk := make([]byte, 256<<10)
	b.SetBytes(total)
	b.ReportAllocs()
	for b.Loop() {
		for range total / len(chunk) {
			if _, err := conn.Write(chunk); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := io.ReadFull(conn, chunk[:1]); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(total)*8*float64(b.N)/b.Elapsed().Seconds()/1e9, "Gbit/s")
}
