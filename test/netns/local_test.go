//go:build linux

package netns_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-zt/postern/netstack/stack"
	"github.com/postern-zt/postern/platform/route"
	"github.com/postern-zt/postern/platform/tun"
	"github.com/postern-zt/postern/test/netns"
)

const (
	appV4 = "100.96.1.0"
	appV6 = "fd7a:1:2:3::100"
)

// handler answers with the functions that a test sets.
type handler struct {
	tcp  func(context.Context, *stack.HeldTCP)
	udp  func(context.Context, *stack.UDPFlow)
	echo func(context.Context, *stack.Echo)
}

func (h *handler) HandleTCP(ctx context.Context, held *stack.HeldTCP) { h.tcp(ctx, held) }
func (h *handler) HandleUDP(ctx context.Context, flow *stack.UDPFlow) { h.udp(ctx, flow) }
func (h *handler) HandleEcho(ctx context.Context, e *stack.Echo)      { h.echo(ctx, e) }

// machine is a namespace with a tunnel interface that ends in a stack.
type machine struct {
	*netns.Host
	stack *stack.Stack
	stop  func()
}

func newMachine(t testing.TB, h *handler, change func(*stack.Config)) *machine {
	t.Helper()
	host := netns.New(t).Host("client")
	log := slog.New(slog.NewTextHandler(testWriter{t}, nil))
	prefixes := []netip.Prefix{netip.MustParsePrefix("100.96.0.0/16"), netip.MustParsePrefix("fd7a:1:2:3::/64")}
	var dev *tun.Device
	err := host.Do(func() (err error) {
		if dev, err = tun.Open(tun.Config{}); err != nil {
			return err
		}
		router, err := route.New(route.RouterConfig{Log: log})
		if err != nil {
			return err
		}
		return router.Set(t.Context(), route.Config{
			Interface: dev.InterfaceName(),
			Addrs:     []netip.Prefix{netip.MustParsePrefix("100.96.0.1/32"), netip.MustParsePrefix("fd7a:1:2:3::1/128")},
			Routes:    prefixes,
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg := stack.Config{Device: dev, Handler: h, Prefixes: prefixes, Log: log}
	if change != nil {
		change(&cfg)
	}
	s, err := stack.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run() = %v", err)
		}
	})
	t.Cleanup(stop)
	return &machine{host, s, stop}
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func forBoth(t *testing.T, f func(t *testing.T, app string)) {
	t.Run("ipv4", func(t *testing.T) { f(t, appV4) })
	t.Run("ipv6", func(t *testing.T) { f(t, "["+appV6+"]") })
}

// complete finishes the handshake and hands the connection to serve.
func complete(serve func(c *stack.Conn)) func(context.Context, *stack.HeldTCP) {
	return func(ctx context.Context, held *stack.HeldTCP) {
		c, err := held.Complete(ctx)
		if err != nil {
			return
		}
		defer c.Close()
		serve(c)
	}
}

func TestTCPCarriesBytesBothWays(t *testing.T) {
	forBoth(t, func(t *testing.T, app string) {
		m := newMachine(t, &handler{tcp: complete(func(c *stack.Conn) {
			_, _ = io.Copy(c, c) // the end of the test may reset it
			_ = c.CloseWrite()
		})}, nil)
		c, err := m.Dial(t.Context(), "tcp", app+":80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		const size = 32 << 20
		sent := make(chan error, 1)
		go func() {
			_, err := io.CopyN(c, zeros{}, size)
			sent <- errors.Join(err, c.(*net.TCPConn).CloseWrite())
		}()
		n, err := io.Copy(io.Discard, c)
		if err != nil || n != size {
			t.Errorf("read %d bytes, %v, want %d", n, err, size)
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestHeldSYNIsNotAnswered(t *testing.T) {
	arrived, verdict := make(chan struct{}), make(chan struct{})
	m := newMachine(t, &handler{tcp: func(ctx context.Context, held *stack.HeldTCP) {
		close(arrived) // panics when a repetition comes here
		<-verdict
		if c, err := held.Complete(ctx); err == nil {
			_ = c.Close()
		}
	}}, nil)
	connected := make(chan error, 1)
	go func() {
		c, err := m.Dial(t.Context(), "tcp", appV4+":80")
		if err == nil {
			_ = c.Close()
		}
		connected <- err
	}()
	<-arrived
	// The kernel repeats the SYN after one second; it must change nothing.
	netns.Wait(t, 5*time.Second, "a repeated SYN", func() bool { return retransmits(m) >= 1 })
	select {
	case err := <-connected:
		t.Fatalf("connect returned before the verdict: %v", err)
	default:
	}
	close(verdict)
	if err := <-connected; err != nil {
		t.Errorf("connect = %v", err)
	}
}

// retransmits reads the kernel's own count of repeated segments in the namespace.
func retransmits(m *machine) int {
	out, err := m.Output("sh", "-c", "grep ^Tcp: /proc/net/snmp | tail -1 | cut -d' ' -f13")
	if err != nil {
		return 0
	}
	n := 0
	for _, c := range strings.TrimSpace(out) {
		n = n*10 + int(c-'0')
	}
	return n
}

func TestTCPRefusals(t *testing.T) {
	for _, c := range []struct {
		name   string
		refuse func(*stack.HeldTCP) error
		want   syscall.Errno
	}{
		{"reset", (*stack.HeldTCP).Reset, syscall.ECONNREFUSED},
		{"unreachable", (*stack.HeldTCP).Unreachable, syscall.EHOSTUNREACH},
	} {
		t.Run(c.name, func(t *testing.T) {
			forBoth(t, func(t *testing.T, app string) {
				m := newMachine(t, &handler{tcp: func(_ context.Context, held *stack.HeldTCP) { _ = c.refuse(held) }}, nil)
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				_, err := m.Dial(ctx, "tcp", app+":80")
				if !errors.Is(err, c.want) {
					t.Errorf("connect = %v, want %v", err, c.want)
				}
			})
		})
	}
}

func TestDropIsSilence(t *testing.T) {
	m := newMachine(t, &handler{tcp: func(_ context.Context, held *stack.HeldTCP) { _ = held.Drop() }}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := m.Dial(ctx, "tcp", appV4+":80")
	if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("connect = %v, want a timeout", err)
	}
}

func TestAbortResetsTheProgram(t *testing.T) {
	conns := make(chan *stack.Conn, 1)
	m := newMachine(t, &handler{tcp: func(ctx context.Context, held *stack.HeldTCP) {
		if c, err := held.Complete(ctx); err == nil {
			conns <- c
		}
	}}, nil)
	c, err := m.Dial(t.Context(), "tcp", appV4+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	(<-conns).Abort()
	deadline(t, c)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read after abort = %v, want ECONNRESET", err)
	}
}

func TestStopResetsPrograms(t *testing.T) {
	m := newMachine(t, &handler{tcp: complete(func(c *stack.Conn) { _, _ = io.Copy(io.Discard, c) })}, nil)
	c, err := m.Dial(t.Context(), "tcp", appV4+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	m.stop()
	deadline(t, c)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read after stop = %v, want ECONNRESET", err)
	}
}

// deadline keeps a broken stack from hanging the test.
func deadline(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
}

func TestRemovedInterfaceEndsTheStack(t *testing.T) {
	host := netns.New(t).Host("client")
	var dev *tun.Device
	err := host.Do(func() (err error) {
		dev, err = tun.Open(tun.Config{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := stack.New(stack.Config{Device: dev, Handler: &handler{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(context.Background()) }()
	host.IP("link", "del", dev.InterfaceName())
	select {
	case err := <-done:
		if err == nil {
			t.Error("Run() without its interface: no error")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Run() goes on without its interface")
	}
}

func TestSecondDeviceOfTheSameNameIsRefused(t *testing.T) {
	host := netns.New(t).Host("client")
	err := host.Do(func() error {
		first, err := tun.Open(tun.Config{})
		if err != nil {
			return err
		}
		defer first.Close()
		second, err := tun.Open(tun.Config{})
		if err == nil {
			return errors.Join(errors.New("opened twice"), second.Close())
		}
		if !errors.Is(err, tun.ErrInUse) {
			return err
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestUDPEcho(t *testing.T) {
	forBoth(t, func(t *testing.T, app string) {
		m := newMachine(t, &handler{udp: func(ctx context.Context, f *stack.UDPFlow) {
			_ = f.Accept()
			buf := make([]byte, 65535)
			for {
				n, err := f.ReadPacket(ctx, buf)
				if err != nil {
					return
				}
				_ = f.WritePacket(buf[:n])
			}
		}}, nil)
		c, err := m.Dial(t.Context(), "udp", app+":5353")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for _, size := range []int{0, 1, 1400, 9000, 64000, 65507} {
			if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write(make([]byte, size)); err != nil {
				t.Fatalf("write %d: %v", size, err)
			}
			if n, err := c.Read(make([]byte, 65535)); err != nil || n != size {
				t.Errorf("echo of %d bytes = %d, %v", size, n, err)
			}
		}
	})
}

func TestUDPRefusals(t *testing.T) {
	for _, c := range []struct {
		name   string
		refuse func(*stack.UDPFlow) error
		v4, v6 syscall.Errno
	}{
		{"refuse", (*stack.UDPFlow).Refuse, syscall.ECONNREFUSED, syscall.ECONNREFUSED},
		{"prohibited", (*stack.UDPFlow).Prohibited, syscall.EHOSTUNREACH, syscall.EACCES},
	} {
		t.Run(c.name, func(t *testing.T) {
			forBoth(t, func(t *testing.T, app string) {
				m := newMachine(t, &handler{udp: func(_ context.Context, f *stack.UDPFlow) { _ = c.refuse(f) }}, nil)
				conn, err := m.Dial(t.Context(), "udp", app+":5353")
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				want := c.v4
				if app != appV4 {
					want = c.v6
				}
				for i := range 2 { // the second is answered from memory
					if _, err := conn.Write([]byte("x")); err != nil {
						t.Fatal(err)
					}
					if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
						t.Fatal(err)
					}
					if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, want) {
						t.Errorf("read %d = %v, want %v", i, err, want)
					}
				}
			})
		})
	}
}

func TestPing(t *testing.T) {
	for _, c := range []struct {
		network, app string
		request      byte
		verdict      func(*stack.Echo)
		reply        byte
	}{
		{"ip4:icmp", appV4, 8, (*stack.Echo).Reply, 0},
		{"ip6:ipv6-icmp", appV6, 128, (*stack.Echo).Reply, 129},
		{"ip4:icmp", appV4, 8, (*stack.Echo).Prohibited, 3},
		{"ip6:ipv6-icmp", appV6, 128, (*stack.Echo).Prohibited, 1},
	} {
		m := newMachine(t, &handler{echo: func(_ context.Context, e *stack.Echo) { c.verdict(e) }}, nil)
		if got := ping(t, m, c.network, c.app, c.request); got != c.reply {
			t.Errorf("ping %s = ICMP type %d, want %d", c.app, got, c.reply)
		}
		m.stop()
	}
}

// ping sends an echo request and returns the type of the first message after it.
func ping(t *testing.T, m *machine, network, app string, request byte) byte {
	t.Helper()
	c, err := m.Dial(t.Context(), network, app)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	msg := []byte{request, 0, 0, 0, 0x12, 0x34, 0, 1, 'p', 'o'}
	if request == 8 { // the kernel fills in the checksum of ICMPv6 only
		sum := uint32(0)
		for i := 0; i < len(msg); i += 2 {
			sum += uint32(msg[i])<<8 | uint32(msg[i+1])
		}
		sum = sum>>16 + sum&0xffff
		msg[2], msg[3] = ^byte(sum>>8), ^byte(sum)
	}
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(msg); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1500)
	switch _, err := c.Read(buf); {
	case errors.Is(err, syscall.EHOSTUNREACH):
		return 3 // the kernel made an error out of the message
	case errors.Is(err, syscall.EACCES):
		return 1 // the same for IPv6
	case err != nil:
		t.Fatalf("ping %s: %v", app, err)
	case request == 8:
		return buf[20] // behind the IPv4 header
	}
	return buf[0]
}
