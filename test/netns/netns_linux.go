package netns

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// commandTimeout bounds each set-up command; they take milliseconds.
	commandTimeout = 20 * time.Second
	pollInterval   = 20 * time.Millisecond
	netnsDir       = "/run/netns"
	etcDir         = "/etc/netns"
)

// Require skips the test when this process may not make namespaces. With CI=true
// that is a failure: a run that tests nothing must not look green.
func Require(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	const why = "needs root for network namespaces"
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// World is a set of namespaces.
type World struct {
	t      testing.TB
	prefix string
	links  int // for names
}

// New returns an empty world.
func New(t testing.TB) *World {
	t.Helper()
	Require(t)
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return &World{t: t, prefix: "ptn-" + hex.EncodeToString(b[:])}
}

// Host is one namespace: a machine with its own network.
type Host struct {
	Name string
	ns   string
	w    *World
}

// Host makes a machine that is connected to nothing.
func (w *World) Host(name string) *Host {
	w.t.Helper()
	h := &Host{Name: name, ns: w.prefix + "-" + name, w: w}
	w.t.Cleanup(h.remove)
	w.run("ip", "netns", "add", h.ns)
	h.IP("link", "set", "lo", "up")
	return h
}

// remove ends what still runs in the namespace, then the namespace.
func (h *Host) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	pids, _ := exec.CommandContext(ctx, "ip", "netns", "pids", h.ns).Output() // no namespace, no processes
	for _, field := range strings.Fields(string(pids)) {
		if pid, err := strconv.Atoi(field); err == nil && pid != os.Getpid() {
			_ = unix.Kill(pid, unix.SIGKILL) // it may just have ended
		}
	}
	if out, err := exec.CommandContext(ctx, "ip", "netns", "del", h.ns).CombinedOutput(); err != nil {
		h.w.t.Logf("remove namespace %s: %v: %s", h.ns, err, out)
	}
	_ = os.RemoveAll(filepath.Join(etcDir, h.ns)) // only there after WriteEtc
	_ = os.Remove(etcDir)                         // unless it holds something of others
}

// Namespace is the name that "ip netns" knows.
func (h *Host) Namespace() string { return h.ns }

// IP runs "ip" inside the namespace.
func (h *Host) IP(args ...string) {
	h.w.t.Helper()
	h.w.run("ip", append([]string{"-n", h.ns}, args...)...)
}

// Connect joins two machines by a cable and gives each end its addresses. It
// returns the names of the two interfaces.
func (w *World) Connect(a *Host, aAddrs []netip.Prefix, b *Host, bAddrs []netip.Prefix) (ifA, ifB string) {
	w.t.Helper()
	w.links++
	ifA, ifB = fmt.Sprintf("eth%da", w.links), fmt.Sprintf("eth%db", w.links)
	w.run("ip", "link", "add", ifA, "netns", a.ns, "type", "veth", "peer", "name", ifB, "netns", b.ns)
	a.configure(ifA, aAddrs)
	b.configure(ifB, bAddrs)
	return ifA, ifB
}

func (h *Host) configure(iface string, addrs []netip.Prefix) {
	h.w.t.Helper()
	for _, p := range addrs {
		args := []string{"addr", "add", p.String(), "dev", iface}
		if p.Addr().Is6() {
			args = append(args, "nodad") // usable at once
		}
		h.IP(args...)
	}
	h.IP("link", "set", iface, "up")
}

// Route adds a route; dst may be "default".
func (h *Host) Route(dst string, via netip.Addr) {
	h.w.t.Helper()
	h.IP("route", "add", dst, "via", via.String())
}

// Forward makes the machine a router.
func (h *Host) Forward() {
	h.w.t.Helper()
	h.Sysctl("net/ipv4/ip_forward", "1")
	h.Sysctl("net/ipv6/conf/all/forwarding", "1")
}

// Sysctl writes a network setting of the namespace.
func (h *Host) Sysctl(path, value string) {
	h.w.t.Helper()
	err := h.Do(func() error { return os.WriteFile("/proc/sys/"+path, []byte(value), 0) })
	if err != nil {
		h.w.t.Fatalf("%s: set %s: %v", h.Name, path, err)
	}
}

// Masquerade makes the machine a NAT router for what leaves through iface, with
// ports mapped as a home router does.
func (h *Host) Masquerade(iface string) {
	h.w.t.Helper()
	h.Forward()
	h.NFT(`table ip nat {
	chain postrouting {
		type nat hook postrouting priority srcnat;
		oifname "` + iface + `" masquerade
	}
}`)
}

// NFT loads a ruleset on top of what is there.
func (h *Host) NFT(ruleset string) {
	h.w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	cmd := h.Command(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(ruleset)
	if out, err := cmd.CombinedOutput(); err != nil {
		h.w.t.Fatalf("%s: nft: %v: %s", h.Name, err, out)
	}
}

// WriteEtc makes commands of this machine see content as /etc/NAME.
func (h *Host) WriteEtc(name, content string) (path string) {
	h.w.t.Helper()
	dir := filepath.Join(etcDir, h.ns)
	path = filepath.Join(dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		h.w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		h.w.t.Fatal(err)
	}
	return path
}

// Command prepares a program that runs on this machine, with its own view of
// /etc as far as WriteEtc gave one.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", h.ns, name}, args...)...)
}

// Output runs a program to its end and returns what it wrote to both outputs.
func (h *Host) Output(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	out, err := h.Command(ctx, name, args...).CombinedOutput()
	return string(out), err
}

// Do runs f on a thread inside the namespace. Sockets and devices that f opens stay
// in the namespace; goroutines that f starts do not run in it.
func (h *Host) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with this goroutine, so none returns to
		// the pool in the wrong namespace.
		runtime.LockOSThread()
		done <- h.enter(f)
	}()
	return <-done
}

func (h *Host) enter(f func() error) error {
	ns, err := os.Open(filepath.Join(netnsDir, h.ns))
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter namespace %s: %w", h.ns, err)
	}
	return f()
}

// Listen opens a TCP listener on this machine; the test's end closes it.
func (h *Host) Listen(addr string) net.Listener {
	h.w.t.Helper()
	var l net.Listener
	err := h.Do(func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	})
	if err != nil {
		h.w.t.Fatalf("%s: listen on %s: %v", h.Name, addr, err)
	}
	h.w.t.Cleanup(func() { _ = l.Close() }) // the test may have closed it
	return l
}

// ListenPacket opens a UDP socket on this machine; the test's end closes it.
func (h *Host) ListenPacket(addr string) net.PacketConn {
	h.w.t.Helper()
	var c net.PacketConn
	err := h.Do(func() (err error) {
		c, err = net.ListenPacket("udp", addr)
		return err
	})
	if err != nil {
		h.w.t.Fatalf("%s: listen on %s: %v", h.Name, addr, err)
	}
	h.w.t.Cleanup(func() { _ = c.Close() }) // the test may have closed it
	return c
}

// Dial connects from this machine. addr must be an address, not a name.
func (h *Host) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var c net.Conn
	err := h.Do(func() (err error) {
		var d net.Dialer
		c, err = d.DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// Wait polls until ready returns true; the test fails when that takes longer than
// limit.
func Wait(t testing.TB, limit time.Duration, what string, ready func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for !ready() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("not ready after %v: %s", limit, what)
		}
	}
}

// WaitTCP waits until something on this machine can be connected to.
func (h *Host) WaitTCP(addr string, limit time.Duration) {
	h.w.t.Helper()
	Wait(h.w.t, limit, "TCP "+addr+" from "+h.Name, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		c, err := h.Dial(ctx, "tcp", addr)
		if err != nil {
			return false
		}
		_ = c.Close() // only the connect was asked for
		return true
	})
}

func (w *World) run(name string, args ...string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		w.t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out.String())
	}
}
