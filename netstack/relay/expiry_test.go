package relay

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-zt/postern/netstack/splice"
	"github.com/postern-zt/postern/proto/ticket"
)

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
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// TestJoinedConnectionsEndWithTheLinksNewestTicket drives the relay's clock: the timer
// is short, what it decides depends on the clock and the renewal alone.
func TestJoinedConnectionsEndWithTheLinksNewestTicket(t *testing.T) {
	b := newBench(t, Limits{})
	var clock atomic.Int64
	end := b.now.Add(time.Hour)
	clock.Store(end.Add(-50 * time.Millisecond).UnixNano())
	looked := make(chan struct{}, 100)
	b.relay.cfg.Now = func() time.Time {
		looked <- struct{}{}
		return time.Unix(0, clock.Load())
	}
	tk := b.client(b.holder(nil)).tk
	k, flow := b.relay.reserve(tk, func() {})
	defer b.relay.unreserve(tk.Handle, k, flow)
	near, a := tcpPair(t)
	far, z := tcpPair(t)
	done := make(chan struct{})
	go func() { defer close(done); b.relay.run(t.Context(), k, splice.New(a, z, 0, nil, nil)) }()
	<-looked // the watcher waits for the end of the first ticket
	newer := tk
	newer.NotBefore, newer.Expires = tk.NotBefore.Add(time.Second), end.Add(50*time.Millisecond)
	older := tk
	older.NotBefore, older.Expires = tk.NotBefore.Add(-time.Second), end.Add(time.Hour)
	b.relay.mu.Lock()
	if !k.renewLocked(newer) || !k.renewLocked(older) {
		t.Error("renewal refused")
	}
	b.relay.mu.Unlock()
	clock.Store(end.UnixNano())
	<-looked // past the first ticket: the newer one holds
	if _, err := near.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(far, make([]byte, 1)); err != nil {
		t.Fatalf("a renewed link was cut: %v", err)
	}
	clock.Store(end.Add(time.Minute).UnixNano())
	<-done
	if _, err := near.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read after the newest ticket's end = %v, want a reset", err)
	}
	other := tk
	other.Connector = ticket.NewHandle()
	b.relay.mu.Lock()
	defer b.relay.mu.Unlock()
	if k.renewLocked(other) {
		t.Error("renewed towards another connector")
	}
}
