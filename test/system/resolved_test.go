//go:build linux

package system

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/test/netns"
)

const (
	stubResolvConf = "nameserver 127.0.0.53\noptions edns0 trust-ad\n"
	// foreign is a name that is nobody's app.
	foreign = "www.example.com"
)

// startResolved makes a machine one whose programs ask systemd-resolved: a message bus and
// the service, which nobody else sees, and the stub in resolv.conf. server is the network's.
func (m *machine) startResolved(server string) {
	m.t.Helper()
	program := netns.Resolved(m.t, "systemd-resolved")
	conf := filepath.Join(m.dir, "run", "systemd", "resolved.conf.d")
	must(m.t, os.MkdirAll(conf, 0o755))
	must(m.t, os.Mkdir(filepath.Join(m.dir, "run", "dbus"), 0o755))
	must(m.t, os.WriteFile(filepath.Join(conf, "test.conf"),
		[]byte("[Resolve]\nDNS="+server+"\nFallbackDNS=\nLLMNR=no\nMulticastDNS=no\nDNSSEC=no\n"), 0o644))
	must(m.t, os.WriteFile(filepath.Join(m.dir, "run", "bus.conf"), []byte(netns.BusConfig("unix:path=/run/dbus/system_bus_socket")), 0o644))
	m.WriteEtc("resolv.conf", stubResolvConf)
	m.start("exec dbus-daemon --config-file=/run/bus.conf --nofork", "")
	netns.Wait(m.t, patience, "the message bus", func() bool { return m.has("run/dbus/system_bus_socket") })
	m.start("exec "+program, "")
	netns.Wait(m.t, patience, "systemd-resolved answers", func() bool {
		_, err := m.run(m.resolvectl("query " + foreign))
		return err == nil
	})
}

// resolvectl is a line that asks the service.
func (m *machine) resolvectl(args string) string {
	return netns.Resolved(m.t, "resolvectl") + " --no-pager " + args
}

// resolvedState is all that the service knows of links and names, and the rest of the host.
func (o *office) resolvedState(t *testing.T) string {
	t.Helper()
	m := o.laptop.on(t)
	var all strings.Builder
	for _, what := range []string{"dns", "domain", "default-route", "llmnr", "mdns", "dnssec", "dnsovertls"} {
		all.WriteString(m.must(m.resolvectl(what)))
	}
	return all.String() + m.must(hostState)
}

// TestSystemdResolved has the daemon on a machine with systemd-resolved: programs reach apps
// by name, no other name is asked of us nor any of ours of others, resolv.conf is not
// touched, and nothing is left when the daemon ends, in whatever way.
func TestSystemdResolved(t *testing.T) {
	o := newOffice(t, wikiAddr, filesAddr, dbAddr, dnsAddr)
	serveWiki(t, o.site, wikiAddr+":80")
	network := serveDNS(t, o.broker, brokerAddr+":53")
	o.laptop.startResolved(brokerAddr)
	o.open()
	o.settledState()
	before := o.resolvedState(t)
	daemon := o.startDaemon()
	ann := o.laptop.as(nobody)
	up := ann.start("postern up '"+o.url+"'", "")
	o.signIn(up)
	up.finish()
	watch := o.laptop.Capture("example")

	t.Run("by name", func(t *testing.T) {
		if out := ann.on(t).must("postern status"); !strings.Contains(out, "systemd-resolved asks our server for "+suffix+" and for nothing else") {
			t.Errorf("postern status says:\n%s", out)
		}
		if out := ann.on(t).must(ann.resolvectl("query " + host("wiki"))); !strings.Contains(out, "postern0") {
			t.Errorf("resolvectl query wrote:\n%s", out)
		}
		testCurl(t, ann, "", curlRefused)
	})
	t.Run("other names", func(t *testing.T) {
		for _, line := range []string{ann.resolvectl("query -4 --cache=no " + foreign), "getent ahostsv4 " + foreign} {
			if out := ann.on(t).must(line); !strings.Contains(out, answer) {
				t.Errorf("%s wrote %q", line, out)
			}
		}
		if got := network.with(suffix); len(got) > 0 {
			t.Errorf("the network was asked for our names: %v", got)
		}
		if got := watch.Seen("example"); len(got) == 0 || slices.Contains(got, "postern0") {
			t.Errorf("questions for another name were seen on %v", got)
		}
		if out := o.laptop.on(t).must("cat /etc/resolv.conf"); out != stubResolvConf {
			t.Errorf("resolv.conf is %q", out)
		}
	})
	t.Run("stopped", func(t *testing.T) {
		daemon.stop()
		if diff := cmp.Diff(before, o.resolvedState(t)); diff != "" {
			t.Errorf("the host is not what it was (-before +now):\n%s", diff)
		}
	})
	t.Run("killed", func(t *testing.T) {
		o.kill(o.startDaemon(), ann)
		netns.Wait(t, patience, "the service has seen the interface go", func() bool { return o.resolvedState(t) == before })
	})
}
