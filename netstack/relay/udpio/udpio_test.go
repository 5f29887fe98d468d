package udpio_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/postern-zt/postern/netstack/relay/udpio"
)

func open(t testing.TB, addr string) *udpio.Socket {
	t.Helper()
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Skipf("no socket on %s: %v", addr, err)
	}
	s, err := udpio.New(pc.(*net.UDPConn))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	_ = s.Conn().SetReadDeadline(time.Now().Add(30 * time.Second))
	return s
}

func segments(n, size int) []byte {
	var b []byte
	for i := range n {
		b = append(b, bytes.Repeat([]byte{byte(i)}, size)...)
	}
	return b
}

// TestSuperPacketsKeepSegmentsAndECN sends a batch with a short tail and puts it
// together again, in however many pieces the system delivers it.
func TestSuperPacketsKeepSegmentsAndECN(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		for ecn := range byte(4) {
			t.Run(fmt.Sprint(addr, ecn), func(t *testing.T) {
				a, b := open(t, addr), open(t, addr)
				want := append(segments(20, 1200), 1, 2, 3)
				if err := a.Write(want, 1200, ecn, b.LocalAddr(), new(udpio.Scratch)); err != nil {
					t.Fatal(err)
				}
				collect(t, b, want, ecn)
			})
		}
	}
}

func collect(t *testing.T, b *udpio.Socket, want []byte, ecn byte) {
	t.Helper()
	buf := make([]byte, udpio.MaxRead)
	var got []byte
	for len(got) < len(want) {
		p, err := b.Read(buf, new(udpio.Scratch))
		if err != nil {
			t.Fatal(err)
		}
		if runtime.GOOS == "linux" && p.ECN != ecn {
			t.Errorf("ECN = %d, want %d", p.ECN, ecn)
		}
		if p.N > 1200 && p.Segment != 1200 {
			t.Errorf("%d bytes in segments of %d", p.N, p.Segment)
		}
		got = append(got, buf[:p.N]...)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("received %d bytes that differ from the %d sent", len(got), len(want))
	}
}

func TestMappedAddressesAreServed(t *testing.T) {
	dual, four := open(t, "[::]:0"), open(t, "127.0.0.1:0")
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), dual.LocalAddr().Port())
	if err := four.Write([]byte("ping"), 0, 2, to, new(udpio.Scratch)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, udpio.MaxRead)
	p, err := dual.Read(buf, new(udpio.Scratch))
	if err != nil {
		t.Fatal(err)
	}
	if err := dual.Write(segments(3, 100), 100, 1, p.Source, new(udpio.Scratch)); err != nil {
		t.Fatal(err)
	}
	collect(t, four, segments(3, 100), 1)
}

func TestTooLargeIsTold(t *testing.T) {
	a, b := open(t, "127.0.0.1:0"), open(t, "127.0.0.1:0")
	err := a.Write(make([]byte, 70000), 0, 0, b.LocalAddr(), new(udpio.Scratch))
	if !errors.Is(err, udpio.ErrTooLarge) {
		t.Errorf("Write(70000 bytes) = %v", err)
	}
}

func TestCloseEndsRead(t *testing.T) {
	s := open(t, "127.0.0.1:0")
	done := make(chan error, 1)
	go func() {
		_, err := s.Read(make([]byte, udpio.MaxRead), new(udpio.Scratch))
		done <- err
	}()
	_ = s.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read = %v", err)
	}
}

func TestReadAndWriteAllocateNothing(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the fallback is plain")
	}
	a, b := open(t, "127.0.0.1:0"), open(t, "127.0.0.1:0")
	buf, x, y := make([]byte, udpio.MaxRead), new(udpio.Scratch), new(udpio.Scratch)
	p, to := segments(10, 1200), b.LocalAddr()
	n := testing.AllocsPerRun(100, func() {
		if a.Write(p, 1200, 1, to, x) != nil {
			t.Error("write failed")
		}
		for got := 0; got < len(p); {
			r, err := b.Read(buf, y)
			if err != nil {
				t.Fatal(err)
			}
			got += r.N
		}
	})
	if n != 0 {
		t.Errorf("%v allocations per super-packet", n)
	}
}
