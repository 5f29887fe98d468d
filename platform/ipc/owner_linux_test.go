package ipc

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-zt/postern/test/netns"
)

func addrOf(t *testing.T, a net.Addr) netip.AddrPort {
	t.Helper()
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		t.Fatal(err)
	}
	return ap
}

func TestOwnerOfTCP(t *testing.T) {
	for _, network := range []string{"tcp4", "tcp6"} {
		t.Run(network, func(t *testing.T) {
			uid, err := ownerOver(network)
			if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) { // this machine has no ::1; a new namespace has
				err = netns.New(t).Host("six").Do(func() (err error) { uid, err = ownerOver(network); return err })
			}
			if err != nil || uid != uint32(os.Getuid()) {
				t.Errorf("Owner = %d, %v, want %d", uid, err, os.Getuid())
			}
		})
	}
}

// ownerOver connects over loopback and asks whose the connection is.
func ownerOver(network string) (uint32, error) {
	l, err := net.Listen(network, map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0"}[network])
	if err != nil {
		return 0, err
	}
	defer l.Close()
	conn, err := net.Dial(network, l.Addr().String())
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	return Owner(TCP, conn.LocalAddr().(*net.TCPAddr).AddrPort(), conn.RemoteAddr().(*net.TCPAddr).AddrPort())
}

func mustListen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// A SYN that nobody answers is what the client asks about.
func TestOwnerOfSynSent(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	// A full accept queue of a listener leaves the SYN unanswered.
	target := fullListener(t)
	to := &unix.SockaddrInet4{Port: int(target.Port()), Addr: target.Addr().As4()}
	if err := unix.Connect(fd, to); !errors.Is(err, unix.EINPROGRESS) {
		t.Fatalf("connect = %v, want in progress", err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	own := sa.(*unix.SockaddrInet4)
	local := netip.AddrPortFrom(netip.AddrFrom4(own.Addr), uint16(own.Port))
	uid, err := Owner(TCP, local, target)
	if err != nil || uid != uint32(os.Getuid()) {
		t.Errorf("Owner = %d, %v, want %d", uid, err, os.Getuid())
	}
}

func fullListener(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(sa.(*unix.SockaddrInet4).Port))
	for range 2 {
		conn, err := (&net.Dialer{Timeout: 200 * time.Millisecond}).Dial("tcp4", at.String())
		if err == nil {
			t.Cleanup(func() { _ = conn.Close() })
		}
	}
	return at
}

func TestOwnerOfUDP(t *testing.T) {
	remote := netip.MustParseAddrPort("127.0.0.9:53")
	connected, err := net.Dial("udp4", remote.String())
	if err != nil {
		t.Fatal(err)
	}
	defer connected.Close()
	open, err := net.ListenPacket("udp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	both, err := net.ListenPacket("udp", "[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer both.Close()
	loopback := netip.MustParseAddr("127.0.0.1")
	for name, local := range map[string]netip.AddrPort{
		"connected":                 addrOf(t, connected.LocalAddr()),
		"bound to every address":    netip.AddrPortFrom(loopback, addrOf(t, open.LocalAddr()).Port()),
		"bound to both families":    netip.AddrPortFrom(loopback, addrOf(t, both.LocalAddr()).Port()),
		"given as mapped into IPv6": netip.AddrPortFrom(netip.MustParseAddr("::ffff:127.0.0.1"), addrOf(t, open.LocalAddr()).Port()),
	} {
		if uid, err := Owner(UDP, local, remote); err != nil || uid != uint32(os.Getuid()) {
			t.Errorf("%s: Owner = %d, %v, want %d", name, uid, err, os.Getuid())
		}
	}
	other := netip.MustParseAddrPort("127.0.0.8:53")
	if uid, err := Owner(UDP, addrOf(t, connected.LocalAddr()), other); !errors.Is(err, ErrNoOwner) {
		t.Errorf("Owner towards another peer = %d, %v, want ErrNoOwner", uid, err)
	}
}

func TestOwnerIsNotTheListener(t *testing.T) {
	l := mustListen(t)
	uid, err := Owner(TCP, addrOf(t, l.Addr()), netip.MustParseAddrPort("127.0.0.1:9"))
	if !errors.Is(err, ErrNoOwner) {
		t.Errorf("Owner = %d, %v, want ErrNoOwner", uid, err)
	}
}

func TestOwnerOfNothing(t *testing.T) {
	local, remote := netip.MustParseAddrPort("10.9.8.7:1"), netip.MustParseAddrPort("10.9.8.6:2")
	for _, p := range []Protocol{TCP, UDP} {
		if uid, err := Owner(p, local, remote); !errors.Is(err, ErrNoOwner) {
			t.Errorf("Owner(%d) = %d, %v, want ErrNoOwner", p, uid, err)
		}
	}
}

func TestOwnerRefusesIncompleteQuestions(t *testing.T) {
	a, b := netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("[::1]:2")
	for _, q := range []struct {
		p             Protocol
		local, remote netip.AddrPort
	}{
		{1, a, a}, {TCP, a, b}, {TCP, netip.AddrPort{}, a}, {TCP, a, netip.AddrPort{}},
		{UDP, netip.AddrPortFrom(a.Addr(), 0), a}, {UDP, a, netip.AddrPortFrom(a.Addr(), 0)},
	} {
		if _, err := Owner(q.p, q.local, q.remote); err == nil || errors.Is(err, ErrNoOwner) {
			t.Errorf("Owner(%v) = %v, want an error of its own", q, err)
		}
	}
}

// A child with another uid shows that the owner is read and not assumed.
func TestOwnerOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	l := mustListen(t)
	local := childConnects(t, l)
	uid, err := Owner(TCP, local, addrOf(t, l.Addr()))
	if err != nil || uid != 12345 {
		t.Errorf("Owner = %d, %v, want 12345", uid, err)
	}
}

func childConnects(t *testing.T, l net.Listener) netip.AddrPort {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	port := addrOf(t, l.Addr()).Port()
	script := "exec 3<>/dev/tcp/127.0.0.1/" + strconv.Itoa(int(port)) + "; read -r line <&3"
	cmd := exec.CommandContext(ctx, "bash", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 12345, Gid: 12345}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = conn.Close(); _ = cmd.Wait() })
	return addrOf(t, conn.RemoteAddr())
}

func FuzzDecodeOwnerReply(f *testing.F) {
	local, remote := netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:2")
	good := make([]byte, replyMin)
	binary.NativeEndian.PutUint16(good[4:], unix.SOCK_DIAG_BY_FAMILY)
	binary.NativeEndian.PutUint32(good[8:], sequence)
	good[headerLen] = unix.AF_INET
	f.Add(good)
	f.Add(good[:headerLen])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		uid, err := decodeOwnerReply(b, TCP, local, remote)
		if err != nil && uid != 0 {
			t.Errorf("decodeOwnerReply = %d beside the error %v", uid, err)
		}
	})
}

func BenchmarkOwner(b *testing.B) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	local := conn.LocalAddr().(*net.TCPAddr).AddrPort()
	remote := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Owner(TCP, local, remote); err != nil {
			b.Fatal(err)
		}
	}
}
