//go:build !race

package flow

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/postern-zt/postern/proto/frame"
)

// cannedStream takes every write and yields the same data frame at rising offsets.
type cannedStream struct {
	net.Conn
	offset uint64
	n      int
}

func (s *cannedStream) Write(p []byte) (int, error)      { return len(p), nil }
func (s *cannedStream) CloseWrite() error                { return nil }
func (s *cannedStream) Abort()                           {}
func (s *cannedStream) SetReadDeadline(time.Time) error  { return nil }
func (s *cannedStream) SetWriteDeadline(time.Time) error { return nil }

func (s *cannedStream) Read(p []byte) (int, error) {
	if len(p) < frame.HeaderLen+s.n {
		return 0, io.ErrShortBuffer
	}
	frame.PutHeader(p, frame.Header{Type: frame.TypeData, Length: uint32(s.n), Value: s.offset})
	s.offset += uint64(s.n)
	return frame.HeaderLen + s.n, nil
}

// The hot path costs no allocation per read of the program's socket or of the stream. The
// race detector makes sync.Pool drop things at random, so there the file does not exist.
func TestHotPathDoesNotAllocate(t *testing.T) {
	mem := NewMemory(0)
	f := New(Config{ID: 1, Epoch: 1, Memory: mem})
	defer func() {
		f.Abort(frame.Reset)
		f.Wait()
	}()
	s := &cannedStream{n: 60000}
	a := f.Start(s, startWindow)
	send := testing.AllocsPerRun(200, func() {
		f.send(mem.get(largeChunk), 100000)
		f.mu.Lock()
		err := f.core.onAck(frame.Ack{Received: f.core.sent, Drained: f.core.sent, Window: startWindow})
		f.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
	})
	r := frameReader{f: f, a: a, size: largeChunk}
	defer r.drop()
	receive := testing.AllocsPerRun(200, func() {
		r.size = largeChunk
		if err := r.fill(); err != nil {
			t.Fatal(err)
		}
		if err := r.parse(); err != nil {
			t.Fatal(err)
		}
		for p, ok, _, _ := f.tryTake(); ok; p, ok, _, _ = f.tryTake() {
			f.drained(p, len(p.b))
		}
	})
	if send > 0 || receive > 0 {
		t.Errorf("%v allocations per send, %v per receive", send, receive)
	}
}
