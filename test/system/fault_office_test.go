//go:build linux

package system

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/postern-zt/postern/test/netns"
)

// relayPort is where relays of their own process listen.
const relayPort = "8444"

// faulty is an office whose parts fail: each program is started by a line of its own, so
// that a signal reaches it, and can be started again.
type faulty struct {
	*office
	brokerRun *program
	siteRun   *program
	relays    []*relayHost
	ann       *machine
}

// relayHost is a machine with a relay.
type relayHost struct {
	*machine
	addr string
	run  *program
}

// newFaulty sets up broker and connector, with that many relays of their own process.
// config is the broker's, in YAML.
func newFaulty(t *testing.T, relays int, config string) *faulty {
	t.Helper()
	w := netns.New(t)
	o := &office{t: t, broker: newMachine(t, w, "broker"), site: newMachine(t, w, "site"), laptop: newMachine(t, w, "laptop")}
	internet := w.Switch("internet")
	plug := func(m *machine, addr string) {
		internet.Attach(m.Host, netip.PrefixFrom(netip.MustParseAddr(addr), 24))
	}
	plug(o.broker, brokerAddr)
	plug(o.site, siteAddr)
	plug(o.laptop, laptopAddr)
	f := &faulty{office: o, ann: o.laptop.as(nobody)}
	for i := range relays {
		r := &relayHost{machine: newMachine(t, w, fmt.Sprintf("relay%d", i+1)), addr: fmt.Sprintf("203.0.113.%d", 41+i)}
		plug(r.machine, r.addr)
		f.relays = append(f.relays, r)
	}
	must(t, os.WriteFile(filepath.Join(o.broker.dir, "lib", "broker.yaml"), []byte(config), 0o600))
	f.startBroker()
	f.setUp(f.brokerRun.await(ownerLine))
	for _, r := range f.relays {
		f.join(r)
	}
	token := f.brokerRun.await(tokenLine)
	f.siteRun = o.site.start("exec postern-connector run --join '"+f.url+"'", token+"\n")
	f.siteRun.await(joinedLine)
	f.awaitOnline("connector", 1)
	return f
}

// startBroker starts the broker, for the first time or again.
func (f *faulty) startBroker() {
	f.t.Helper()
	f.brokerRun = f.broker.start("exec postern-broker run --config /var/lib/broker.yaml", "")
	f.url = f.brokerRun.await(urlLine)
}

// startConnector starts the connector again.
func (f *faulty) startConnector() {
	f.t.Helper()
	f.siteRun = f.site.start("exec postern-connector run", "")
}

// join makes a machine a relay of the broker and starts it.
func (f *faulty) join(r *relayHost) {
	f.t.Helper()
	var token struct{ Secret string }
	must(f.t, json.Unmarshal([]byte(f.broker.must("postern admin token add --relay --json")), &token))
	line := "exec postern-broker relay --join '" + f.url + "' --address " + r.addr + ":" + relayPort
	r.run = r.start(line, token.Secret+"\n")
	r.run.await(joinedLine)
}

// kill ends a relay as a crash would.
func (r *relayHost) kill() {
	r.t.Helper()
	must(r.t, r.run.cmd.Process.Kill())
	<-r.run.done
}

// again starts a relay that has joined before.
func (r *relayHost) again() {
	r.t.Helper()
	r.run = r.start("exec postern-broker relay", "")
}

// online is how the broker shows who is connected.
var online = map[string]*regexp.Regexp{
	"connector": regexp.MustCompile(`"online":\s*true`),
	"relay":     regexp.MustCompile(`"state":\s*"active"`),
}

// awaitOnline waits until the broker hears that many of a kind.
func (f *faulty) awaitOnline(kind string, n int) {
	f.t.Helper()
	netns.Wait(f.t, patience, fmt.Sprintf("%d %s online", n, kind), func() bool {
		out, err := f.broker.run("postern admin " + kind + " list --json")
		return err == nil && len(online[kind].FindAllString(out, -1)) == n
	})
}

// publish publishes an app and allows it to ann.
func (f *faulty) publish(app string, targets ...string) {
	f.t.Helper()
	f.broker.must("postern admin app publish " + app + " " + strings.Join(targets, " "))
	f.broker.must("postern admin rule allow " + employee + " " + app)
}

// up starts the daemon and signs ann in.
func (f *faulty) up() {
	f.t.Helper()
	f.laptop.start("exec posternd run", "")
	netns.Wait(f.t, patience, "the daemon answers", func() bool { return f.laptop.has("run/postern/client/local.sock") })
	up := f.ann.start("postern up '"+f.url+"'", "")
	f.signIn(up)
	up.finish()
}

// uplink is one link as the client shows it.
type uplink struct{ Carrier, Path, Standby string }

// link is the client's link to the connector.
func (f *faulty) link() uplink {
	f.t.Helper()
	var st struct{ Links []uplink }
	must(f.t, json.Unmarshal([]byte(f.ann.must("postern status --json")), &st))
	if len(st.Links) != 1 {
		return uplink{}
	}
	return st.Links[0]
}

// awaitLink waits for the link to be as wanted.
func (f *faulty) awaitLink(what string, good func(l uplink) bool) uplink {
	f.t.Helper()
	var l uplink
	netns.Wait(f.t, patience, "link "+what, func() bool {
		l = f.link()
		return good(l)
	})
	return l
}

// blockUDP loses everything between the laptop and the relays that goes over UDP, without
// telling anyone.
func (f *faulty) blockUDP() {
	f.t.Helper()
	f.laptop.NFT("table inet block {\n chain in { type filter hook input priority 0; udp sport { 8443, " + relayPort + " } drop; }\n" +
		" chain out { type filter hook postrouting priority 0; udp dport { 8443, " + relayPort + " } drop; }\n}")
}

func (f *faulty) unblockUDP() {
	f.t.Helper()
	f.laptop.NFT("delete table inet block")
}

// received is what a machine's interfaces have received.
func (m *machine) received() int {
	m.t.Helper()
	out, err := m.Output("sh", "-c", "cat /sys/class/net/eth*/statistics/rx_bytes")
	must(m.t, err)
	n, err := strconv.Atoi(strings.TrimSpace(out))
	must(m.t, err)
	return n
}
