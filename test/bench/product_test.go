//go:build linux

package bench

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker/identity/identitytest"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/platform/ipc"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	"github.com/postern-zt/postern/proto/admin/v1/adminv1connect"
	"github.com/postern-zt/postern/test/netns"
)

const (
	brokerPort = 8443
	suffix     = "corp.internal"
	appName    = "bench"
	person     = "ann"
	password   = "only-for-this-bench-4711"
	// patience bounds each step of the set-up; the machine may be busy.
	patience = 60 * time.Second
)

// What the broker and the CLI print and a person would copy.
var (
	urlLine    = regexp.MustCompile(`(https://\S+/#pin=[0-9a-f]+)`)
	ownerLine  = regexp.MustCompile(`https://\S+/setup#(\S+)`)
	devicePage = regexp.MustCompile(`(https://\S+/\S*device\S*)`)
	deviceCode = regexp.MustCompile(`code ([A-Z0-9]{4}-[A-Z0-9]{4})`)
	joinedLine = regexp.MustCompile(`(?m)^(Joined as .*)$`)
)

// binaries are the programs of the product.
type binaries struct{ broker, connector, cli, daemon string }

// product is the product on the network: a broker with its relay, a connector, one app
// and one person.
type product struct {
	net       *network
	bin       binaries
	dir       string
	url       string
	broker    *program
	connector *program
	admin     string // socket
}

// startProduct does what an owner and an admin do.
func startProduct(t *testing.T, n *network, bin binaries, dir string) *product {
	t.Helper()
	p := &product{net: n, bin: bin, dir: dir, admin: filepath.Join(dir, "broker", "admin.sock")}
	p.broker = launch(t, n.relay, []string{"POSTERN_BROKER_HEALTH=off", "POSTERN_BROKER_LOG_LEVEL=warn"}, "",
		bin.broker, "run", "--data-dir", filepath.Join(dir, "broker"), "--listen", fmt.Sprintf("%s:%d", n.relayAddr, brokerPort))
	p.url = p.broker.await(t, urlLine)
	owner := p.broker.await(t, ownerLine)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	people := identitytest.Owner{Login: "root", Password: password, Suffix: suffix, People: person + "\n"}
	codes, err := identitytest.SetUp(ctx, p.pages(t), owner, people)
	if err != nil || len(codes) != 1 {
		t.Fatalf("set the broker up: %d invitations, %v", len(codes), err)
	}
	if err := identitytest.AcceptInvite(ctx, p.pages(t), codes[0], password); err != nil {
		t.Fatal(err)
	}
	p.startConnector(ctx, t)
	return p
}

// startConnector joins a connector, publishes the app and lets the person use it.
func (p *product) startConnector(ctx context.Context, t *testing.T) {
	t.Helper()
	transport := ipc.Transport(p.admin)
	defer transport.CloseIdleConnections()
	hc, at := &http.Client{Transport: transport}, "http://broker"
	const site = "lab"
	_, err := adminv1connect.NewSiteServiceClient(hc, at).CreateSite(ctx, connect.NewRequest(&adminv1.CreateSiteRequest{Name: site}))
	must(t, err)
	token, err := adminv1connect.NewTokenServiceClient(hc, at).CreateToken(ctx, connect.NewRequest(&adminv1.CreateTokenRequest{Role: "connector", Site: site}))
	must(t, err)
	target := fmt.Sprintf("%s:%d", p.net.appAddr, appPort)
	_, err = adminv1connect.NewAppServiceClient(hc, at).PublishApp(ctx, connect.NewRequest(&adminv1.PublishAppRequest{
		Name: appName, Placements: []*adminv1.Placement{{Site: site, Targets: []string{target}}},
	}))
	must(t, err)
	_, err = adminv1connect.NewRuleServiceClient(hc, at).PutRule(ctx, connect.NewRequest(&adminv1.PutRuleRequest{
		Effect: "allow", Users: []string{person}, Apps: []string{appName},
	}))
	must(t, err)
	p.connector = launch(t, p.net.connector, nil, token.Msg.Secret+"\n", p.bin.connector,
		"--state-dir", filepath.Join(p.dir, "connector"), "--log-level", "warn", "run", "--join", p.url, "--name", site)
	p.connector.await(t, joinedLine)
	connectors := adminv1connect.NewConnectorServiceClient(hc, at)
	netns.Wait(t, patience, "the connector is online", func() bool {
		resp, err := connectors.ListConnectors(ctx, connect.NewRequest(&adminv1.ListConnectorsRequest{}))
		return err == nil && len(resp.Msg.Connectors) == 1 && resp.Msg.Connectors[0].Online
	})
}

// pages is where people open the broker's pages, from the broker's own machine.
func (p *product) pages(t *testing.T) identitytest.Target {
	t.Helper()
	at, err := control.ParseURL(p.url)
	must(t, err)
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return p.net.relay.Dial(ctx, network, addr)
		},
		TLSClientConfig: &tls.Config{
			MinVersion:         tls.VersionTLS13,
			InsecureSkipVerify: true, // the pin is checked instead
			VerifyConnection: func(cs tls.ConnectionState) error {
				return control.VerifyServer(cs, at.Pin, control.KindBroker, "", time.Now())
			},
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return identitytest.Target{Issuer: at.BaseURL(), Transport: transport}
}

// confirm plays the person who types the code of a device into the broker's page.
func (p *product) confirm(t *testing.T, cli *program) {
	t.Helper()
	page, code := cli.await(t, devicePage), cli.await(t, deviceCode)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	who := identitytest.Person{Login: person, Password: password}
	must(t, identitytest.Decide(ctx, p.pages(t), who, page+"?user_code="+code, true))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
