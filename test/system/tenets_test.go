//go:build linux

package system

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/test/netns"
)

// marker is payload that nothing but the two ends may see.
const marker = "the-payload-that-nobody-else-may-read"

// TestTenets holds the product to the tenets of NIST SP 800-207 that need real programs and
// wires; each subtest is named by the tenet's requirement. The others are in test/scenario.
func TestTenets(t *testing.T) {
	t.Run("tenet2/no_cleartext", func(t *testing.T) { noCleartext(t, "quic") })
	t.Run("tenet2/downgrade_fallback", func(t *testing.T) { noCleartext(t, "tls") })
	t.Run("tenet2/e2e_blind_broker", blindBroker)
	t.Run("tenet2/location_neutral", locationNeutral)
	t.Run("tenet6/pep_bypass", connectorIsDark)
}

// noCleartext watches every interface of every machine while payload passes in both
// directions, over TCP and UDP: it is seen between program and client, and between connector
// and app, and nowhere else.
func noCleartext(t *testing.T, carrier string) {
	o := newOffice(t, wikiAddr, filesAddr, dbAddr, dnsAddr)
	if carrier == "tls" {
		o.laptop.NFT("table inet noudp { chain out { type filter hook output priority 0; oifname != lo udp dport 8443 drop; }; }")
	}
	serveWiki(t, o.site, wikiAddr+":80")
	o.startDNS()
	secrets := []string{marker, wikiText, password}
	watched := map[string]*netns.Capture{}
	for _, m := range []*machine{o.broker, o.site, o.laptop} {
		watched[m.Name] = m.Capture(secrets...)
	}
	o.open()
	o.startDaemon()
	ann := o.laptop.as(nobody)
	up := ann.start("postern up '"+o.url+"'", "")
	o.signIn(up)
	up.finish()

	for range 5 {
		if out := ann.must("curl -sS -H 'X-Secret: " + marker + "' " + page("wiki")); !strings.Contains(out, wikiText) {
			t.Errorf("curl wrote %q", out)
		}
		if out := ann.must("dig +short +tries=3 +time=5 @" + host("ns") + " " + marker + ".example A"); strings.TrimSpace(out) != answer {
			t.Errorf("dig wrote %q", out)
		}
	}
	o.carriedBy(t, ann, carrier)
	for _, secret := range []string{marker, wikiText} {
		legs := map[string][]string{"broker": nil, "site": {"lo"}, "laptop": {"postern0"}}
		for name, want := range legs {
			if got := watched[name].Seen(secret); !slices.Equal(got, want) {
				t.Errorf("%q was seen at %s on %v, want %v", secret, name, got, want)
			}
		}
	}
	for _, m := range []*machine{o.broker, o.site, o.laptop} {
		if watched[m.Name].Frames(m.uplink) == 0 {
			t.Errorf("no packet was seen at %s", m.Name)
		}
	}
	for name, c := range watched {
		if got := slices.DeleteFunc(c.Seen(password), func(iface string) bool { return iface == "lo" }); len(got) > 0 {
			t.Errorf("a password was seen at %s on %v", name, got)
		}
		c.Stop()
	}
}

// blindBroker holds a connection open through the broker's own relay, pumps payload through
// it, and finds none of it in the memory of the broker; the connector, which does see it,
// shows that the search works.
func blindBroker(t *testing.T) {
	f := newFaulty(t, 0, "{}\n")
	f.site.IP("addr", "add", echoAddr+"/32", "dev", "lo")
	app := serveEcho(t, f.site, echoAddr+":7")
	f.publish("echo", echoAddr+":7")
	f.up()
	payload := strings.Repeat(marker+"\n", 2000)
	must(t, os.WriteFile(filepath.Join(f.laptop.dir, "lib", "home", "payload"), []byte(payload), 0o644))
	const pump = `exec 3<>/dev/tcp/%s/7; for i in 1 2 3 4 5; do cat $HOME/payload >&3; head -c %d <&3 | cmp - $HOME/payload || exit 1; done; echo pumped; read -r never <&3`
	pumping := f.ann.start(fmt.Sprintf(pump, host("echo"), len(payload)), "")
	pumping.await(regexp.MustCompile(`(pumped)`))
	if n := f.site.inMemory(t, f.siteRun, marker); n == 0 {
		t.Error("the connector's memory does not hold the payload: the search finds nothing")
	}
	if n := f.broker.inMemory(t, f.brokerRun, marker); n != 0 {
		t.Errorf("the broker's memory holds the payload %d times", n)
	}
	pumping.stop()
	netns.Wait(t, patience, "the app sees the end", func() bool {
		for _, h := range app.snapshot() {
			if h.ended.IsZero() {
				return false
			}
		}
		return true
	})
}

// inMemory counts a text in the writable memory of a program.
func (m *machine) inMemory(t *testing.T, p *program, text string) (n int) {
	t.Helper()
	proc := "/proc/" + strconv.Itoa(p.cmd.Process.Pid)
	maps, err := os.ReadFile(proc + "/maps")
	must(t, err)
	mem, err := os.Open(proc + "/mem")
	must(t, err)
	defer mem.Close()
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil || !strings.HasPrefix(mode, "rw") {
			continue
		}
		data, _ := io.ReadAll(io.NewSectionReader(mem, from, to-from)) // a part that is not there holds nothing
		n += bytes.Count(data, []byte(text))
	}
	return n
}

// locationNeutral has ann at three places: behind a router on the internet, in the network of
// the connector, and on the host of the app itself. Each gives her the same.
func locationNeutral(t *testing.T) {
	w := netns.New(t)
	o := &office{t: t, broker: newMachine(t, w, "broker"), site: newMachine(t, w, "site"), laptop: newMachine(t, w, "laptop")}
	away, router := newMachine(t, w, "away"), w.Host("router")
	internet := w.Switch("internet")
	for h, addr := range map[*netns.Host]string{o.broker.Host: brokerAddr, o.site.Host: siteAddr, o.laptop.Host: laptopAddr} {
		internet.Attach(h, netip.PrefixFrom(netip.MustParseAddr(addr), 24))
	}
	router.Masquerade(internet.Attach(router, netip.MustParsePrefix("203.0.113.40/24")))
	w.Connect(away.Host, []netip.Prefix{netip.MustParsePrefix("192.168.1.2/24")}, router, []netip.Prefix{netip.MustParsePrefix("192.168.1.1/24")})
	away.Route("default", netip.MustParseAddr("192.168.1.1"))
	for _, addr := range []string{wikiAddr, filesAddr, dbAddr, dnsAddr} {
		o.site.IP("addr", "add", addr+"/32", "dev", "lo")
	}
	serveWiki(t, o.site, wikiAddr+":80")
	o.open()
	told := map[string]string{}
	for _, at := range []*machine{away, o.laptop, o.site} {
		t.Run(at.Name, func(t *testing.T) { told[at.Name] = o.usedFrom(t, at) })
	}
	for name, got := range told {
		if d := cmp.Diff(told[away.Name], got); d != "" {
			t.Errorf("at %s (-away +there):\n%s", name, d)
		}
	}
}

// usedFrom uses the apps without root at a place and returns the verdicts and the link there.
func (o *office) usedFrom(t *testing.T, at *machine) string {
	ann := at.on(t).as(nobody)
	cli := ann.start("postern proxy '"+o.url+"'", "")
	o.signInOn(at.on(t), cli)
	testCurl(t, ann, "--socks5-hostname "+cli.await(proxyLine), curlProxyRefused)
	link := regexp.MustCompile(`(?m)\b(quic|tls) relay `).FindString(ann.must("postern status"))
	why := ann.must("postern why closed-wiki") // the receipt's number is its own
	return link + regexp.MustCompile(`[0-9A-Z]{4}-[0-9A-Z]{4}`).ReplaceAllString(why, "RECEIPT")
}

// connectorIsDark: nobody can come to the connector by its own address: it takes no
// connection, and answers no datagram.
func connectorIsDark(t *testing.T) {
	o := newOffice(t, wikiAddr, filesAddr, dbAddr, dnsAddr)
	serveWiki(t, o.site, wikiAddr+":80")
	const listeners = "ss -Hlnt | grep -v '" + wikiAddr + ":80' || true"
	o.open()
	if out := o.site.must(listeners); out != "" {
		t.Errorf("something listens at the connector's machine:\n%s", out)
	}
	watch := o.site.Capture()
	defer watch.Stop()
	for port := range strings.FieldsSeq(o.site.must(`ss -Hlnu | awk '{print $4}' | sed 's/.*://' | sort -u`)) {
		o.laptop.must("for i in 1 2 3; do head -c 1200 /dev/urandom >/dev/udp/" + siteAddr + "/" + port + "; done")
	}
	o.laptop.exits(curlRefused, "curl -sS http://"+siteAddr+":80/")
	laptop := netip.MustParseAddr(laptopAddr)
	netns.Wait(t, patience, "the answer of the machine's own kernel", func() bool { return watch.Sent(o.site.uplink)[laptop] > 0 })
	if n := watch.Sent(o.site.uplink)[laptop]; n != 1 { // one reset for curl, which came last
		t.Errorf("the connector's machine sent %d packets to a stranger, want one reset", n)
	}
}
