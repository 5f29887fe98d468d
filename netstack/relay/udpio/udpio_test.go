package udpio_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
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
				carry(t, a, b, b.LocalAddr(), want, 1200, ecn)
			})
		}
	}
}

// carry sends p until it has arrived whole: even loopback drops under load.
func carry(t *testing.T, a, b *udpio.Socket, to netip.AddrPort, p []byte, segment int, ecn byte) {
	t.Helper()
	for range 50 {
		if err := a.Write(p, segment, ecn, to, new(udpio.Scratch)); err != nil {
			t.Fatal(err)
		}
		if got := collect(t, b, len(p), segment, ecn); bytes.Equal(got, p) {
			return
		} else if len(got) == len(p) {
			t.Fatal("received other bytes than were sent")
		}
	}
	t.Fatal("nothing arrived whole")
}

func collect(t *testing.T, b *udpio.Socket, want, segment int, ecn byte) (got []byte) {
	t.Helper()
	buf := make([]byte, udpio.MaxRead)
	_ = b.Conn().SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	for len(got) < want {
		p, err := b.Read(buf, new(udpio.Scratch))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		if runtime.GOOS == "linux" && p.ECN != ecn {
			t.Errorf("ECN = %d, want %d", p.ECN, ecn)
		}
		if p.N > segment && p.Segment != segment {
			t.Errorf("%d bytes in segments of %d", p.N, p.Segment)
		}
		got = append(got, buf[:p.N]...)
	}
	return got
}

func TestMappedAddressesAreServed(t *testing.T) {
	dual, four := open(t, "[::]:0"), open(t, "127.0.0.1:0")
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), dual.LocalAddr().Port())
	carry(t, four, dual, to, segments(2, 100), 100, 2)
	mapped := netip.AddrPortFrom(netip.AddrFrom16(four.LocalAddr().Addr().As16()), four.LocalAddr().Port())
	carry(t, dual, four, mapped, segments(3, 100), 100, 1)
}

// TestLocalAddress: a socket bound to all addresses tells to which of them a datagram came,
// and sends whole batches from it; one bound to a single address has nothing to tell.
func TestLocalAddress(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells")
	}
	for at, local := range map[string]string{
		"0.0.0.0:0": "127.0.0.2", "[::]:0": "::1", "127.0.0.1:0": "", "[::1]:0": "",
	} {
		t.Run(at, func(t *testing.T) {
			a := open(t, at)
			if err := a.ReportLocal(); err != nil {
				t.Fatal(err)
			}
			to, want := a.LocalAddr().Addr(), netip.Addr{}
			if local != "" {
				want = netip.MustParseAddr(local)
				to = want
			}
			b := open(t, netip.AddrPortFrom(to, 0).String())
			x := new(udpio.Scratch)
			if err := b.Write([]byte("hello"), 0, 2, netip.AddrPortFrom(to, a.LocalAddr().Port()), x); err != nil {
				t.Fatal(err)
			}
			p, err := a.Read(make([]byte, udpio.MaxRead), x)
			if err != nil || p.Local != want || p.ECN != 2 {
				t.Fatalf("Read = local %v, ECN %d, %v; want %v, 2", p.Local, p.ECN, err, want)
			}
			if err := a.WriteFrom(p.Local, segments(5, 1000), 1000, 1, p.Source, x); err != nil {
				t.Fatal(err)
			}
			p, err = b.Read(make([]byte, udpio.MaxRead), x)
			if err != nil || p.Source.Addr() != to || p.ECN != 1 {
				t.Fatalf("Read = from %v, ECN %d, %v; want from %v", p.Source, p.ECN, err, to)
			}
		})
	}
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

// TestReadAndWriteAllocateNothing counts the allocations of a super-packet and of an answer
// that leaves from where the packet came to.
func TestReadAndWriteAllocateNothing(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the fallback is plain")
	}
	for _, at := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::]:0"} {
		a, b := open(t, "127.0.0.1:0"), open(t, at)
		if err := b.ReportLocal(); err != nil {
			t.Fatal(err)
		}
		buf, x, y := make([]byte, udpio.MaxRead), new(udpio.Scratch), new(udpio.Scratch)
		p, to := segments(10, 1200), netip.AddrPortFrom(a.LocalAddr().Addr(), b.LocalAddr().Port())
		n := testing.AllocsPerRun(100, func() {
			if a.Write(p, 1200, 1, to, x) != nil {
				t.Error("write failed")
			}
			in, err := b.Read(buf, y)
			if err != nil || b.WriteFrom(in.Local, p, 1200, 1, in.Source, y) != nil {
				t.Fatal("no answer", err)
			}
			if _, err := a.Read(buf, x); err != nil {
				t.Fatal(err)
			}
		})
		if n != 0 {
			t.Errorf("%v allocations per super-packet to %s", n, at)
		}
	}
}
