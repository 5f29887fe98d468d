package link_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"

	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/carrier/quic"
	"github.com/postern-zt/postern/netstack/carrier/tls"
	"github.com/postern-zt/postern/netstack/link"
	"github.com/postern-zt/postern/netstack/peer"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/ids"
)

// loopback returns a connected pair of TCP sockets.
func loopback(b testing.TB) (net.Conn, net.Conn) {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	got := make(chan net.Conn, 1)
	go func() {
		c, _ := l.Accept()
		got <- c
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	return c, <-got
}

// tcpHandler hands out loopback sockets whose far end the benchmark holds.
type tcpHandler struct {
	*fakeHandler
	b   testing.TB
	far chan net.Conn
}

func (h *tcpHandler) Dial(context.Context, link.MicroTunnel, link.FlowOpen) (net.Conn, frame.Code) {
	near, far := loopback(h.b)
	h.far <- far
	return near, frame.OK
}

// BenchmarkFlowTLS moves bytes from an app through connector and client to a local
// program: one flow, loopback sockets everywhere, end-to-end TLS between.
func BenchmarkFlowTLS(b *testing.B) {
	benchFlow(b, func(ctx context.Context, creds, own *peer.Credentials, serve serveFunc, work *sync.WaitGroup) link.Dialer {
		return link.Dialer{Name: "tls", Kind: carrier.TLS, Dial: func(dctx context.Context) (carrier.Carrier, error) {
			near, far := loopback(b)
			work.Go(func() {
				cfg, _ := peer.ServerConfig(peer.Config{Credentials: creds, Expect: peer.Anyone})
				if car, err := tls.Server(ctx, far, tls.Config{TLS: cfg}); err == nil {
					serve(ctx, car)
				}
			})
			cfg, _ := peer.ClientConfig(peer.Config{Credentials: own, Expect: peer.Exactly(creds.KeyID())})
			return tls.Client(dctx, near, tls.Config{TLS: cfg})
		}}
	})
}

// BenchmarkFlowQUIC is the same over QUIC.
func BenchmarkFlowQUIC(b *testing.B) {
	benchFlow(b, func(ctx context.Context, creds, own *peer.Credentials, serve serveFunc, work *sync.WaitGroup) link.Dialer {
		return link.Dialer{Name: "quic", Kind: carrier.QUIC, Dial: func(dctx context.Context) (carrier.Carrier, error) {
			near, far := directPaths(b)
			work.Go(func() {
				cfg, _ := peer.ServerConfig(peer.Config{Credentials: creds, Expect: peer.Anyone})
				_ = quic.ServePath(ctx, far, quic.Config{TLS: cfg}, func(ctx context.Context, c *quic.Carrier) { serve(ctx, c) })
			})
			cfg, _ := peer.ClientConfig(peer.Config{Credentials: own, Expect: peer.Exactly(creds.KeyID())})
			return quic.Dial(dctx, near, quic.Config{TLS: cfg})
		}}
	})
}

type serveFunc func(context.Context, carrier.Carrier)

func benchFlow(b *testing.B, dialer func(context.Context, *peer.Credentials, *peer.Credentials, serveFunc, *sync.WaitGroup) link.Dialer) {
	h := &tcpHandler{fakeHandler: newFakeHandler(), b: b, far: make(chan net.Conn, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	server, err := link.NewServer(link.ServerConfig{Handler: h, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	creds, own := newCredentials(b), newCredentials(b)
	c := benchClient(b, creds.KeyID(), dialer(ctx, creds, own, func(ctx context.Context, c carrier.Carrier) { _ = server.Serve(ctx, c) }, &work))
	work.Go(func() { _ = c.Run(ctx) })
	defer func() {
		cancel()
		_ = server.Close()
		work.Wait()
	}()
	if err := c.Present(ctx, envelope("gnt_a", 80), 1); err != nil {
		b.Fatal(err)
	}
	f, err := c.OpenTCP(ctx, 1, 80)
	if err != nil {
		b.Fatal(err)
	}
	app := <-h.far
	program, local := loopback(b)
	work.Go(func() { f.Splice(local) })
	b.Run("down", func(b *testing.B) { pump(b, app, program) })
	b.Run("up", func(b *testing.B) { pump(b, program, app) })
	_ = app.Close()
	_ = program.Close()
}

func benchClient(b testing.TB, to ids.KeyID, dial link.Dialer) *link.Client {
	b.Helper()
	c, err := link.NewClient(link.ClientConfig{
		Instance: frame.NewInstanceID(), Peer: to, Log: slog.New(slog.DiscardHandler), Dial: []link.Dialer{dial},
	})
	if err != nil {
		b.Fatal(err)
	}
	return c
}

const benchBlock = 4 << 20

func pump(b *testing.B, from io.Writer, to io.Reader) {
	block := make([]byte, 256<<10)
	buf := make([]byte, 256<<10)
	b.SetBytes(benchBlock)
	b.ReportAllocs()
	done := make(chan error, 1)
	rounds := make(chan struct{}, 64)
	go func() {
		for range rounds {
			for range benchBlock / len(block) {
				if _, err := from.Write(block); err != nil {
					done <- err
					return
				}
			}
		}
		done <- nil
	}()
	read := 0
	for b.Loop() {
		rounds <- struct{}{}
		for want := benchBlock; want > 0; {
			n, err := to.Read(buf[:min(len(buf), want)])
			if err != nil {
				b.Fatal(err)
			}
			want -= n
			read += n
		}
	}
	close(rounds)
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(read)*8/b.Elapsed().Seconds()/1e9, "Gbit/s")
}
