//go:build linux

package netns_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/postern-zt/postern/client/resolve"
	"github.com/postern-zt/postern/netstack/stack"
	"github.com/postern-zt/postern/platform/dns"
	"github.com/postern-zt/postern/platform/netmon"
	"github.com/postern-zt/postern/platform/route"
	"github.com/postern-zt/postern/platform/tun"
	"github.com/postern-zt/postern/test/netns"
)

// victimEnv makes the test binary play a client that is killed. Its value is the
// interface to use; "tun" opens a tunnel interface.
const victimEnv = "POSTERN_TEST_VICTIM"

func TestMain(m *testing.M) {
	if iface := os.Getenv(victimEnv); iface != "" {
		if err := victim(iface); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// victim sets everything up, says so, and waits for its end. A line on its standard
// input makes it clean up.
func victim(iface string) error {
	log := slog.New(slog.DiscardHandler)
	if iface == "tun" {
		dev, err := tun.Open(tun.Config{})
		if err != nil {
			return err
		}
		defer dev.Close()
		iface = dev.InterfaceName()
	}
	router, host, err := hostParts(log)
	if err != nil {
		return err
	}
	ctx := context.Background()
	err = errors.Join(
		router.Set(ctx, route.Config{
			Interface: iface,
			Addrs:     []netip.Prefix{netip.MustParsePrefix("100.96.0.1/32"), netip.MustParsePrefix("fd7a:1:2:3::1/128")},
			Routes:    []netip.Prefix{netip.MustParsePrefix("100.96.0.0/16"), netip.MustParsePrefix("fd7a:1:2:3::/64"), netip.MustParsePrefix("10.9.0.0/24")},
		}),
		host.Set(ctx, dns.Config{Interface: iface, Server: netip.MustParseAddrPort("100.96.0.53:53"), Domains: []string{"corp.internal"}}),
	)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	return errors.Join(router.CleanUp(ctx, iface), host.CleanUp(ctx, iface))
}

func hostParts(log *slog.Logger) (*route.Router, *dns.Host, error) {
	router, err := route.New(route.RouterConfig{Log: log})
	if err != nil {
		return nil, nil, err
	}
	host, err := dns.New(dns.HostConfig{BusAddress: "none", Log: log})
	return router, host, err
}

const hostResolvConf = "# made by the host\nnameserver 127.0.0.1\noptions timeout:1\n"

// newOffice is a host with a network, routes and a resolver of its own.
func newOffice(t *testing.T) (h *netns.Host, resolvConf string) {
	t.Helper()
	w := netns.New(t)
	h, router := w.Host("client"), w.Host("router")
	w.Connect(h, []netip.Prefix{netip.MustParsePrefix("192.168.7.2/24"), netip.MustParsePrefix("fd77::2/64")},
		router, []netip.Prefix{netip.MustParsePrefix("192.168.7.1/24")})
	h.Route("default", netip.MustParseAddr("192.168.7.1"))
	h.Route("10.0.0.0/8", netip.MustParseAddr("192.168.7.1"))
	h.NFT("table inet filter {\n chain input { type filter hook input priority 0; policy accept; }\n}")
	return h, h.WriteEtc("resolv.conf", hostResolvConf)
}

// snapshot is everything that must be as before.
func snapshot(t *testing.T, h *netns.Host, resolvConf string) string {
	t.Helper()
	var b strings.Builder
	for _, args := range [][]string{
		{"ip", "-N", "-4", "route", "show", "table", "all"}, {"ip", "-N", "-6", "route", "show", "table", "all"},
		{"ip", "rule"}, {"ip", "addr"}, {"nft", "list", "ruleset"},
	} {
		out, err := h.Output(args[0], args[1:]...)
		if err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
		fmt.Fprintf(&b, "%v\n%s\n", args, out)
	}
	content, err := os.ReadFile(resolvConf)
	if err != nil {
		t.Fatal(err)
	}
	b.Write(content)
	return b.String()
}

// startVictim returns when the victim has set everything.
func startVictim(t *testing.T, h *netns.Host, iface string) (*exec.Cmd, io.Writer) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := h.Command(t.Context(), exe)
	cmd.Env = append(os.Environ(), victimEnv+"="+iface)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "ready\n" {
		t.Fatalf("victim said %q, %v", line, err)
	}
	return cmd, in
}

func TestHostIsAsBefore(t *testing.T) {
	for _, c := range []struct {
		name, iface string
		kill        bool
	}{
		{"stopped, tunnel goes", "tun", false},
		{"killed, tunnel goes", "tun", true},
		{"stopped, interface stays", "stays0", false},
		{"killed, interface stays", "stays0", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, resolvConf := newOffice(t)
			if c.iface != "tun" {
				h.IP("link", "add", c.iface, "type", "bridge")
				h.IP("link", "set", c.iface, "up")
			}
			waitSettled(t, h, resolvConf)
			before := snapshot(t, h, resolvConf)
			cmd, in := startVictim(t, h, c.iface)
			if during := snapshot(t, h, resolvConf); !strings.Contains(during, "100.96.0.0/16") || !strings.Contains(during, "nameserver 100.96.0.53") {
				t.Fatalf("the victim set nothing:\n%s", during)
			}
			if c.kill {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			} else if _, err := io.WriteString(in, "\n"); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); (err != nil) != c.kill {
				t.Fatalf("victim ended with %v", err)
			}
			if c.kill {
				cleanUp(t, h, resolvConf, c.iface)
			}
			if after := snapshot(t, h, resolvConf); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
}

// waitSettled waits until the kernel has finished its own duplicate address
// detection, which changes flags of link-local addresses.
func waitSettled(t *testing.T, h *netns.Host, resolvConf string) {
	t.Helper()
	netns.Wait(t, 10*time.Second, "addresses to settle", func() bool {
		return !strings.Contains(snapshot(t, h, resolvConf), "tentative")
	})
}

// cleanUp does what the next start of the client does.
func cleanUp(t *testing.T, h *netns.Host, resolvConf, iface string) {
	t.Helper()
	if iface == "tun" {
		iface = tun.DefaultName
	}
	log := slog.New(slog.DiscardHandler)
	host, err := dns.New(dns.HostConfig{BusAddress: "none", ResolvConf: resolvConf, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	err = h.Do(func() error {
		router, err := route.New(route.RouterConfig{Log: log})
		if err != nil {
			return err
		}
		return errors.Join(router.CleanUp(t.Context(), iface), host.CleanUp(t.Context(), iface))
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestCollisionProbeSeesTheHost(t *testing.T) {
	h, _ := newOffice(t)
	h.IP("route", "add", "100.64.0.0/10", "dev", "lo", "table", "52") // another overlay VPN
	var got netip.Prefix
	err := h.Do(func() error {
		router, err := route.New(route.RouterConfig{Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			return err
		}
		got, err = router.Choose([]netip.Prefix{
			netip.MustParsePrefix("100.96.0.0/16"), netip.MustParsePrefix("10.213.0.0/16"),
			netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("172.29.0.0/16"),
		}, tun.DefaultName)
		return err
	})
	if err != nil || got.String() != "172.29.0.0/16" {
		t.Errorf("Choose = %v, %v, want 172.29.0.0/16", got, err)
	}
}

func TestMonitorSeesChanges(t *testing.T) {
	h, _ := newOffice(t)
	changes := make(chan netmon.Network, 100)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- h.Do(func() error {
			m, err := netmon.New(netmon.Config{
				OnChange: func(_ context.Context, n netmon.Network) { changes <- n },
				Ignore:   tun.DefaultName, Debounce: 10 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
			})
			if err != nil {
				return err
			}
			return m.Run(ctx)
		})
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run() = %v", err)
		}
	}()
	next := func() netmon.Network {
		t.Helper()
		select {
		case n := <-changes:
			return n
		case <-time.After(10 * time.Second):
			t.Fatal("no change reported")
			panic("unreachable")
		}
	}
	first := next()
	if first.Gateway.String() != "192.168.7.1" || first.Subnet.String() != "192.168.7.0/24" || first.Fingerprint == netmon.None {
		t.Errorf("first = %+v", first)
	}
	h.IP("route", "del", "default")
	for n := first; n.Fingerprint != netmon.None; {
		n = next()
	}
	h.Route("default", netip.MustParseAddr("192.168.7.1"))
	for n := (netmon.Network{}); n.Fingerprint != first.Fingerprint; {
		n = next()
	}
}

// newNamedMachine is a machine whose resolver knows the app "wiki", by the rung of
// resolv.conf, and passes other names to a server of the host.
func newNamedMachine(t *testing.T, h *handler) (m *machine, host *dns.Host) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	server := newResolver(t, "corp.internal", "wiki.corp.internal", netip.AddrPort{})
	h.udp = func(ctx context.Context, f *stack.UDPFlow) {
		if f.Local.Port() != 53 || f.Accept() != nil {
			_ = f.Refuse() // nothing else is published
			return
		}
		serveDNS(ctx, server, f)
	}
	m = newMachine(t, h, nil)
	path := m.WriteEtc("resolv.conf", hostResolvConf)
	host, err := dns.New(dns.HostConfig{ResolvConf: path, BusAddress: "none", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	err = host.Set(t.Context(), dns.Config{
		Interface: tun.DefaultName, Server: netip.MustParseAddrPort("100.96.0.53:53"), Domains: []string{"corp.internal"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return m, host
}

func newResolver(t *testing.T, suffix, name string, listen netip.AddrPort) *resolve.Server {
	t.Helper()
	s, err := resolve.New(resolve.Config{Addr: listen, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	table, err := resolve.NewTable([]string{suffix}, nil, []resolve.Entry{{
		Name: name, Addrs: resolve.Addrs{V4: netip.MustParseAddr(appV4), V6: netip.MustParseAddr(appV6)},
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.SetTable(table)
	return s
}

func serveDNS(ctx context.Context, server *resolve.Server, f *stack.UDPFlow) {
	buf := make([]byte, 4096)
	for {
		n, err := f.ReadPacket(ctx, buf)
		if err != nil {
			return
		}
		if reply, err := server.Answer(ctx, buf[:n], resolve.UDP); err == nil {
			_ = f.WritePacket(reply) // the flow may have ended
		}
	}
}

// oneConn is a listener with one connection, for http.Server.
type oneConn struct{ c chan net.Conn }

func (l oneConn) Accept() (net.Conn, error) {
	if c, ok := <-l.c; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (l oneConn) Close() error   { return nil }
func (l oneConn) Addr() net.Addr { return &net.TCPAddr{} }

func TestCurlByName(t *testing.T) {
	m, host := newNamedMachine(t, &handler{tcp: func(ctx context.Context, held *stack.HeldTCP) {
		if held.Local.Port() != 80 {
			_ = held.Reset() // only this port is published
			return
		}
		c, err := held.Complete(ctx)
		if err != nil {
			return
		}
		l := oneConn{make(chan net.Conn, 1)}
		l.c <- c
		close(l.c)
		served := make(chan struct{})
		s := &http.Server{
			Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "the wiki") }),
			ConnState: func(_ net.Conn, s http.ConnState) {
				if s == http.StateClosed {
					close(served)
				}
			},
		}
		_ = s.Serve(l) // ends with the listener
		<-served
	}})
	for _, version := range []string{"-4", "-6"} {
		out, err := m.Output("curl", version, "-sS", "--max-time", "10", "http://wiki.corp.internal/")
		if err != nil || out != "the wiki" {
			t.Errorf("curl %s = %q, %v", version, out, err)
		}
	}
	out, err := m.Output("curl", "-sS", "--max-time", "10", "http://wiki.corp.internal:81/")
	if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("curl of a closed port = %q, %v, want exit code 7 (connection refused)", out, err)
	}
	if s := host.Status(); s.Rung != dns.RungResolvConf {
		t.Errorf("rung = %q", s.Rung)
	}
	m.stop()
	if err := host.CleanUp(t.Context(), tun.DefaultName); err != nil {
		t.Error(err)
	}
}

func TestDigSeesPublishedNamesOnly(t *testing.T) {
	m, _ := newNamedMachine(t, &handler{})
	for name, want := range map[string]string{
		"wiki.corp.internal A": "NOERROR", "wiki.corp.internal HTTPS": "NOERROR",
		"payroll.corp.internal A": "NXDOMAIN", "example.com A": "REFUSED",
	} {
		args := append([]string{"+tries=1", "+timeout=5", "@100.96.0.53"}, strings.Fields(name)...)
		out, err := m.Output("dig", args...)
		if err != nil || !strings.Contains(out, "status: "+want) {
			t.Errorf("dig %s: %v, want %s:\n%s", name, err, want, out)
		}
	}
}

// A dead process must cost no name resolution: the host's own server stands behind
// ours in resolv.conf.
func TestOtherNamesWorkWithoutUs(t *testing.T) {
	m, _ := newNamedMachine(t, &handler{})
	m.IP("addr", "add", "10.99.0.1/32", "dev", "lo") // glibc looks nothing up on a host without addresses
	up := newResolver(t, "example.com", "www.example.com", netip.MustParseAddrPort("127.0.0.1:53"))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Do(func() error { return up.Run(ctx) }) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run() = %v", err)
		}
	}()
	<-up.Ready()
	for _, alive := range []bool{true, false} {
		if !alive {
			m.stop()
		}
		out, err := m.Output("getent", "ahostsv4", "www.example.com")
		if err != nil || !strings.Contains(out, appV4) {
			t.Errorf("getent with us alive=%v: %q, %v", alive, out, err)
		}
	}
}
