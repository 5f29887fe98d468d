package flow

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/test/netlab"
)

// labStream is a netlab connection as a carrier's stream.
type labStream struct{ *netlab.Conn }

func (s labStream) Abort() {
	_ = s.SetLinger(0)
	_ = s.Close()
}

// joined returns two flows attached to one another.
func joined(t *testing.T, mem *Memory) (a, b *Flow) {
	t.Helper()
	s := netlab.NewStream(netlab.StreamConfig{})
	a, b = New(Config{ID: 1, Epoch: 1, Memory: mem}), New(Config{ID: 1, Epoch: 1, Memory: mem})
	for f, c := range map[*Flow]*netlab.Conn{a: s.A, b: s.B} {
		att := f.Start(labStream{c}, mem.Window())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = f.Serve(att)
		}()
		t.Cleanup(func() {
			f.Abort(frame.Reset)
			f.Wait()
			_ = c.Close()
			<-done
		})
	}
	return a, b
}

func TestHalfCloseBothWays(t *testing.T) {
	a, b := joined(t, NewMemory(0))
	_, _ = a.Write([]byte("request"))
	_ = a.CloseWrite()
	if got, err := io.ReadAll(b); err != nil || string(got) != "request" {
		t.Fatalf("b read %q, %v", got, err)
	}
	_, _ = b.Write([]byte("response"))
	_ = b.CloseWrite()
	if got, err := io.ReadAll(a); err != nil || string(got) != "response" {
		t.Fatalf("a read %q, %v", got, err)
	}
	a.Wait()
	b.Wait()
	want := Stats{ToApp: 8, FromApp: 7}
	if diff := cmp.Diff(want, a.Stats()); diff != "" {
		t.Errorf("a: %s", diff)
	}
	if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after the end = %v", err)
	}
}

func TestCloseWithUnreadBytesResets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := joined(t, NewMemory(0))
		_, _ = a.Write([]byte("unread"))
		synctest.Wait()
		_ = b.Close()
		if _, err := a.Read(make([]byte, 1)); frame.CodeOf(err) != frame.Reset {
			t.Errorf("a saw %v, want reset", err)
		}
	})
}

func TestCloseWithoutUnreadBytesIsClean(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := joined(t, NewMemory(0))
		_ = b.Close()
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("a saw %v, want EOF", err)
		}
		_ = a.Close()
		a.Wait()
		b.Wait()
		if a.Err() != nil || b.Err() != nil {
			t.Errorf("ended with %v and %v", a.Err(), b.Err())
		}
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := joined(t, NewMemory(0))
		_ = a.SetDeadline(time.Now().Add(time.Second))
		var timeout net.Error
		if _, err := a.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("read = %v, want a timeout", err)
		}
		if _, err := a.Write(make([]byte, 10*MaxWindow)); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("write against a full window = %v, want a timeout", err)
		}
	})
}

// A slow reader bounds the memory of both sides: nothing times out, nothing is lost.
func TestBackpressureIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := joined(t, NewMemory(0))
		go func() {
			_, _ = a.Write(make([]byte, 10*MaxWindow))
			_ = a.CloseWrite()
		}()
		<-time.After(time.Hour) // fake time: the bubble is idle at once
		if held := a.Stats().FromApp; held > MaxWindow {
			t.Errorf("%d bytes are under way to a reader that does not read", held)
		}
		n, err := io.Copy(io.Discard, struct{ io.Reader }{b})
		if n != 10*MaxWindow || err != nil {
			t.Errorf("read %d, %v", n, err)
		}
	})
}

func TestMemoryShare(t *testing.T) {
	m := NewMemory(64 << 20)
	for flows, want := range map[int64]int{0: MaxWindow, 1: MaxWindow, 8: 4 << 20, 64: 512 << 10, 100000: FloorWindow} {
		m.flows.Store(flows)
		if got := m.share(); got != want {
			t.Errorf("share of %d flows = %d, want %d", flows, got, want)
		}
	}
}

func TestQueueMergesSmallPieces(t *testing.T) {
	m := NewMemory(0)
	var q queue
	c := m.get(largeChunk)
	var want []byte
	for i := range 10000 {
		c.mem[i] = byte(i)
		q.push(m, c, c.mem[i:i+1])
		want = append(want, byte(i))
	}
	if len(q.list) > 3 {
		t.Errorf("10000 single bytes take %d entries", len(q.list))
	}
	var got []byte
	for !q.empty() {
		p := q.pop()
		got = append(got, p.b...)
		p.c.release()
	}
	if !bytes.Equal(got, want) {
		t.Error("merged bytes differ")
	}
}

func TestFragmentsRoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, 1185, 1186, 1187, 65535} {
		p := bytes.Repeat([]byte{7, 1, 3}, n/3+1)[:n]
		var r reassembler
		var got []byte
		pieces := 0
		err := fragments(9, 1, p, 1200, func(b []byte) error {
			f, piece, err := frame.ParseFragment(b)
			if err != nil || f.Flow != 9 || len(b) > 1200 {
				t.Fatalf("fragment %+v of %d bytes: %v", f, len(b), err)
			}
			pieces++
			if d := r.add(f, piece, time.Unix(0, 0)); d != nil {
				got = append([]byte{}, d...)
			}
			return nil
		})
		if err != nil || !bytes.Equal(got, p) || r.bytes != 0 || len(r.partial) != 0 {
			t.Errorf("%d bytes in %d pieces: %v, %d left over", n, pieces, err, r.bytes)
		}
	}
	if err := fragments(9, 1, make([]byte, 65535), 600, nil); !errors.Is(err, errTooLarge) {
		t.Errorf("too many pieces: %v", err)
	}
}

func TestReassemblyIsBounded(t *testing.T) {
	var r reassembler
	now := time.Unix(100, 0)
	for id := range uint32(5000) {
		r.add(frame.Fragment{Datagram: id, Index: 0, Total: 2}, make([]byte, 1000), now.Add(time.Duration(id)))
	}
	if r.bytes > reassembleBytes || len(r.partial) > maxPartial {
		t.Errorf("%d bytes in %d parts are held", r.bytes, len(r.partial))
	}
	if d := r.add(frame.Fragment{Datagram: 4999, Index: 1, Total: 2}, make([]byte, 10), now.Add(2*time.Second)); d != nil {
		t.Error("a datagram was completed after its time")
	}
	if d := r.add(frame.Fragment{Datagram: 1, Index: 0, Total: 2}, nil, now); d != nil || r.add(frame.Fragment{Datagram: 1, Index: 0, Total: 3}, nil, now) != nil {
		t.Error("pieces that disagree were joined")
	}
}

// FuzzReader feeds arbitrary bytes to a flow as its peer: it may reset, never panic, and
// must not hold more than the window.
func FuzzReader(f *testing.F) {
	f.Add(frame.AppendFin(nil, 0))
	f.Add(frame.AppendRst(nil, 0, frame.Revoked))
	f.Add(frame.AppendAck(frame.AppendAck(nil, frame.Ack{}), frame.Ack{Received: 9}))
	f.Add(append([]byte{9, 2, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0}, "abc"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 64<<10 {
			return
		}
		mem := NewMemory(1 << 20)
		fl := New(Config{ID: 1, Epoch: 1, Memory: mem})
		s := netlab.NewStream(netlab.StreamConfig{})
		_, _ = s.B.Write(b)
		_ = s.B.CloseWrite()
		att := fl.Start(labStream{s.A}, 0)
		_ = fl.Serve(att)
		if held := fl.core.received; held > uint64(len(b)) {
			t.Errorf("%d bytes from %d", held, len(b))
		}
		fl.Abort(frame.Reset)
		fl.Wait()
	})
}
