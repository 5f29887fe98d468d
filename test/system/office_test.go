//go:build linux

package system

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/postern-zt/postern/broker/identity/identitytest"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/test/netns"
)

// What the programs print and a person would copy.
var (
	urlLine    = regexp.MustCompile(`(?m)^\s*(https://\S+/#pin=[0-9a-f]+)\s*$`)
	ownerLine  = regexp.MustCompile(`https://\S+/setup#(\S+)`)
	tokenLine  = regexp.MustCompile(`(?m)paste this token when it asks:\n\s*(\S+)\s*$`)
	joinedLine = regexp.MustCompile(`(?m)^(Joined as .*)$`)
	startPage  = regexp.MustCompile(`(http://127\.0\.0\.1:\d+/start/\S+)`)
	proxyLine  = regexp.MustCompile(`SOCKS5 proxy on (127\.0\.0\.1:\d+)`)
)

// The people of the stories.
const (
	ownerLogin = "olivia"
	employee   = "ann"
	suffix     = "corp.internal"
	password   = "only-for-this-test-4711"
)

// Addresses of the README.
const (
	brokerAddr = "203.0.113.10"
	siteAddr   = "203.0.113.20"
	laptopAddr = "203.0.113.30"
	wikiAddr   = "10.0.0.5"
)

// office is three machines on one public network; private addresses are at the site only.
type office struct {
	t                    *testing.T
	broker, site, laptop *machine
	url                  string
}

// newOffice makes the machines; private are the addresses of the apps' hosts.
func newOffice(t *testing.T, private ...string) *office {
	t.Helper()
	w := netns.New(t)
	o := &office{t: t, broker: newMachine(t, w, "broker"), site: newMachine(t, w, "site"), laptop: newMachine(t, w, "laptop")}
	internet := w.Switch("internet")
	for m, addr := range map[*machine]string{o.broker: brokerAddr, o.site: siteAddr, o.laptop: laptopAddr} {
		m.uplink = internet.Attach(m.Host, netip.PrefixFrom(netip.MustParseAddr(addr), 24))
	}
	for _, addr := range private {
		o.site.IP("addr", "add", addr+"/32", "dev", "lo")
	}
	return o
}

// target is the broker for a browser on one of the machines, which trusts it by its pin.
func (o *office) target(on *machine) identitytest.Target {
	o.t.Helper()
	at, err := control.ParseURL(o.url)
	must(o.t, err)
	transport := &http.Transport{
		DialContext:       func(ctx context.Context, network, addr string) (net.Conn, error) { return on.Dial(ctx, network, addr) },
		DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{
			MinVersion:         tls.VersionTLS13,
			InsecureSkipVerify: true, // the pin is checked instead
			VerifyConnection: func(cs tls.ConnectionState) error {
				return control.VerifyServer(cs, at.Pin, control.KindBroker, "", time.Now())
			},
		},
	}
	return identitytest.Target{Issuer: "https://" + at.Address, Transport: transport}
}

// setUp does what the owner and ann do on the broker's pages.
func (o *office) setUp(ownerCode string) {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), patience)
	defer cancel()
	codes, err := identitytest.SetUp(ctx, o.target(o.site), ownerCode, identitytest.Owner{
		Login: ownerLogin, Password: password, Suffix: suffix, People: employee,
	})
	if err != nil || len(codes) != 1 {
		o.t.Fatalf("set-up page: %d invitations, %v", len(codes), err)
	}
	must(o.t, identitytest.AcceptInvite(ctx, o.target(o.site), codes[0], password))
}

// signIn fills in the page that a client on the laptop asks ann to open.
func (o *office) signIn(cli *program) {
	o.t.Helper()
	o.signInOn(o.laptop, cli)
}

// signInOn does it with a browser on the machine of the client.
func (o *office) signInOn(m *machine, cli *program) {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), patience)
	defer cancel()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) { return m.Dial(ctx, network, addr) }}
	browser := identitytest.NewBrowser(transport)
	page, err := browser.Open(ctx, cli.await(startPage))
	must(o.t, err)
	page, err = page.Submit(ctx, map[string]string{"login": employee, "password": password})
	must(o.t, err)
	if page.Callback == nil {
		o.t.Fatalf("not signed in, the page says: %s", page.Text)
	}
	page, err = browser.Open(ctx, page.Callback.String()) // it stops before loopback addresses
	must(o.t, err)
	if !strings.Contains(page.Text, "You are signed in") {
		o.t.Fatalf("the page says: %s", page.Text)
	}
}
