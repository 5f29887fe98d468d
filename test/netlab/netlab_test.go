package netlab_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-zt/postern/test/netlab"
)

func TestStreamLatencyAndHalfClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := netlab.NewStream(netlab.StreamConfig{Latency: 30 * time.Millisecond})
		start := time.Now()
		_, _ = s.A.Write([]byte("hello"))
		_ = s.A.CloseWrite()
		got, err := io.ReadAll(s.B)
		if err != nil || string(got) != "hello" || time.Since(start) != 30*time.Millisecond {
			t.Errorf("%q, %v after %s", got, err, time.Since(start))
		}
		_, _ = s.B.Write([]byte("still open"))
		if n, err := s.A.Read(make([]byte, 64)); n != 10 || err != nil {
			t.Errorf("read %d, %v after our half-close", n, err)
		}
	})
}

func TestStreamCutAndHeal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := netlab.NewStream(netlab.StreamConfig{})
		s.Cut()
		_, _ = s.A.Write([]byte("late"))
		_ = s.B.SetReadDeadline(time.Now().Add(time.Second))
		if n, err := s.B.Read(make([]byte, 4)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a cut stream delivered %d, %v", n, err)
		}
		_ = s.B.SetReadDeadline(time.Time{})
		time.AfterFunc(time.Second, s.Heal)
		if n, err := s.B.Read(make([]byte, 4)); n != 4 || err != nil {
			t.Errorf("a healed stream delivered %d, %v", n, err)
		}
	})
}

func TestStreamBackpressure(t *testing.T) {
	s := netlab.NewStream(netlab.StreamConfig{Buffer: 100})
	_ = s.A.SetWriteDeadline(time.Now())
	if n, err := s.A.Write(make([]byte, 1000)); n != 100 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("wrote %d, %v into a buffer of 100", n, err)
	}
}

func TestStreamEnds(t *testing.T) {
	for name, tt := range map[string]struct {
		end  func(*netlab.Stream)
		want error
	}{
		"reset":               {(*netlab.Stream).Reset, syscall.ECONNRESET},
		"close":               {func(s *netlab.Stream) { _ = s.A.Close() }, io.EOF},
		"linger":              {func(s *netlab.Stream) { _ = s.A.SetLinger(0); _ = s.A.Close() }, syscall.ECONNRESET},
		"close with unread":   {func(s *netlab.Stream) { _, _ = s.B.Write([]byte("x")); _ = s.A.Close() }, syscall.ECONNRESET},
		"close of this side":  {func(s *netlab.Stream) { _ = s.B.Close() }, net.ErrClosed},
		"closed twice, clean": {func(s *netlab.Stream) { _ = s.A.Close(); _ = s.A.Close() }, io.EOF},
	} {
		t.Run(name, func(t *testing.T) {
			s := netlab.NewStream(netlab.StreamConfig{})
			tt.end(s)
			if _, err := s.B.Read(make([]byte, 1)); !errors.Is(err, tt.want) {
				t.Errorf("read = %v, want %v", err, tt.want)
			}
		})
	}
}

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func listen(t *testing.T, n *netlab.PacketNet, addr string) *netlab.PacketConn {
	t.Helper()
	c, err := n.Listen(at(addr))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestPacketsLossIsRepeatable(t *testing.T) {
	count := func() int {
		got := 0
		synctest.Test(t, func(t *testing.T) {
			n := netlab.NewPacketNet(netlab.PacketConfig{Latency: time.Millisecond, Loss: 0.2, Seed: 7})
			a, b := listen(t, n, "10.0.0.1:1"), listen(t, n, "10.0.0.2:2")
			for range 1000 {
				_, _ = a.WriteTo([]byte("x"), b.LocalAddr())
			}
			_ = b.SetReadDeadline(time.Now().Add(time.Second))
			for {
				if _, _, err := b.ReadFrom(make([]byte, 10)); err != nil {
					return
				}
				got++
			}
		})
		return got
	}
	first := count()
	if first < 700 || first > 900 || count() != first {
		t.Errorf("%d of 1000 arrived, then another number", first)
	}
}

func TestPacketsReorderCutAndClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := netlab.NewPacketNet(netlab.PacketConfig{Jitter: 10 * time.Millisecond, Seed: 3})
		a, b := listen(t, n, "10.0.0.1:0"), listen(t, n, "10.0.0.2:2")
		for i := range 50 {
			_, _ = a.WriteTo([]byte{byte(i)}, b.LocalAddr())
		}
		overtaken, last := false, -1
		buf := make([]byte, 10)
		for range 50 {
			_, from, err := b.ReadFrom(buf)
			if err != nil || from.String() != a.LocalAddr().String() {
				t.Fatalf("from %v, %v", from, err)
			}
			overtaken = overtaken || int(buf[0]) < last
			last = int(buf[0])
		}
		if !overtaken {
			t.Error("no packet overtook another")
		}
		n.Cut(at("10.0.0.1:1").Addr(), at("10.0.0.2:2").Addr())
		_, _ = a.WriteTo([]byte("lost"), b.LocalAddr())
		_ = b.SetReadDeadline(time.Now().Add(time.Second))
		if _, _, err := b.ReadFrom(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a cut path delivered: %v", err)
		}
		_ = b.Close()
		if _, _, err := b.ReadFrom(buf); !errors.Is(err, net.ErrClosed) {
			t.Errorf("closed socket: %v", err)
		}
	})
}
