package mux_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-zt/postern/netstack/mux"
	"github.com/postern-zt/postern/test/netlab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// plainConn is a mux.Conn without encryption.
type plainConn struct {
	net.Conn
	once sync.Once
}

func (c *plainConn) WriteFrame(head, body []byte) error {
	_, err := c.Write(append(append([]byte(nil), head...), body...))
	return err
}

func (c *plainConn) Close() (err error) {
	c.once.Do(func() { err = c.Conn.Close() })
	return err
}

// run starts a session that the test's end closes and awaits.
func run(t testing.TB, c net.Conn, client bool) *mux.Session {
	t.Helper()
	s := mux.New(&plainConn{Conn: c}, client)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.Run()
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-ended
	})
	return s
}

func pairOf(t testing.TB) (client, server *mux.Session, lab *netlab.Stream) {
	t.Helper()
	lab = netlab.NewStream(netlab.StreamConfig{})
	return run(t, lab.A, true), run(t, lab.B, false), lab
}

// open opens a stream and gives both ends; the first byte is "o".
func open(t testing.TB, client, server *mux.Session) (near, far *mux.Stream) {
	t.Helper()
	near, err := client.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := near.Write([]byte("o")); err != nil {
		t.Fatal(err)
	}
	far, err = server.AcceptStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if b := make([]byte, 1); read(t, far, b) != "o" {
		t.Fatalf("first byte %q", b)
	}
	return near, far
}

func read(t testing.TB, r io.Reader, b []byte) string {
	t.Helper()
	if _, err := io.ReadFull(r, b); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

func TestManyStreamsBothWays(t *testing.T) {
	client, server, _ := pairOf(t)
	const streams = 200
	want := random(300 << 10)
	var work sync.WaitGroup
	work.Go(func() {
		for range streams {
			st, err := server.AcceptStream(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			work.Go(func() {
				_, _ = io.Copy(struct{ io.Writer }{st}, st)
				_ = st.CloseWrite()
			})
		}
	})
	for range streams {
		work.Go(func() {
			st, err := client.OpenStream()
			if err != nil {
				t.Error(err)
				return
			}
			go func() {
				_, _ = st.Write(want)
				_ = st.CloseWrite()
			}()
			if got, err := io.ReadAll(st); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes back, %v", len(got), err)
			}
		})
	}
	work.Wait()
	if c, s := mux.StreamsForTest(client), mux.StreamsForTest(server); c != 0 || s != 0 {
		t.Errorf("%d and %d streams are remembered after their ends", c, s)
	}
	if held := mux.HeldForTest(client) + mux.HeldForTest(server); held != 0 {
		t.Errorf("%d bytes are held by nobody", held)
	}
}

func TestHalfClose(t *testing.T) {
	client, server, _ := pairOf(t)
	near, far := open(t, client, server)
	_, _ = near.Write([]byte("question"))
	_ = near.CloseWrite()
	if q, err := io.ReadAll(far); err != nil || string(q) != "question" {
		t.Fatalf("far read %q, %v", q, err)
	}
	_, _ = far.Write([]byte("answer"))
	_ = far.CloseWrite()
	if a, err := io.ReadAll(near); err != nil || string(a) != "answer" {
		t.Errorf("near read %q, %v", a, err)
	}
	if _, err := near.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write after CloseWrite = %v", err)
	}
}

func TestAbortReachesThePeer(t *testing.T) {
	client, server, _ := pairOf(t)
	near, far := open(t, client, server)
	near.Abort()
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, mux.ErrReset) {
		t.Errorf("the peer reads %v, want ErrReset", err)
	}
	if _, err := far.Write([]byte("x")); !errors.Is(err, mux.ErrReset) {
		t.Errorf("the peer writes %v, want ErrReset", err)
	}
	if _, err := near.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("own Read = %v, want net.ErrClosed", err)
	}
	near.Abort() // safe twice
}

// A stream that was closed takes no more, and what still comes for it harms nobody.
func TestBytesAfterCloseArePassedOver(t *testing.T) {
	client, server, _ := pairOf(t)
	near, far := open(t, client, server)
	_ = near.Close()
	for range 100 {
		if _, err := far.Write(make([]byte, 64<<10)); err != nil {
			t.Fatal(err)
		}
	}
	other, otherFar := open(t, client, server)
	_, _ = otherFar.Write([]byte("!"))
	if got := read(t, other, make([]byte, 1)); got != "!" {
		t.Errorf("the other stream read %q", got)
	}
	if held := mux.HeldForTest(client); held != 0 {
		t.Errorf("%d bytes of a closed stream are held", held)
	}
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, lab := pairOf(t)
		near, far := open(t, client, server)
		_ = near.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read = %v", err)
		}
		_ = near.SetReadDeadline(time.Time{})
		time.AfterFunc(time.Second, func() { _ = near.SetReadDeadline(time.Unix(1, 0)) })
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read under a deadline that was moved = %v", err)
		}
		_ = near.SetReadDeadline(time.Time{})
		_, _ = far.Write([]byte("x"))
		if got := read(t, near, make([]byte, 1)); got != "x" {
			t.Errorf("read %q after the deadlines", got)
		}
		lab.Cut()
		go func() { _, _ = near.Write(make([]byte, 1<<20)) }() // keeps the turn
		synctest.Wait()
		other, _ := client.OpenStream()
		_ = other.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := other.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Write behind one that is stuck = %v", err)
		}
	})
}

// A path that takes nothing ends the session, it does not hold writers for ever.
func TestStuckWriteEndsTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, lab := pairOf(t)
		near, _ := open(t, client, server)
		lab.Cut()
		start := time.Now()
		if _, err := near.Write(make([]byte, 1<<20)); err == nil {
			t.Error("a write into nothing succeeded")
		}
		if took := time.Since(start); took > time.Minute {
			t.Errorf("took %s", took)
		}
		<-client.Done()
	})
}

// A stream that nobody reads stops its session, and ends it when that lasts; until then
// the others get everything as soon as it is read.
func TestUnreadStream(t *testing.T) {
	t.Run("read in time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client, server, _ := pairOf(t)
			near, far := open(t, client, server)
			other, otherFar := open(t, client, server)
			want := random(12 << 20)
			go func() {
				_, _ = near.Write(want)
				_, _ = other.Write([]byte("behind"))
			}()
			synctest.Wait()
			if held := mux.HeldForTest(server); held > 9<<20 {
				t.Errorf("%d bytes are held for a stream that nobody reads", held)
			}
			<-time.After(20 * time.Second) // fake: within the patience
			got := make([]byte, len(want))
			if read(t, far, got); !bytes.Equal(got, want) {
				t.Error("bytes differ")
			}
			if got := read(t, otherFar, make([]byte, 6)); got != "behind" {
				t.Errorf("other stream read %q", got)
			}
		})
	})
	t.Run("never read", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client, server, _ := pairOf(t)
			near, _ := open(t, client, server)
			go func() { _, _ = near.Write(make([]byte, 12<<20)) }()
			select {
			case <-server.Done():
			case <-time.After(time.Minute):
				t.Error("the session waits for ever")
			}
		})
	})
}

// The death of a session is told to each reader once: with a thousand of them blocked,
// each returns from one Read.
func TestDeathWakesEachReaderOnce(t *testing.T) {
	client, server, lab := pairOf(t)
	const streams = 1000
	var work sync.WaitGroup
	var returned atomic.Int64
	for range streams {
		near, far := open(t, client, server)
		for _, st := range []*mux.Stream{near, far} {
			work.Go(func() {
				if _, err := st.Read(make([]byte, 1)); err == nil {
					t.Error("a stream of a dead session reads")
				}
				returned.Add(1)
			})
		}
	}
	unheard, _ := client.OpenStream()
	work.Go(func() { // a stream that the session does not know yet
		if _, err := unheard.Read(make([]byte, 1)); err == nil {
			t.Error("reads")
		}
	})
	lab.Reset()
	work.Wait()
	if n := returned.Load(); n != 2*streams {
		t.Errorf("%d of %d readers returned", n, 2*streams)
	}
	if _, err := client.OpenStream(); err == nil {
		t.Error("a dead session opens streams")
	}
	if _, err := server.AcceptStream(t.Context()); err == nil {
		t.Error("a dead session accepts streams")
	}
}

// Streams beyond the backlog are refused, the rest live.
func TestBacklogIsBounded(t *testing.T) {
	client, server, _ := pairOf(t)
	var all []*mux.Stream
	for range 1100 {
		st, err := client.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		all = append(all, st)
	}
	last := all[len(all)-1]
	if _, err := last.Read(make([]byte, 1)); !errors.Is(err, mux.ErrReset) {
		t.Errorf("a stream beyond the backlog reads %v, want ErrReset", err)
	}
	first, err := server.AcceptStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = first.Write([]byte("y"))
	if got := read(t, all[0], make([]byte, 1)); got != "y" {
		t.Errorf("the first stream read %q", got)
	}
}

func frameOf(typ byte, stream uint32, body ...byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(typ)<<24|uint32(len(body)))
	return append(binary.BigEndian.AppendUint32(b, stream), body...)
}

// What a peer must not send ends the session; what it may send does not.
func TestPeerThatBreaksTheRules(t *testing.T) {
	const data, opens, fin, reset, datagram, ping, pong = 1, 2, 3, 4, 5, 6, 7
	nonce := make([]byte, 8)
	long := binary.BigEndian.AppendUint32(nil, uint32(data)<<24|uint32(128<<10+1))
	for _, tt := range []struct {
		name string
		send [][]byte
		ends bool
	}{
		{"open", [][]byte{frameOf(opens, 1, 'x')}, false},
		{"empty open", [][]byte{frameOf(opens, 1)}, false},
		{"data and end", [][]byte{frameOf(opens, 1, 'x'), frameOf(data, 1, 'y'), frameOf(fin, 1)}, false},
		{"end twice", [][]byte{frameOf(opens, 1), frameOf(fin, 1), frameOf(fin, 1)}, false},
		{"reset twice", [][]byte{frameOf(opens, 1), frameOf(reset, 1), frameOf(reset, 1)}, false},
		{"data after reset", [][]byte{frameOf(opens, 1), frameOf(reset, 1), frameOf(data, 1, 'x')}, false},
		{"ids with gaps", [][]byte{frameOf(opens, 1), frameOf(opens, 9), frameOf(data, 3, 'x')}, false},
		{"datagram", [][]byte{frameOf(datagram, 0, 'x')}, false},
		{"ping and a pong nobody asked for", [][]byte{frameOf(ping, 0, nonce...), frameOf(pong, 0, nonce...)}, false},
		{"data without open", [][]byte{frameOf(data, 1, 'x')}, true},
		{"open twice", [][]byte{frameOf(opens, 1), frameOf(opens, 1)}, true},
		{"open backwards", [][]byte{frameOf(opens, 5), frameOf(opens, 3)}, true},
		{"open with our parity", [][]byte{frameOf(opens, 2)}, true},
		{"data on a stream of ours that is none", [][]byte{frameOf(data, 2, 'x')}, true},
		{"unknown type", [][]byte{frameOf(8, 1)}, true},
		{"type 0", [][]byte{frameOf(0, 1)}, true},
		{"data on stream 0", [][]byte{frameOf(data, 0, 'x')}, true},
		{"datagram on a stream", [][]byte{frameOf(datagram, 1, 'x')}, true},
		{"end with a body", [][]byte{frameOf(opens, 1), frameOf(fin, 1, 'x')}, true},
		{"short ping", [][]byte{frameOf(ping, 0, 1, 2)}, true},
		{"too long", [][]byte{frameOf(opens, 1), binary.BigEndian.AppendUint32(long, 1)}, true},
		{"last id", [][]byte{frameOf(opens, 1<<32-1)}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab := netlab.NewStream(netlab.StreamConfig{})
			server := run(t, lab.B, false)
			for _, f := range tt.send {
				if _, err := lab.A.Write(f); err != nil {
					t.Fatal(err)
				}
			}
			go func() { _, _ = io.Copy(io.Discard, lab.A) }()
			_, _ = lab.A.Write(frameOf(datagram, 0, 'e')) // the end of the list
			for {
				b, err := server.ReceiveDatagram(t.Context())
				if err == nil && string(b) != "e" {
					continue
				}
				if ended := err != nil; ended != tt.ends {
					t.Errorf("session ended: %v (%v), want %v", ended, err, tt.ends)
				}
				break
			}
			_ = lab.A.Close()
		})
	}
}

func FuzzSession(f *testing.F) {
	f.Add(append(frameOf(2, 1, 'x'), frameOf(3, 1)...))
	f.Add(append(frameOf(2, 1, 'x', 'y'), frameOf(4, 1)...))
	f.Add(append(frameOf(5, 0, 'd'), frameOf(6, 0, 1, 2, 3, 4, 5, 6, 7, 8)...))
	f.Add(frameOf(1, 7, 'x'))
	f.Fuzz(func(t *testing.T, b []byte) {
		lab := netlab.NewStream(netlab.StreamConfig{Buffer: 1 << 20})
		s := mux.New(&plainConn{Conn: lab.B}, false)
		var work sync.WaitGroup
		work.Go(func() {
			for {
				st, err := s.AcceptStream(t.Context())
				if err != nil {
					return
				}
				work.Go(func() { _, _ = io.Copy(io.Discard, st); _ = st.Close() })
			}
		})
		work.Go(func() { _, _ = io.Copy(io.Discard, lab.A) })
		_, _ = lab.A.Write(b[:min(len(b), 1<<20)])
		_ = lab.A.CloseWrite()
		_ = s.Run()
		_ = lab.A.Close()
		work.Wait()
	})
}
