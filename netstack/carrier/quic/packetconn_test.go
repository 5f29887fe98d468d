package quic

import (
	"bytes"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-zt/postern/netstack/relay/attach"
	"github.com/postern-zt/postern/netstack/relay/udpio"
)

// fakePath has an 8-byte header and keeps what is sent.
type fakePath struct {
	mu   sync.Mutex
	sent []sentBatch
	err  error
	gone chan struct{}
}

type sentBatch struct {
	b       []byte
	segment int
	ecn     byte
}

func (*fakePath) HeaderLen() int         { return 8 }
func (*fakePath) PutHeader(b []byte)     { copy(b, "HEADERxx") }
func (*fakePath) Raw() syscall.RawConn   { return nil }
func (*fakePath) String() string         { return "fake" }
func (f *fakePath) Close() error         { return nil }
func (f *fakePath) batches() []sentBatch { f.mu.Lock(); defer f.mu.Unlock(); return f.sent }

func (f *fakePath) Send(b []byte, segment int, ecn byte, _ *udpio.Scratch) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	f.sent = append(f.sent, sentBatch{bytes.Clone(b), segment, ecn})
	return nil
}

func (f *fakePath) Receive(stop <-chan struct{}) (attach.Packet, bool, error) {
	select {
	case <-stop:
		return attach.Packet{}, false, nil
	case <-f.gone:
		return attach.Packet{}, false, net.ErrClosed
	}
}

// newFake returns a packet conn whose flusher has been stopped, so that what is pending
// stays until the test's next write.
func newFake(t *testing.T) (*packetConn, *fakePath) {
	t.Helper()
	f := &fakePath{gone: make(chan struct{})}
	c := newPacketConn(f)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	return c, f
}

func mustWrite(t *testing.T, c *packetConn, n, segment int, ecn byte) {
	t.Helper()
	if err := c.write(bytes.Repeat([]byte{0x40}, n), segment, ecn); err != nil {
		t.Fatal(err)
	}
}

const full = 14 * 1400 // what quic-go calls a full batch: another segment exceeds 20 KiB

func TestFullBatchesAreCoalesced(t *testing.T) {
	c, f := newFake(t)
	mustWrite(t, c, full, 1400, 1)
	if n := len(f.batches()); n != 0 {
		t.Fatalf("a full batch was sent at once (%d)", n)
	}
	mustWrite(t, c, full, 1400, 1)
	mustWrite(t, c, 3*1400+100, 1400, 1) // the end of the burst, with a short tail
	got := f.batches()
	want := 2*full + 3*1400 + 100 + (14+14+4)*8
	if len(got) != 1 || len(got[0].b) != want || got[0].segment != 1408 || got[0].ecn != 1 {
		t.Fatalf("sent %d batches, first %d bytes in %d, want one of %d", len(got), len(got[0].b), got[0].segment, want)
	}
	for at := 0; at < want; at += 1408 {
		if string(got[0].b[at:at+8]) != "HEADERxx" {
			t.Fatalf("no header at %d", at)
		}
	}
}

func TestPendingIsSentBeforeItGrowsTooLarge(t *testing.T) {
	c, f := newFake(t)
	for range 9 {
		mustWrite(t, c, full, 1400, 0)
	}
	for _, s := range f.batches() {
		if len(s.b) > udpio.MaxWrite || len(s.b)/s.segment > udpio.MaxSegments {
			t.Errorf("batch of %d bytes in %d", len(s.b), s.segment)
		}
	}
}

func TestChangesFlushInOrder(t *testing.T) {
	c, f := newFake(t)
	mustWrite(t, c, full, 1400, 0)
	mustWrite(t, c, full, 1400, 1) // other mark
	mustWrite(t, c, 1452, 0, 1)    // a probe of the MTU: alone
	mustWrite(t, c, 60, 0, 0)      // an acknowledgement: at once
	got := f.batches()
	want := []int{full + 14*8, full + 14*8, 1460, 68}
	if len(got) != len(want) {
		t.Fatalf("%d batches, want %d", len(got), len(want))
	}
	for i, n := range want {
		if len(got[i].b) != n {
			t.Errorf("batch %d has %d bytes, want %d", i, len(got[i].b), n)
		}
	}
}

func TestOnlyWhatQUICMustKnowIsReturned(t *testing.T) {
	c, f := newFake(t)
	f.err = errors.New("network is unreachable")
	if err := c.write(make([]byte, 100), 0, 0); err != nil {
		t.Errorf("a network that is away: %v", err)
	}
	f.err = udpio.ErrTooLarge
	if err := c.write(make([]byte, 1452), 0, 0); !errors.Is(err, udpio.ErrTooLarge) {
		t.Errorf("a probe that does not fit: %v", err)
	}
}

func TestFlusherSendsWhatNobodyFollows(t *testing.T) {
	f := &fakePath{gone: make(chan struct{})}
	c := newPacketConn(f)
	defer c.Close()
	mustWrite(t, c, full, 1400, 0)
	for deadline := time.Now().Add(10 * time.Second); len(f.batches()) == 0; {
		if time.Now().After(deadline) {
			t.Fatal("the last full batch of a burst was never sent")
		}
	}
}

func TestReadDeadlineUnblocks(t *testing.T) {
	f := &fakePath{gone: make(chan struct{})}
	c := newPacketConn(f)
	defer c.Close()
	done := make(chan error)
	go func() {
		_, _, err := c.ReadFrom(make([]byte, 1500))
		done <- err
	}()
	_ = c.SetReadDeadline(time.Now())
	if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("ReadFrom = %v", err)
	}
	_ = c.SetReadDeadline(time.Time{})
	go func() {
		_, _, err := c.ReadFrom(make([]byte, 1500))
		done <- err
	}()
	close(f.gone)
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("ReadFrom after the path's end = %v", err)
	}
}
