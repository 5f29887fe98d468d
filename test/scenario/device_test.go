package scenario

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker/identity/identitytest"
	"github.com/postern-zt/postern/client/uplink"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/peer"
	"github.com/postern-zt/postern/proto/chain"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/control/v1/controlv1connect"
	"github.com/postern-zt/postern/proto/ids"
)

// device is a client without the product's client: it keeps to the protocol as far as the
// story wants.
type device struct {
	w       *world
	name    string
	key     crypto.Signer
	member  *control.Member
	creds   *peer.Credentials
	http    *http.Client
	api     controlv1connect.DeviceServiceClient
	id      string
	tunnels map[string]*tunnel
	news    *news
	// witness remembers the broker's audit; nil before watch.
	witness *control.Witness
	pin     *ids.KeyID // of whom relays must have their certificates; nil is the broker
}

// device enrols a device of a user, reports the basic facts and follows the broker's news.
func (w *world) device(user, name string) *device {
	w.t.Helper()
	d := w.stranger(name)
	d.enrol(user)
	d.report(map[string]string{})
	d.watch()
	return d
}

// stranger is a device with a key that the broker does not know.
func (w *world) stranger(name string) *device {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	d := &device{w: w, name: name, key: key, tunnels: map[string]*tunnel{}, news: newNews()}
	if d.member, err = control.NewMember(key, nil, nil); err != nil {
		w.t.Fatal(err)
	}
	if d.creds, err = peer.NewCredentials(peer.CredentialsConfig{Identity: key}); err != nil {
		w.t.Fatal(err)
	}
	d.connect()
	return d
}

func (d *device) connect() {
	at := d.w.where()
	d.http = control.NewClient(control.ClientConfig{Broker: at, Certificate: d.member.Certificate})
	d.w.t.Cleanup(d.http.CloseIdleConnections)
	d.api = controlv1connect.NewDeviceServiceClient(d.http, at.BaseURL())
}

// enrol signs a user in with the code flow and has the device admitted.
func (d *device) enrol(user string) {
	d.w.t.Helper()
	who := identitytest.Person{Login: user, Password: password}
	tokens, err := identitytest.SignIn(d.w.ctx(), d.w.signInAt(d.member.KeyID()), who)
	if err != nil {
		d.w.t.Fatalf("%s signs in on %s: %v", user, d.name, err)
	}
	if err := d.redeem(tokens); err != nil {
		d.w.t.Fatalf("enrol %s: %v", d.name, err)
	}
}

// redeem enrols with tokens, whoever they were made for.
func (d *device) redeem(tokens identitytest.Tokens) error {
	csr, err := d.member.Request()
	if err != nil {
		return err
	}
	client := controlv1connect.NewEnrollServiceClient(d.http, d.w.where().BaseURL())
	resp, err := client.EnrollDevice(d.w.ctx(), connect.NewRequest(&controlv1.EnrollDeviceRequest{
		AccessToken: tokens.Access, RefreshToken: tokens.Refresh, CsrDer: csr,
		Device: &controlv1.DeviceInfo{Name: d.name, Os: "linux", ClientVersion: version},
	}))
	if err != nil {
		return err
	}
	d.id = resp.Msg.DeviceId
	d.http.CloseIdleConnections()
	return d.member.SetChain(resp.Msg.ChainDer)
}

// report tells the broker the facts of a healthy device, with changes.
func (d *device) report(changes map[string]string) {
	d.w.t.Helper()
	facts := map[string]string{"os_version": "pass", "os_supported": "pass", "client_version": "pass", "firewall": "pass"}
	for name, state := range changes {
		facts[name] = state
	}
	req := &controlv1.ReportRequest{ClientVersion: version}
	for name, state := range facts {
		req.Facts = append(req.Facts, &controlv1.Fact{
			Name: name, State: state, ObservedMs: time.Now().UnixMilli(), TtlS: 300, Source: "client",
		})
	}
	if _, err := d.api.Report(d.w.ctx(), connect.NewRequest(req)); err != nil {
		d.w.t.Fatalf("%s reports: %v", d.name, err)
	}
}

// authorize asks for an app by name.
func (d *device) authorize(app string) (*controlv1.AuthorizeResponse, error) {
	resp, err := d.api.Authorize(d.w.ctx(), connect.NewRequest(&controlv1.AuthorizeRequest{AppName: app, Network: "tcp"}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

// granted asks for an app and must get a grant.
func (d *device) granted(app string) *controlv1.AuthorizeResponse {
	d.w.t.Helper()
	resp, err := d.authorize(app)
	if err != nil {
		d.w.t.Fatalf("authorize %s: %v", app, err)
	}
	if len(resp.Grant) == 0 || resp.Receipt.GetVerdict() != controlv1.Verdict_VERDICT_ALLOW {
		d.w.t.Fatalf("%s is not allowed: %v", app, resp.Receipt)
	}
	return resp
}

// denied asks for an app and must be refused; it returns the receipt.
func (d *device) denied(app string) *controlv1.Receipt {
	d.w.t.Helper()
	resp, err := d.authorize(app)
	if err != nil {
		d.w.t.Fatalf("authorize %s: %v", app, err)
	}
	if len(resp.Grant) != 0 || resp.GrantId != "" || len(resp.Connectors) != 0 {
		d.w.t.Fatalf("a refusal of %s gave something: %v", app, resp)
	}
	return resp.Receipt
}

func (d *device) why(query string) *controlv1.WhyResponse {
	d.w.t.Helper()
	resp, err := d.api.Why(d.w.ctx(), connect.NewRequest(&controlv1.WhyRequest{Query: query}))
	return must(d.w.t, resp, err)
}

// watch follows the broker's news with the product's own uplink, which comes back by
// itself after a restart of the broker.
func (d *device) watch() {
	d.w.t.Helper()
	log := d.w.log.With("role", d.name)
	d.witness = control.NewWitness(func() (chain.Memory, error) { return chain.Memory{}, nil }, func(chain.Memory) error { return nil }, log)
	u := uplink.New(uplink.Config{Client: d.api, Version: version, Sink: d.news, Witness: d.witness, Log: log})
	start(d.w.t, d.name, u.Run)
	d.news.await(d.w.t, "the first catalog", func(n *news) bool { return n.catalog != nil })
}

// errEnrolled is the success that a story did not want.
var errEnrolled = errors.New("the device was enrolled")

// news is what the broker pushed to a device.
type news struct {
	mu        sync.Mutex // guards the fields below
	changed   chan struct{}
	catalog   *controlv1.Catalog
	session   *controlv1.SessionNews
	ended     map[string]*controlv1.Receipt
	endedAt   map[string]time.Time
	connected int
	forgot    int
}

func newNews() *news {
	return &news{changed: make(chan struct{}), ended: map[string]*controlv1.Receipt{}, endedAt: map[string]time.Time{}}
}

func (n *news) note(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
	close(n.changed)
	n.changed = make(chan struct{})
}

// Catalog implements uplink.Sink.
func (n *news) Catalog(c *controlv1.Catalog) { n.note(func() { n.catalog = c }) }

// Session implements uplink.Sink.
func (n *news) Session(s *controlv1.SessionNews) { n.note(func() { n.session = s }) }

// Ended implements uplink.Sink.
func (n *news) Ended(e *controlv1.GrantsEnded) {
	n.note(func() {
		for _, id := range e.GrantIds {
			n.ended[id], n.endedAt[id] = e.Receipt, time.Now()
		}
	})
}

// ForgetDenials implements uplink.Sink.
func (n *news) ForgetDenials() { n.note(func() { n.forgot++ }) }

// Connected implements uplink.Sink.
func (n *news) Connected() { n.note(func() { n.connected++ }) }

// await waits until ok holds; ok is called with the lock held.
func (n *news) await(t interface {
	Helper()
	Fatalf(format string, args ...any)
	Context() context.Context
}, what string, ok func(n *news) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		n.mu.Lock()
		met, changed := ok(n), n.changed
		n.mu.Unlock()
		if met {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("the broker never pushed %s", what)
		}
	}
}

// sees tells whether the newest catalog lists an app, and whether it is allowed.
func (n *news) sees(app string) (listed, allowed bool) {
	for _, a := range n.catalog.GetApps() {
		if a.Name == app {
			return true, a.Allowed
		}
	}
	return false, false
}

func connectRequest(query string) *connect.Request[controlv1.WhyRequest] {
	return connect.NewRequest(&controlv1.WhyRequest{Query: query})
}

// tokens signs a user in for a device without redeeming anything.
func (w *world) tokens(user string, d *device) identitytest.Tokens {
	w.t.Helper()
	tokens, err := identitytest.SignIn(w.ctx(), w.signInAt(d.member.KeyID()), identitytest.Person{Login: user, Password: password})
	if err != nil {
		w.t.Fatal(err)
	}
	return tokens
}
