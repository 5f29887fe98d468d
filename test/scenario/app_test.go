package scenario

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// app is a private application on loopback which counts every connection that reaches it.
type app struct {
	addr netip.AddrPort

	mu       sync.Mutex // guards the fields below
	accepted int
	changed  chan struct{} // closed and replaced at each change
	ends     []time.Time   // when connections ended, as the app saw it
	in, out  uint64        // payload read and written, ended connections included
}

// note changes the account and wakes who waits for it.
func (a *app) note(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
	close(a.changed)
	a.changed = make(chan struct{})
}

// hits is how many connections (or datagrams, for UDP) reached the app.
func (a *app) hits() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.accepted
}

// bytes is what the app itself read and wrote.
func (a *app) bytes() (in, out uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.in, a.out
}

// awaitEnds waits until the app has seen n connections end and returns when the last did.
func (a *app) awaitEnds(t testing.TB, n int) time.Time {
	t.Helper()
	late := time.After(patience)
	for {
		a.mu.Lock()
		ends, changed := a.ends, a.changed
		a.mu.Unlock()
		if len(ends) >= n {
			return ends[n-1]
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("the app saw %d connections end, want %d", len(ends), n)
		}
	}
}

// target is the app as an administrator writes it down.
func (a *app) target() string { return a.addr.String() }

func (a *app) udpTarget() string { return a.addr.String() + "/udp" }

func (a *app) port() uint16 { return a.addr.Port() }

// serveTCP runs an app; handle gets each connection and owns it.
func serveTCP(t testing.TB, handle func(a *app, c net.Conn)) *app {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &app{addr: l.Addr().(*net.TCPAddr).AddrPort(), changed: make(chan struct{})}
	var work sync.WaitGroup
	conns := &open{}
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.add(c)
			a.note(func() { a.accepted++ })
			work.Go(func() { handle(a, c); c.Close(); a.note(func() { a.ends = append(a.ends, time.Now()) }) })
		}
	})
	t.Cleanup(func() { l.Close(); conns.closeAll(); work.Wait() })
	return a
}

// open are the connections of an app, to be closed at the end of the test.
type open struct {
	mu    sync.Mutex // guards conns
	conns []net.Conn
}

func (o *open) add(c net.Conn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.conns = append(o.conns, c)
}

func (o *open) closeAll() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range o.conns {
		c.Close()
	}
}

// echo answers every byte.
func echo(t testing.TB) *app {
	return serveTCP(t, func(a *app, c net.Conn) {
		b := make([]byte, 64<<10)
		for {
			n, err := c.Read(b)
			a.note(func() { a.in += uint64(n) })
			if n > 0 {
				m, _ := c.Write(b[:n]) // the next Read says what happened
				a.note(func() { a.out += uint64(m) })
			}
			if err != nil {
				return
			}
		}
	})
}

// silent accepts and reads, and never says anything: an app that is slow.
func silent(t testing.TB) *app {
	return serveTCP(t, func(a *app, c net.Conn) {
		n, _ := io.Copy(io.Discard, c) // its end is what is waited for
		a.note(func() { a.in += uint64(n) })
	})
}

// source sends size bytes of a pattern to everybody who connects, then waits for the end.
func source(t testing.TB, size int64) *app {
	return serveTCP(t, func(a *app, c net.Conn) {
		n, _ := io.Copy(c, io.LimitReader(&pattern{}, size)) // a cut connection is part of stories
		a.note(func() { a.out += uint64(n) })
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c)
	})
}

// pattern is an endless stream of bytes that never repeats within a segment.
type pattern struct{ at uint64 }

func (p *pattern) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(p.at * 2654435761 >> 13)
		p.at++
	}
	return len(b), nil
}

// web is an HTTP app that greets.
func web(t testing.TB, greeting string) *app {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &app{addr: l.Addr().(*net.TCPAddr).AddrPort(), changed: make(chan struct{})}
	srv := &http.Server{
		ReadHeaderTimeout: patience,
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, greeting) }),
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateNew {
				a.note(func() { a.accepted++ })
			}
		},
	}
	var served sync.WaitGroup
	served.Go(func() { _ = srv.Serve(l) }) // always http.ErrServerClosed
	t.Cleanup(func() { srv.Close(); served.Wait() })
	return a
}

// refusing is an address that answers nobody: its port was open a moment ago.
func refusing(t testing.TB) *app {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return &app{addr: l.Addr().(*net.TCPAddr).AddrPort(), changed: make(chan struct{})}
}

// echoUDP answers every datagram.
func echoUDP(t testing.TB) *app {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	a := &app{addr: c.LocalAddr().(*net.UDPAddr).AddrPort(), changed: make(chan struct{})}
	var work sync.WaitGroup
	var closed atomic.Bool
	work.Go(func() {
		b := make([]byte, 64<<10)
		for !closed.Load() {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				continue // an ICMP error of a peer that went away
			}
			a.note(func() { a.accepted++; a.in += uint64(n); a.out += uint64(n) })
			_, _ = c.WriteToUDPAddrPort(b[:n], from) // lost datagrams are part of UDP
		}
	})
	t.Cleanup(func() { closed.Store(true); c.Close(); work.Wait() })
	return a
}

// roundTrip sends bytes through an echo app and compares what comes back.
func roundTrip(f net.Conn, size int) error {
	defer f.Close()
	if err := f.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() { // ends with f
		_, err := io.CopyN(f, &pattern{}, int64(size))
		sent <- err
	}()
	want := &pattern{}
	b, w := make([]byte, 8192), make([]byte, 8192)
	for left := size; left > 0; {
		n, err := f.Read(b[:min(len(b), left)])
		_, _ = want.Read(w[:n])
		if !bytes.Equal(b[:n], w[:n]) {
			return fmt.Errorf("other bytes came back after %d", size-left)
		}
		if left -= n; err != nil {
			return fmt.Errorf("%d of %d bytes are missing: %w", left, size, err)
		}
	}
	return <-sent
}
