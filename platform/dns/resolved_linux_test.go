package dns_test

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"

	"github.com/postern-zt/postern/platform/dns"
)

const stub = "# managed by systemd-resolved\nnameserver 127.0.0.53\noptions edns0\n"

// startBus runs a message bus of our own and returns its address.
func startBus(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("dbus-daemon"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("needs dbus-daemon")
	}
	config := filepath.Join(t.TempDir(), "bus.conf")
	write(t, config, `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:dir=`+t.TempDir()+`</listen>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/><allow user="*"/></policy>
</busconfig>`)
	cmd := exec.CommandContext(t.Context(), "dbus-daemon", "--config-file="+config, "--print-address", "--nofork")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // t.Context has ended: it is dying already
		_ = cmd.Wait()         // its exit code is that of a kill
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// fakeResolved records what it is told, as org.freedesktop.resolve1 defines it.
type fakeResolved struct {
	mu    sync.Mutex
	calls map[string]any // guarded by mu
	fail  string         // a method that refuses; guarded by mu
}

type server struct {
	Family  int32
	Address []byte
	Port    uint16
	Name    string
}

type domain struct {
	Name        string
	RoutingOnly bool
}

func (f *fakeResolved) record(method string, index int32, arg any) *dbus.Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	lo, err := net.InterfaceByName("lo")
	if err != nil || int(index) != lo.Index || f.fail == method {
		return dbus.MakeFailedError(os.ErrInvalid)
	}
	f.calls[method] = arg
	return nil
}

func (f *fakeResolved) SetLinkDNSEx(i int32, s []server) *dbus.Error {
	return f.record("SetLinkDNSEx", i, s)
}
func (f *fakeResolved) SetLinkDomains(i int32, d []domain) *dbus.Error {
	return f.record("SetLinkDomains", i, d)
}
func (f *fakeResolved) SetLinkDefaultRoute(i int32, b bool) *dbus.Error {
	return f.record("SetLinkDefaultRoute", i, b)
}
func (f *fakeResolved) SetLinkLLMNR(i int32, s string) *dbus.Error {
	return f.record("SetLinkLLMNR", i, s)
}
func (f *fakeResolved) SetLinkMulticastDNS(i int32, s string) *dbus.Error {
	return f.record("SetLinkMulticastDNS", i, s)
}
func (f *fakeResolved) SetLinkDNSSEC(i int32, s string) *dbus.Error {
	return f.record("SetLinkDNSSEC", i, s)
}
func (f *fakeResolved) SetLinkDNSOverTLS(i int32, s string) *dbus.Error {
	return f.record("SetLinkDNSOverTLS", i, s)
}

func (f *fakeResolved) RevertLink(int32) *dbus.Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.calls)
	return nil
}

func (f *fakeResolved) GetLink(int32) (dbus.ObjectPath, *dbus.Error) {
	return "/org/freedesktop/resolve1/link/_31", nil
}

// Get is org.freedesktop.DBus.Properties of the link.
func (f *fakeResolved) Get(_, property string) (dbus.Variant, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	domains, _ := f.calls["SetLinkDomains"].([]domain)
	if property != "Domains" {
		return dbus.Variant{}, dbus.MakeFailedError(os.ErrInvalid)
	}
	return dbus.MakeVariant(domains), nil
}

func (f *fakeResolved) told() map[string]any {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make(map[string]any)
	for k, v := range f.calls {
		out[k] = v
	}
	return out
}

func startResolved(t *testing.T, address string) *fakeResolved {
	t.Helper()
	conn, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // the bus may have ended first
	f := &fakeResolved{calls: make(map[string]any)}
	for _, err := range []error{
		conn.Export(f, "/org/freedesktop/resolve1", "org.freedesktop.resolve1.Manager"),
		conn.Export(f, "/org/freedesktop/resolve1/link/_31", "org.freedesktop.DBus.Properties"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := conn.RequestName("org.freedesktop.resolve1", dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	return f
}

var wantCalls = map[string]any{
	"SetLinkDNSEx":        []server{{2, []byte{100, 96, 0, 53}, 53, ""}},
	"SetLinkDomains":      []domain{{"corp.internal", true}},
	"SetLinkDefaultRoute": false,
	"SetLinkLLMNR":        "no",
	"SetLinkMulticastDNS": "no",
	"SetLinkDNSSEC":       "no",
	"SetLinkDNSOverTLS":   "no",
}

func TestResolvedGetsRoutingDomainsOnly(t *testing.T) {
	bus := startBus(t)
	f := startResolved(t, bus)
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write(t, path, stub)
	h := newHost(t, path, bus)
	if err := h.Set(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if got := f.told(); !reflect.DeepEqual(got, wantCalls) {
		t.Errorf("systemd-resolved was told %v, want %v", got, wantCalls)
	}
	if s := h.Status(); s.Rung != dns.RungResolved || len(s.Upstreams) != 0 || s.Sentence == "" {
		t.Errorf("Status = %+v", s)
	}
	if got := read(t, path); got != stub {
		t.Errorf("resolv.conf = %q, want it untouched", got)
	}
	// The service was restarted and has forgotten.
	_ = f.RevertLink(1) // never fails
	if err := h.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := f.told(); !reflect.DeepEqual(got, wantCalls) {
		t.Errorf("after a restart systemd-resolved was told %v", got)
	}
	if err := h.CleanUp(t.Context(), "lo"); err != nil {
		t.Fatal(err)
	}
	if got := f.told(); len(got) != 0 {
		t.Errorf("after CleanUp systemd-resolved has %v", got)
	}
}

func TestCheckOnlyLooks(t *testing.T) {
	bus := startBus(t)
	f := startResolved(t, bus)
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write(t, path, stub)
	h := newHost(t, path, bus)
	if err := h.Set(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	delete(f.calls, "SetLinkLLMNR") // shows whether it is set again
	f.mu.Unlock()
	if err := h.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, again := f.told()["SetLinkLLMNR"]; again {
		t.Error("Check set everything again although it was in place")
	}
}

func TestLowerRungWhenResolvedCannot(t *testing.T) {
	bus := startBus(t)
	f := startResolved(t, bus)
	dir := t.TempDir()
	for name, c := range map[string]struct{ content, bus, fail string }{
		"not asked by programs": {original, bus, ""},
		"refuses":               {stub, bus, "SetLinkDomains"},
		"no bus":                {stub, "unix:path=" + dir + "/none", ""},
	} {
		t.Run(name, func(t *testing.T) {
			f.mu.Lock()
			f.fail = c.fail
			f.mu.Unlock()
			path := filepath.Join(t.TempDir(), "resolv.conf")
			write(t, path, c.content)
			h := newHost(t, path, c.bus)
			if err := h.Set(t.Context(), want); err != nil {
				t.Fatal(err)
			}
			if s := h.Status(); s.Rung != dns.RungResolvConf {
				t.Errorf("Status = %+v, want the rung of resolv.conf", s)
			}
			if got := f.told(); len(got) != 0 {
				t.Errorf("systemd-resolved kept %v", got)
			}
			if err := h.CleanUp(t.Context(), "lo"); err != nil {
				t.Fatal(err)
			}
			if got := read(t, path); got != c.content {
				t.Errorf("after CleanUp = %q", got)
			}
		})
	}
}

func TestMovesUpWhenResolvedComes(t *testing.T) {
	bus := startBus(t)
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write(t, path, stub)
	h := newHost(t, path, bus)
	if err := h.Set(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if s := h.Status(); s.Rung != dns.RungResolvConf {
		t.Fatalf("without the service: %+v", s)
	}
	startResolved(t, bus)
	if err := h.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := h.Status(); s.Rung != dns.RungResolved {
		t.Errorf("with the service: %+v", s)
	}
	if got := read(t, path); got != stub {
		t.Errorf("resolv.conf = %q, want it as it was", got)
	}
}
