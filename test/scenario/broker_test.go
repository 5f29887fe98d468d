package scenario

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker"
	"github.com/postern-zt/postern/broker/identity/identitytest"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/platform/ipc"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	"github.com/postern-zt/postern/proto/admin/v1/adminv1connect"
	"github.com/postern-zt/postern/proto/ids"
)

const (
	version  = "0.0.1-test"
	password = "correct horse battery"
	suffix   = "corp.internal"
)

// world is one broker, set up by its owner, with everything that the story adds.
type world struct {
	t      *testing.T
	log    *slog.Logger
	dir    string
	cfg    broker.Config
	broker *broker.Broker
	proc   *process
	admin  admin
}

// admin is the administration on the broker's local socket.
type admin struct {
	users      adminv1connect.UserServiceClient
	sites      adminv1connect.SiteServiceClient
	tokens     adminv1connect.TokenServiceClient
	apps       adminv1connect.AppServiceClient
	rules      adminv1connect.RuleServiceClient
	devices    adminv1connect.DeviceServiceClient
	sessions   adminv1connect.SessionServiceClient
	audit      adminv1connect.AuditServiceClient
	connectors adminv1connect.ConnectorServiceClient
	system     adminv1connect.SystemServiceClient
}

// newWorld starts a broker and sets it up with these users besides the owner.
func newWorld(t *testing.T, users ...string) *world {
	t.Helper()
	return newWorldWith(t, func(*broker.Config) {}, users...)
}

func newWorldWith(t *testing.T, change func(*broker.Config), users ...string) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "postern") // short: it holds a local socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &world{t: t, log: newLog(t), dir: dir}
	w.cfg = broker.DefaultConfig(filepath.Join(dir, "broker"), filepath.Join(dir, "broker", "admin.sock"))
	w.cfg.Listen, w.cfg.Health = freePort(t), "off"
	change(&w.cfg)
	w.startBroker()
	w.setUp(users)
	return w
}

// freePort finds a port that is free for TCP and UDP.
func freePort(t *testing.T) string {
	t.Helper()
	for range 50 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		u, err := net.ListenPacket("udp", l.Addr().String())
		l.Close()
		if err == nil {
			u.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no port is free for both TCP and UDP")
	return ""
}

// startBroker starts a broker on the data directory and port of the world, for the first
// time or again.
func (w *world) startBroker() {
	w.t.Helper()
	b, err := broker.New(within(w.t), w.cfg, version, w.log.With("role", "broker"))
	if err != nil {
		w.t.Fatalf("start the broker: %v", err)
	}
	w.broker, w.proc = b, start(w.t, "broker", b.Run)
	w.connectAdmin()
	eventually(w.t, "the broker administers", func() bool {
		_, err := w.admin.system.Status(within(w.t), connect.NewRequest(&adminv1.StatusRequest{}))
		return err == nil
	})
}

func (w *world) stopBroker() {
	w.t.Helper()
	if err := w.proc.stop(); err != nil {
		w.t.Fatalf("the broker ended with %v", err)
	}
}

func (w *world) connectAdmin() {
	transport := ipc.Transport(w.cfg.AdminSocket)
	w.t.Cleanup(transport.CloseIdleConnections)
	hc, at := &http.Client{Transport: transport}, "http://broker"
	w.admin = admin{
		users: adminv1connect.NewUserServiceClient(hc, at), sites: adminv1connect.NewSiteServiceClient(hc, at),
		tokens: adminv1connect.NewTokenServiceClient(hc, at), apps: adminv1connect.NewAppServiceClient(hc, at),
		rules: adminv1connect.NewRuleServiceClient(hc, at), devices: adminv1connect.NewDeviceServiceClient(hc, at),
		sessions: adminv1connect.NewSessionServiceClient(hc, at), audit: adminv1connect.NewAuditServiceClient(hc, at),
		connectors: adminv1connect.NewConnectorServiceClient(hc, at), system: adminv1connect.NewSystemServiceClient(hc, at),
	}
}

// setUp opens the owner link, fills in the page, and lets every user accept an invitation.
func (w *world) setUp(users []string) {
	w.t.Helper()
	link, err := w.broker.OwnerLink(within(w.t))
	if err != nil {
		w.t.Fatal(err)
	}
	u, err := url.Parse(link)
	if err != nil {
		w.t.Fatal(err)
	}
	people := ""
	for _, name := range users {
		people += name + "\n"
	}
	target := w.signInAt(ids.KeyID{})
	owner := identitytest.Owner{Login: "root", Password: password, Suffix: suffix, People: people}
	codes, err := identitytest.SetUp(within(w.t), target, u.Fragment, owner)
	if err != nil || len(codes) != len(users) {
		w.t.Fatalf("set up: %d invitations for %d people, %v", len(codes), len(users), err)
	}
	for _, code := range codes {
		if err := identitytest.AcceptInvite(within(w.t), target, code, password); err != nil {
			w.t.Fatal(err)
		}
	}
}

// where is the broker with its pin, as every role is told.
func (w *world) where() control.Broker {
	w.t.Helper()
	b, err := control.ParseURL(w.broker.URL())
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// signInAt is where people sign in, for tokens bound to a device key.
func (w *world) signInAt(device ids.KeyID) identitytest.Target {
	at := w.where()
	transport := &http.Transport{TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, // the pin is checked instead
		VerifyConnection: func(cs tls.ConnectionState) error {
			return control.VerifyServer(cs, at.Pin, control.KindBroker, "", time.Now())
		},
	}}
	w.t.Cleanup(transport.CloseIdleConnections)
	return identitytest.Target{Issuer: at.BaseURL(), Transport: transport, Device: device, DeviceName: "test device"}
}

// must unwraps the answer of an administrator's call.
func must[T any](t testing.TB, resp *connect.Response[T], err error) *T {
	t.Helper()
	if err != nil {
		t.Fatalf("administration: %v", err)
	}
	return resp.Msg
}

// site makes a site and returns a join token for a connector of it.
func (w *world) site(name string) (token string) {
	w.t.Helper()
	resp, err := w.admin.sites.CreateSite(within(w.t), connect.NewRequest(&adminv1.CreateSiteRequest{Name: name}))
	must(w.t, resp, err)
	return w.token(name)
}

func (w *world) token(site string) string {
	w.t.Helper()
	resp, err := w.admin.tokens.CreateToken(within(w.t), connect.NewRequest(&adminv1.CreateTokenRequest{Role: "connector", Site: site}))
	return must(w.t, resp, err).Secret
}

// publish makes an app at a site; targets are as `postern admin app` takes them.
func (w *world) publish(name, site string, targets ...string) *adminv1.App {
	w.t.Helper()
	return w.publishAs(&adminv1.PublishAppRequest{Name: name, Placements: []*adminv1.Placement{{Site: site, Targets: targets}}})
}

func (w *world) publishAs(m *adminv1.PublishAppRequest) *adminv1.App {
	w.t.Helper()
	resp, err := w.admin.apps.PublishApp(within(w.t), connect.NewRequest(m))
	return must(w.t, resp, err)
}

// allow lets a user use an app while the required facts pass, and returns the rule's id.
func (w *world) allow(user, app string, require ...string) string {
	w.t.Helper()
	resp, err := w.admin.rules.PutRule(within(w.t), connect.NewRequest(&adminv1.PutRuleRequest{
		Effect: "allow", Users: []string{user}, Apps: []string{app}, Require: require,
	}))
	return must(w.t, resp, err).Rule.Id
}

func (w *world) removeRule(id string) {
	w.t.Helper()
	resp, err := w.admin.rules.DeleteRule(within(w.t), connect.NewRequest(&adminv1.RuleRef{Rule: id}))
	must(w.t, resp, err)
}

// within of a world is a context for one call.
func (w *world) ctx() context.Context { return within(w.t) }

// decision looks a receipt up as an administrator does.
func (w *world) decision(receipt string) *adminv1.Decision {
	w.t.Helper()
	resp, err := w.admin.audit.GetDecision(w.ctx(), connect.NewRequest(&adminv1.DecisionRef{Receipt: receipt}))
	return must(w.t, resp, err)
}

// run is a part of the story with its own name and its own clean-up.
func (w *world) run(name string, tell func(t *testing.T)) {
	w.t.Helper()
	whole := w.t
	whole.Run(name, func(t *testing.T) {
		w.t = t
		defer func() { w.t = whole }()
		tell(t)
	})
}
