// Package client is the client role: it wires the membership (client/state), the sign-in
// (client/auth), the control stream (client/uplink), the data plane (client/tunnels) and
// the facts of this machine (client/posture) into one Client. The daemon posternd puts a
// tunnel interface in front of it, the command postern a SOCKS proxy or stdio.
//
//	Run -> connection: uplink, tunnels, renewal, reports     as long as there is a membership
//	SignIn -> auth -> EnrollDevice or SignIn -> connection   the person, once per session
//	OpenTCP(host, port) -> Find in the catalog -> tunnels
//
// It must not touch the host: no interface, route or resolver; client/intercept does. A
// Client is safe for concurrent use; Run owns every goroutine.
package client

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/postern-zt/postern/client/session"
	"github.com/postern-zt/postern/client/state"
	"github.com/postern-zt/postern/client/tunnels"
	"github.com/postern-zt/postern/client/uplink"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/flow"
	"github.com/postern-zt/postern/platform/posture"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/ids"
)

// Errors that callers branch on, beside those of client/tunnels and client/auth.
var (
	// ErrNotSignedIn says that there is no live session.
	ErrNotSignedIn = errors.New("nobody is signed in; run: postern up URL")
	// ErrOtherBroker says that the device belongs to another broker.
	ErrOtherBroker = errors.New("this device belongs to another broker; to leave it run: postern logout --forget")
	// ErrNotReady says that the broker has no owner yet.
	ErrNotReady = errors.New("the broker is not set up yet: its owner link was not used")
	// ErrBlocked says that the broker refuses this device.
	ErrBlocked = errors.New("the broker does not admit this device")
)

// Config is what a Client needs.
type Config struct {
	// Dir is the state directory.
	Dir     string
	Version string
	// Dialer opens TCP connections; nil is a plain *net.Dialer.
	Dialer control.Dialer
	// TLSOnly leaves QUIC out, as behind an HTTP proxy.
	TLSOnly bool
	// Interface is the tunnel interface, which the facts leave out; may be empty.
	Interface string
	// OnDenied is told each new refusal. It must not block; nil is nobody.
	OnDenied func(app string, r *controlv1.Receipt)
	// OnChange is told that session or catalog are new. It must not block; nil is nobody.
	OnChange func()
	Log      *slog.Logger
}

// Client is one device with its session.
type Client struct {
	cfg   Config
	log   *slog.Logger
	store *state.Store
	// enrolled wakes Run after an enrolment; its length 1 lets several collapse.
	enrolled chan struct{}
	failures failures

	mu      sync.Mutex // guards the fields below
	conn    *connection
	view    view
	changed chan struct{} // closed and replaced when view or conn change
}

// view is what the broker has told.
type view struct {
	catalog *controlv1.Catalog
	session *controlv1.SessionNews
	heard   bool
}

// New opens the state directory; Run does the work.
func New(cfg Config) (*Client, error) {
	store, err := state.Open(cfg.Dir)
	if err != nil {
		return nil, err
	}
	if cfg.OnChange == nil {
		cfg.OnChange = func() {}
	}
	return &Client{
		cfg: cfg, log: cfg.Log.With("component", "client"), store: store,
		enrolled: make(chan struct{}, 1), changed: make(chan struct{}),
	}, nil
}

// Store is the state directory, for the daemon's own part of it.
func (c *Client) Store() *state.Store { return c.store }

// Run keeps the connection to the broker and the links until ctx ends.
func (c *Client) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		m, err := c.store.Load()
		switch {
		case errors.Is(err, state.ErrNotEnrolled):
			if !c.waitEnrolled(ctx) {
				return nil
			}
			continue
		case err != nil:
			return err
		}
		if err := c.runMembership(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

func (c *Client) waitEnrolled(ctx context.Context) bool {
	select {
	case <-c.enrolled:
		return true
	case <-ctx.Done():
		return false
	}
}

// runMembership works under one membership until it is replaced or ctx ends.
func (c *Client) runMembership(ctx context.Context, m state.Membership) error {
	conn, err := c.connect(m)
	if err != nil {
		return err
	}
	c.setConnection(conn)
	defer c.setConnection(nil)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if c.waitEnrolled(ctx) {
			cancel()
		}
	})
	err = conn.run(ctx)
	cancel()
	return err
}

func (c *Client) setConnection(conn *connection) {
	c.mu.Lock()
	c.conn, c.view = conn, view{}
	c.announceLocked()
	c.mu.Unlock()
	c.cfg.OnChange()
}

func (c *Client) announceLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// update changes the view and tells everybody.
func (c *Client) update(f func(v *view)) {
	c.mu.Lock()
	f(&c.view)
	c.announceLocked()
	c.mu.Unlock()
	c.cfg.OnChange()
}

// await waits until cond holds for the view, or ctx ends.
func (c *Client) await(ctx context.Context, cond func(v view, conn *connection) bool) error {
	for {
		c.mu.Lock()
		ok, changed := cond(c.view, c.conn), c.changed
		c.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// live reports a signed-in session whose apps are known.
func (v view) live() bool { return v.session.GetState() == "live" && v.catalog != nil }

// AwaitLive waits until apps can be used. The error is ErrNotSignedIn as soon as the broker
// says that nobody is signed in, or when this device has never been.
func (c *Client) AwaitLive(ctx context.Context) error {
	if _, err := c.store.Load(); errors.Is(err, state.ErrNotEnrolled) {
		return ErrNotSignedIn
	}
	err := c.await(ctx, func(v view, _ *connection) bool {
		return v.live() || v.heard && v.session != nil && v.session.State != "live"
	})
	if err != nil {
		return c.unreachable(err)
	}
	if c.snapshot().live() {
		return nil
	}
	return ErrNotSignedIn
}

// unreachable says why the broker was not heard.
func (c *Client) unreachable(err error) error {
	if conn := c.connection(); conn != nil {
		if st := conn.uplink.State(); st.Err != nil {
			return errors.Join(tunnels.ErrBroker, errors.New(st.Problem))
		}
	}
	return errors.Join(tunnels.ErrBroker, err)
}

func (c *Client) snapshot() view {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.view
}

func (c *Client) connection() *connection {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn
}

// Catalog returns what the user may see; nil before the broker has said so.
func (c *Client) Catalog() *controlv1.Catalog { return c.snapshot().catalog }

// Find returns the app behind a name: its short name, or a full one in any case.
func (c *Client) Find(name string) (*controlv1.CatalogApp, bool) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	for _, app := range c.Catalog().GetApps() {
		if strings.ToLower(app.Name) == name {
			return app, true
		}
		for _, fqdn := range app.Fqdns {
			if strings.ToLower(strings.TrimSuffix(fqdn, ".")) == name {
				return app, true
			}
		}
	}
	return nil, false
}

// target turns a host name into an app. A name that is not in the catalog may still be one
// that the broker knows, if it lies under a suffix of the organisation.
func (c *Client) target(host string) (session.App, error) {
	if app, ok := c.Find(host); ok {
		return session.App{ID: ids.AppID(app.Id), Name: app.Name}, nil
	}
	v := c.snapshot()
	if !v.live() {
		return session.App{}, ErrNotSignedIn
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	for _, suffix := range v.catalog.Suffixes {
		if strings.HasSuffix(name, "."+strings.ToLower(suffix)) {
			return session.App{Name: name}, nil
		}
	}
	return session.App{}, tunnels.ErrUnknownApp
}

// OpenTCP opens a connection to an app by name.
func (c *Client) OpenTCP(ctx context.Context, host string, port uint16) (*flow.Flow, error) {
	conn, app, err := c.route(host)
	if err != nil {
		return nil, c.failed(host, "tcp", port, err)
	}
	f, err := conn.tunnels.OpenTCP(ctx, app, port)
	return f, c.failed(host, "tcp", port, err)
}

// OpenUDP opens an association with an app by name.
func (c *Client) OpenUDP(ctx context.Context, host string, port uint16) (*flow.Packets, error) {
	conn, app, err := c.route(host)
	if err != nil {
		return nil, c.failed(host, "udp", port, err)
	}
	p, err := conn.tunnels.OpenUDP(ctx, app, port)
	return p, c.failed(host, "udp", port, err)
}

// Ping measures the way to an app.
func (c *Client) Ping(ctx context.Context, host string, port uint16) ([]tunnels.Leg, error) {
	conn, app, err := c.route(host)
	if err != nil {
		return nil, err
	}
	return conn.tunnels.Ping(ctx, app, port)
}

func (c *Client) route(host string) (*connection, session.App, error) {
	app, err := c.target(host)
	if err != nil {
		return nil, app, err
	}
	conn := c.connection()
	if conn == nil {
		return nil, app, ErrNotSignedIn
	}
	return conn, app, nil
}

// FirstPort is the first port of an app on a network ("tcp" or "udp"), for commands that
// name none.
func FirstPort(app *controlv1.CatalogApp, network string) (uint16, bool) {
	for _, p := range app.GetPorts() {
		if p.Network == network && p.First > 0 && p.First <= 65535 {
			return uint16(p.First), true
		}
	}
	return 0, false
}

// NetworkChanged says that the machine is attached in another way.
func (c *Client) NetworkChanged(fingerprint string) {
	if conn := c.connection(); conn != nil {
		conn.tunnels.NetworkChanged(fingerprint)
		conn.reporter.Trigger()
	}
}

// Status is how the client stands.
type Status struct {
	// Enrolled says that this device belongs to Broker.
	Enrolled bool
	Broker   string
	Device   ids.DeviceID
	Uplink   uplink.State
	// Session is nil while nobody is signed in.
	Session *controlv1.Session
	// Ended says why the last session ended.
	Ended string
	Links []tunnels.Status
	Facts []posture.Fact
	// AuditHeads are what this device remembers of the broker's audit, AuditProblem says what
	// is gone of it.
	AuditHeads   []string
	AuditProblem string
}

// Status returns a snapshot.
func (c *Client) Status() Status {
	var st Status
	if m, err := c.store.Load(); err == nil {
		st.Enrolled, st.Device = true, m.Device
		if b, err := m.Broker(); err == nil {
			st.Broker = b.String()
		}
	}
	conn, v := c.connection(), c.snapshot()
	if v.session.GetState() == "live" {
		st.Session = v.session.GetSession()
	} else {
		st.Ended = v.session.GetReason()
	}
	if conn != nil {
		st.Uplink, st.Links, st.Facts = conn.uplink.State(), conn.tunnels.Status(), conn.reporter.Current()
		st.AuditHeads, st.AuditProblem = conn.witness.Heads(), conn.witness.Problem()
	}
	return st
}

// device describes this machine to the broker.
func (c *Client) device() *controlv1.DeviceInfo {
	name, err := os.Hostname()
	if err != nil {
		name = runtime.GOOS + " device"
	}
	return &controlv1.DeviceInfo{Name: name, Os: runtime.GOOS, ClientVersion: c.cfg.Version, HardwareKey: c.store.Key().Hardware()}
}

// readyWait bounds the wait for the first catalog after a sign-in.
const readyWait = 15 * time.Second
