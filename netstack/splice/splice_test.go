package splice_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-zt/postern/netstack/splice"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tcpPair returns the two ends of a connection on loopback.
func tcpPair(t testing.TB) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = c.Close(), s.Close() })
	for _, x := range []net.Conn{c, s} {
		_ = x.SetDeadline(time.Now().Add(30 * time.Second))
	}
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

type joined struct {
	a, b   *net.TCPConn // the outer ends
	pair   *splice.Pair
	up     atomic.Uint64
	down   atomic.Uint64
	result chan error
}

func join(t testing.TB, ctx context.Context, rate uint64) *joined {
	t.Helper()
	a, a2 := tcpPair(t)
	b, b2 := tcpPair(t)
	j := &joined{a: a, b: b, result: make(chan error, 1)}
	j.pair = splice.New(a2, b2, rate, &j.up, &j.down)
	go func() { j.result <- j.pair.Run(ctx) }()
	return j
}

func TestHalfCloseBothWays(t *testing.T) {
	j := join(t, t.Context(), 0)
	request := make([]byte, 5<<20)
	rand.Read(request)
	go func() {
		_, _ = j.a.Write(request)
		_ = j.a.CloseWrite()
	}()
	got, err := io.ReadAll(j.b)
	if err != nil || !bytes.Equal(got, request) {
		t.Fatalf("read %d bytes, %v", len(got), err)
	}
	// The other direction is still open.
	if _, err := j.b.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	_ = j.b.CloseWrite()
	if got, err := io.ReadAll(j.a); err != nil || string(got) != "answer" {
		t.Fatalf("read %q, %v", got, err)
	}
	if err := <-j.result; err != nil {
		t.Errorf("Run = %v", err)
	}
	if j.up.Load() != uint64(len(request)) || j.down.Load() != 6 {
		t.Errorf("counted %d and %d bytes", j.up.Load(), j.down.Load())
	}
}

func TestCutResetsBothEnds(t *testing.T) {
	for name, end := range map[string]func(*joined, context.CancelFunc){
		"Cut": func(j *joined, _ context.CancelFunc) { j.pair.Cut(); j.pair.Cut() },
		"ctx": func(_ *joined, cancel context.CancelFunc) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			j := join(t, ctx, 0)
			_, _ = j.a.Write([]byte("x"))
			if _, err := io.ReadFull(j.b, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			end(j, cancel)
			if err := <-j.result; !errors.Is(err, splice.ErrCut) {
				t.Errorf("Run = %v, want ErrCut", err)
			}
			for _, c := range []*net.TCPConn{j.a, j.b} {
				if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
					t.Errorf("read after the cut = %v, want a reset", err)
				}
			}
		})
	}
}

func TestResetOfOneEndResetsTheOther(t *testing.T) {
	j := join(t, t.Context(), 0)
	_, _ = j.a.Write([]byte("x"))
	_, _ = io.ReadFull(j.b, make([]byte, 1))
	_ = j.a.SetLinger(0)
	_ = j.a.Close()
	if _, err := io.ReadAll(j.b); err == nil {
		t.Error("a reset of one end looks like an orderly end at the other")
	}
	if err := <-j.result; err == nil {
		t.Error("Run = nil after a reset")
	}
}

func TestRateBoundsADirection(t *testing.T) {
	j := join(t, t.Context(), 1<<20)
	start := time.Now()
	go func() {
		_, _ = j.a.Write(make([]byte, 512<<10))
		_ = j.a.CloseWrite()
	}()
	if n, err := io.Copy(io.Discard, j.b); n != 512<<10 || err != nil {
		t.Fatalf("read %d, %v", n, err)
	}
	// Never faster than the rate after the first burst; slower is the machine's business.
	if d := time.Since(start); d < 200*time.Millisecond {
		t.Errorf("512 KiB at 1 MiB/s took %s", d)
	}
	_ = j.b.Close()
	<-j.result
}
