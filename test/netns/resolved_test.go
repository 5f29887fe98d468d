//go:build linux

package netns_test

import (
	"bufio"
	"context"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-zt/postern/client/resolve"
	"github.com/postern-zt/postern/netstack/stack"
	"github.com/postern-zt/postern/platform/dns"
	"github.com/postern-zt/postern/platform/tun"
	"github.com/postern-zt/postern/test/netns"
)

const stubResolvConf = "nameserver 127.0.0.53\noptions edns0 trust-ad\n"

// resolvedScript runs in a mount namespace of its own, so that the service's files
// are not those of this machine.
const resolvedScript = `set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/resolved.conf.d
printf '[Resolve]\nDNS=127.0.0.1\nLLMNR=no\nMulticastDNS=no\nDNSSEC=no\n' > /run/systemd/resolved.conf.d/test.conf
exec "$0"`

// startBus runs a message bus that only this test knows.
func startBus(t *testing.T) (address string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // the service is another user
		t.Fatal(err)
	}
	config := filepath.Join(dir, "bus.conf")
	if err := os.WriteFile(config, []byte(netns.BusConfig("unix:dir="+dir)), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "dbus-daemon", "--config-file="+config, "--print-address", "--nofork")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	startUntilCleanup(t, cmd)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func startUntilCleanup(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // t.Context has ended: it is dying already
		_ = cmd.Wait()         // its exit code is that of a kill
	})
}

// counting counts the questions that reach our server for each name.
type counting struct {
	server *resolve.Server
	names  chan string
}

func (c *counting) serve(ctx context.Context, f *stack.UDPFlow) {
	if f.Local.Port() != 53 || f.Accept() != nil {
		_ = f.Refuse() // nothing else is published
		return
	}
	buf := make([]byte, 4096)
	for {
		n, err := f.ReadPacket(ctx, buf)
		if err != nil {
			return
		}
		c.names <- string(buf[12:n])
		if reply, err := c.server.Answer(ctx, buf[:n], resolve.UDP); err == nil {
			_ = f.WritePacket(reply) // the flow may have ended
		}
	}
}

func TestSystemdResolved(t *testing.T) {
	netns.Require(t)
	program := netns.Resolved(t, "systemd-resolved")
	bus := startBus(t)
	ours := &counting{newResolver(t, "corp.internal", "wiki.corp.internal", netip.AddrPort{}), make(chan string, 1000)}
	m := newMachine(t, &handler{udp: ours.serve}, nil)
	path := m.WriteEtc("resolv.conf", stubResolvConf)
	m.IP("addr", "add", "10.99.0.1/32", "dev", "lo") // glibc looks nothing up on a host without addresses

	up := newResolver(t, "example.com", "www.example.com", netip.MustParseAddrPort("127.0.0.1:53"))
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- m.Do(func() error { return up.Run(ctx) }) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run() = %v", err)
		}
	}()
	<-up.Ready()

	cmd := m.Command(t.Context(), "unshare", "--mount", "sh", "-c", resolvedScript, program)
	cmd.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS="+bus)
	cmd.Stdout, cmd.Stderr = testWriter{t}, testWriter{t}
	startUntilCleanup(t, cmd)

	host, err := dns.New(dns.HostConfig{ResolvConf: path, BusAddress: bus, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	netns.Wait(t, 20*time.Second, "systemd-resolved on the bus", func() bool {
		err := m.Do(func() error {
			return host.Set(t.Context(), dns.Config{
				Interface: tun.DefaultName, Server: netip.MustParseAddrPort("100.96.0.53:53"), Domains: []string{"corp.internal"},
			})
		})
		return err == nil && host.Status().Rung == dns.RungResolved
	})
	if got, err := os.ReadFile(path); err != nil || string(got) != stubResolvConf {
		t.Errorf("resolv.conf = %q, %v, want it untouched", got, err)
	}

	for name, want := range map[string]string{"wiki.corp.internal": appV4, "www.example.com": appV4, "payroll.corp.internal": ""} {
		out, err := m.Output("getent", "ahostsv4", name)
		if want != "" && (err != nil || !strings.Contains(out, want)) || want == "" && err == nil {
			t.Errorf("getent %s = %q, %v, want %q", name, out, err, want)
		}
	}
	for len(ours.names) > 0 {
		if name := <-ours.names; strings.Contains(name, "example") {
			t.Errorf("systemd-resolved asked us for a name that is not ours: %q", name)
		}
	}

	err = m.Do(func() error { return host.CleanUp(t.Context(), tun.DefaultName) })
	if err != nil {
		t.Fatal(err)
	}
	if out, err := m.Output("getent", "ahostsv4", "wiki.corp.internal"); err == nil {
		t.Errorf("after CleanUp the name still resolves: %q", out)
	}
}
