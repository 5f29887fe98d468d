package dns_test

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/postern-zt/postern/platform/dns"
)

var want = dns.Config{
	Interface: "lo", Server: netip.MustParseAddrPort("100.96.0.53:53"), Domains: []string{"corp.internal"},
}

const original = "# made by somebody\nsearch lan\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n"

func newHost(t *testing.T, path, bus string) *dns.Host {
	t.Helper()
	h, err := dns.New(dns.HostConfig{ResolvConf: path, BusAddress: bus, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestResolvConfComesBackByteForByte(t *testing.T) {
	for _, content := range []string{original, "", "nameserver 10.0.0.1", "\n\n"} {
		path := filepath.Join(t.TempDir(), "resolv.conf")
		write(t, path, content)
		before, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		h := newHost(t, path, "none")
		for range 2 { // idempotent
			if err := h.Set(t.Context(), want); err != nil {
				t.Fatal(err)
			}
		}
		during := read(t, path)
		if !strings.HasSuffix(during, content) || strings.Count(during, "nameserver 100.96.0.53\n") != 1 {
			t.Errorf("during = %q", during)
		}
		// Another process cleans up: the one that set it was killed.
		if err := newHost(t, path, "none").CleanUp(t.Context(), "gone0"); err != nil {
			t.Fatal(err)
		}
		if got := read(t, path); got != content {
			t.Errorf("after = %q, want %q", got, content)
		}
		after, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if !os.SameFile(before, after) || before.Mode() != after.Mode() {
			t.Error("the file is another one than before")
		}
	}
}

func TestStatusOfResolvConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write(t, path, original)
	h := newHost(t, path, "none")
	if s := h.Status(); s.Rung != dns.RungNone {
		t.Errorf("before Set: %+v", s)
	}
	if err := h.Set(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	s := h.Status()
	upstreams := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:53"), netip.MustParseAddrPort("10.0.0.2:53")}
	if s.Rung != dns.RungResolvConf || !slices.Equal(s.Upstreams, upstreams) || !strings.Contains(s.Sentence, "every question") {
		t.Errorf("Status = %+v", s)
	}
	if err := h.CleanUp(t.Context(), "lo"); err != nil {
		t.Fatal(err)
	}
	if s := h.Status(); s.Rung != dns.RungNone {
		t.Errorf("after CleanUp: %+v", s)
	}
}

func TestOthersMayChangeResolvConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write(t, path, original)
	h := newHost(t, path, "none")
	if err := h.Set(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	const theirs = "nameserver 192.168.7.1\n" // a DHCP client wrote a whole new file
	write(t, path, theirs)
	if err := h.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := read(t, path); !strings.Contains(got, "nameserver 100.96.0.53\n") || !strings.HasSuffix(got, theirs) {
		t.Errorf("after Check = %q", got)
	}
	if s := h.Status(); len(s.Upstreams) != 1 || s.Upstreams[0].String() != "192.168.7.1:53" {
		t.Errorf("upstreams = %v", s.Upstreams)
	}
	if err := h.CleanUp(t.Context(), "lo"); err != nil {
		t.Fatal(err)
	}
	if got := read(t, path); got != theirs {
		t.Errorf("after CleanUp = %q, want what the other wrote", got)
	}
}

func TestSymbolicLinkStays(t *testing.T) {
	dir := t.TempDir()
	target, path := filepath.Join(dir, "target"), filepath.Join(dir, "resolv.conf")
	if err := os.Symlink("target", path); err != nil {
		t.Fatal(err)
	}
	h := newHost(t, path, "none")
	check := func(content string, exists bool) {
		t.Helper()
		if link, err := os.Readlink(path); err != nil || link != "target" {
			t.Errorf("link = %q, %v", link, err)
		}
		got, err := os.ReadFile(target)
		if (err == nil) != exists || string(got) != content {
			t.Errorf("target = %q, %v, want %q", got, err, content)
		}
	}
	for _, exists := range []bool{true, false} { // false: the link leads nowhere
		content := ""
		if exists {
			content = original
			write(t, target, original)
		} else if err := os.Remove(target); err != nil {
			t.Fatal(err)
		}
		if err := h.Set(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		if got := read(t, target); !strings.Contains(got, "nameserver 100.96.0.53\n") {
			t.Errorf("target = %q", got)
		}
		if err := h.CleanUp(t.Context(), "lo"); err != nil {
			t.Fatal(err)
		}
		check(content, exists)
	}
}

func TestMissingFileIsMissingAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	h := newHost(t, path, "none")
	if err := h.Set(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if err := newHost(t, path, "none").CleanUp(t.Context(), "lo"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("file after CleanUp: %v, want none", err)
	}
}

func TestRefusals(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write(t, path, original)
	port := want
	port.Server = netip.MustParseAddrPort("100.96.0.53:5353")
	for _, bad := range []dns.Config{{}, {Interface: "lo", Server: want.Server}, {Interface: "lo", Domains: want.Domains}, port} {
		if err := newHost(t, path, "none").Set(t.Context(), bad); err == nil {
			t.Errorf("Set(%+v): no error", bad)
		}
	}
	write(t, path, strings.Repeat("# long\n", 20000))
	if err := newHost(t, path, "none").Set(t.Context(), want); err == nil {
		t.Error("Set with a huge file: no error")
	}
}
