package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/net/http/httpproxy"

	"github.com/postern-zt/postern/client/intercept"
	"github.com/postern-zt/postern/client/localapi"
	"github.com/postern-zt/postern/client/session"
	"github.com/postern-zt/postern/client/state"
	"github.com/postern-zt/postern/platform/daemon"
	"github.com/postern-zt/postern/platform/dns"
	"github.com/postern-zt/postern/platform/ipc"
	"github.com/postern-zt/postern/platform/netmon"
	"github.com/postern-zt/postern/platform/paths"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	localv1 "github.com/postern-zt/postern/proto/local/v1"
)

const (
	// socketMode lets everybody ask; what a caller may do is decided by the kernel's word.
	socketMode = 0o666
	// upWait bounds the wait for interface and DNS after a sign-in.
	upWait = 10 * time.Second
	// lookupTimeout bounds the look-up of the broker's own name.
	lookupTimeout = 3 * time.Second
)

// DaemonConfig is the configuration of posternd (/etc/postern/client.yaml,
// POSTERN_CLIENT_*). Everything has a default.
type DaemonConfig struct {
	// StateDir holds the device key and the membership.
	StateDir string `yaml:"state_dir"`
	// Socket is the local socket for the command postern.
	Socket string `yaml:"socket"`
	// Interface is the name of the tunnel interface; empty is postern0.
	Interface string `yaml:"interface"`
	// ResolvConf is the resolver's file of the last rung; empty is /etc/resolv.conf.
	ResolvConf string `yaml:"resolv_conf"`
	// DNSBus is the D-Bus address of systemd-resolved; empty is the system bus, "none"
	// leaves systemd-resolved out.
	DNSBus string `yaml:"dns_bus"`
	// Proxy is the HTTP proxy towards broker and relays; empty is that of HTTPS_PROXY.
	Proxy string `yaml:"proxy"`
	// LogLevel is debug, info, warn or error.
	LogLevel string `yaml:"log_level"`
}

// DefaultDaemonConfig returns the configuration of a daemon that was told nothing.
func DefaultDaemonConfig(set paths.Set) DaemonConfig {
	return DaemonConfig{StateDir: set.State, Socket: set.Socket, LogLevel: "info"}
}

// Validate names the first field that cannot be used.
func (c *DaemonConfig) Validate() error {
	switch {
	case c.StateDir == "":
		return errors.New("state_dir: a directory is needed")
	case c.Socket == "":
		return errors.New("socket: a path is needed")
	case len(c.Interface) > 15 || strings.ContainsAny(c.Interface, "/ "):
		return fmt.Errorf("interface: %q is no name of an interface", c.Interface)
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return fmt.Errorf("log_level: want debug, info, warn or error, not %q", c.LogLevel)
	}
	return nil
}

// Daemon is posternd: a Client for one user of this machine with a tunnel interface.
type Daemon struct {
	cfg    DaemonConfig
	log    *slog.Logger
	client *Client
	engine *intercept.Engine
	wake   chan struct{} // length 1: follow looks again

	noticeMu sync.Mutex // guards notices
	notices  session.Notices

	mu   sync.Mutex // guards host
	host state.Host
}

// NewDaemon opens the state; Run does the work. proxy is that of the environment.
func NewDaemon(cfg DaemonConfig, version string, proxy *httpproxy.Config, log *slog.Logger) (*Daemon, error) {
	if cfg.Proxy != "" {
		proxy = &httpproxy.Config{HTTPSProxy: cfg.Proxy}
	}
	d := &Daemon{cfg: cfg, log: log.With("component", "daemon"), wake: make(chan struct{}, 1)}
	dialer, tlsOnly := Dialing(proxy)
	var err error
	d.client, err = New(Config{
		Dir: cfg.StateDir, Version: version, Dialer: dialer, TLSOnly: tlsOnly, Interface: cfg.interfaceName(),
		OnDenied: d.denied, OnChange: d.changed, Log: log,
	})
	if err != nil {
		return nil, err
	}
	if d.host, err = d.client.store.Host(); err != nil {
		return nil, err
	}
	d.engine, err = intercept.New(cfg.engine(d, log))
	return d, err
}

func (c DaemonConfig) interfaceName() string {
	if c.Interface == "" {
		return "postern0"
	}
	return c.Interface
}

func (c DaemonConfig) engine(d *Daemon, log *slog.Logger) intercept.Config {
	return intercept.Config{
		Interface: c.interfaceName(), Opener: d.client, Outcome: OutcomeOf, Owner: socketOwner, Log: log,
		DNS:        dns.HostConfig{ResolvConf: c.ResolvConf, BusAddress: c.DNSBus},
		Prefix:     func() netip.Prefix { return d.wanted().IPv4 },
		KeepPrefix: func(p netip.Prefix) error { return d.change(func(h *state.Host) { h.IPv4 = p }) },
	}
}

// socketOwner asks the kernel whose socket sends from program to app.
func socketOwner(network string, program, app netip.AddrPort) (uint32, error) {
	if network == "udp" {
		return ipc.Owner(ipc.UDP, program, app)
	}
	return ipc.Owner(ipc.TCP, program, app)
}

// CleanUp removes from the host what a killed daemon left behind.
func (d *Daemon) CleanUp(ctx context.Context) error { return d.engine.CleanUp(ctx) }

// Run serves until ctx ends. ready is called when the local socket answers.
func (d *Daemon) Run(ctx context.Context, ready func()) error {
	if err := paths.SharedDir(dirOf(d.cfg.Socket)); err != nil {
		return err
	}
	l, err := ipc.Listen(ctx, d.cfg.Socket, socketMode)
	if err != nil {
		return err
	}
	defer l.Close()
	api := localapi.New(localapi.Config{Listener: l, Backend: daemonBackend{Backend{d.client}, d}, Gate: d.gate, Log: d.log})
	monitor, err := netmon.New(netmon.Config{
		Ignore: d.cfg.interfaceName(), Log: d.log,
		OnChange: func(_ context.Context, n netmon.Network) { d.client.NetworkChanged(n.Fingerprint) },
	})
	if err != nil {
		return err
	}
	ready()
	return daemon.Run(ctx, d.log,
		daemon.Part{Name: "client", Run: d.client.Run},
		daemon.Part{Name: "intercept", Run: d.engine.Run},
		daemon.Part{Name: "follow", Run: d.follow},
		daemon.Part{Name: "network", Run: func(ctx context.Context) error { return degrade(ctx, d.log, monitor.Run(ctx)) }},
		daemon.Part{Name: "local socket", Run: api.Run},
	)
}

// degrade takes a missing ability of the system for what it is.
func degrade(ctx context.Context, log *slog.Logger, err error) error {
	if errors.Is(err, errors.ErrUnsupported) {
		log.WarnContext(ctx, "changes of the network are not seen", "error", err)
		return nil
	}
	return err
}

func dirOf(path string) string {
	if i := strings.LastIndexAny(path, `/\`); i > 0 {
		return path[:i]
	}
	return "."
}

// changed is told by the client; it must not block.
func (d *Daemon) changed() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// denied writes one line per app and reason in 10 minutes.
func (d *Daemon) denied(app string, r *controlv1.Receipt) {
	d.noticeMu.Lock()
	due := d.notices.Due(app, r.GetReasonCodes(), time.Now())
	d.noticeMu.Unlock()
	if due {
		d.log.Warn("access denied", "app", app, "reason", r.GetReason(), "receipt", r.GetId())
	}
}

// follow tells the engine what is wanted whenever something changes.
func (d *Daemon) follow(ctx context.Context) error {
	for {
		h, cat := d.wanted(), d.client.Catalog()
		w := intercept.Wanted{Up: h.Up && h.Owner != nil, Catalog: cat}
		if h.Owner != nil {
			w.Owner = *h.Owner
		}
		if w.Up {
			w.Avoid = d.outside(ctx, cat)
		}
		d.engine.Set(w)
		select {
		case <-d.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// outside lists the addresses of broker and relays as far as they can be known.
func (d *Daemon) outside(ctx context.Context, cat *controlv1.Catalog) []netip.Addr {
	var hosts []string
	if m, err := d.client.store.Load(); err == nil {
		if b, err := m.Broker(); err == nil {
			hosts = append(hosts, b.Address)
		}
	}
	for _, r := range cat.GetRelays() {
		hosts = append(hosts, r.Addresses...)
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	var out []netip.Addr
	for _, hp := range hosts {
		host, _, err := net.SplitHostPort(hp)
		if err != nil {
			continue
		}
		addrs, _ := net.DefaultResolver.LookupNetIP(ctx, "ip", host) // a name that fails is not avoided
		for _, a := range addrs {
			out = append(out, a.Unmap())
		}
	}
	return out
}

func (d *Daemon) wanted() state.Host {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.host
}

// change stores what is wanted of the host, then acts on it.
func (d *Daemon) change(f func(h *state.Host)) error {
	d.mu.Lock()
	h := d.host
	f(&h)
	err := d.client.store.SaveHost(h)
	if err == nil {
		d.host = h
	}
	d.mu.Unlock()
	d.changed()
	return err
}

// gate lets the owner of the session and root in; while nobody is the owner, anybody may
// look, and sign in.
func (d *Daemon) gate(caller ipc.Peer, _ localapi.Access) error {
	owner := d.wanted().Owner
	if owner == nil || caller.UID == 0 || caller.UID == *owner {
		return nil
	}
	return fmt.Errorf("user %d is signed in on this machine; they, or root, can end that with: postern logout", *owner)
}

// daemonBackend serves the local socket of the daemon.
type daemonBackend struct {
	Backend
	d *Daemon
}

var _ localapi.Backend = daemonBackend{}

// Up signs in and brings the interface up for the caller, or for the owner when root asks
// while somebody else is signed in.
func (b daemonBackend) Up(ctx context.Context, caller ipc.Peer, req *localv1.UpRequest, send func(*localv1.UpEvent) error) error {
	owner := caller.UID
	if old := b.d.wanted().Owner; old != nil && caller.UID == 0 {
		owner = *old
	}
	return b.Backend.Up(ctx, caller, req, func(e *localv1.UpEvent) error {
		if e.Stage != "ready" {
			return send(e)
		}
		if err := b.d.change(func(h *state.Host) { h.Up, h.Owner = true, &owner }); err != nil {
			return err
		}
		b.awaitUp(ctx, e)
		return send(e)
	})
}

// awaitUp waits until the interface is there, and says what is missing when it is not.
func (b daemonBackend) awaitUp(ctx context.Context, e *localv1.UpEvent) {
	if !b.d.awaitEngine(ctx, func(st intercept.Status) bool { return st.Up || st.Problem != "" }) {
		e.Text = "The apps are not up yet; postern status says more."
	}
	if p := b.d.engine.Status().Problem; p != "" {
		e.Text = p
	}
}

// awaitEngine waits, not for long, until the host is as it is wanted.
func (d *Daemon) awaitEngine(ctx context.Context, cond func(st intercept.Status) bool) bool {
	ctx, cancel := context.WithTimeout(ctx, upWait)
	defer cancel()
	for {
		changed := d.engine.Changed()
		if cond(d.engine.Status()) {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// Down takes the interface away; the session stays.
func (b daemonBackend) Down(ctx context.Context) error {
	err := b.d.change(func(h *state.Host) { h.Up = false })
	b.d.awaitEngine(ctx, func(st intercept.Status) bool { return !st.Up })
	return err
}

// Logout ends the session and gives the machine free for another user.
func (b daemonBackend) Logout(ctx context.Context) error {
	err := b.Backend.Logout(ctx)
	err = errors.Join(err, b.d.change(func(h *state.Host) { h.Up, h.Owner = false, nil }))
	b.d.awaitEngine(ctx, func(st intercept.Status) bool { return !st.Up })
	return err
}

// Status adds what is on the host.
func (b daemonBackend) Status(ctx context.Context) *localv1.StatusResponse {
	out := b.Backend.Status(ctx)
	st := b.d.engine.Status()
	if out.State == "up" && !b.d.wanted().Up {
		out.State = "down"
	}
	if st.Up {
		out.Interface, out.Dns = st.Interface, st.DNS
	}
	for _, p := range st.Prefixes {
		if p.Addr().Is4() {
			out.Ipv4Prefix = p.String()
		} else {
			out.Ipv6Prefix = p.String()
		}
	}
	if st.Problem != "" {
		out.Problems = append(out.Problems, st.Problem)
	}
	if st.Refused > 0 {
		out.Problems = append(out.Problems, fmt.Sprintf("%d connections of other users or forwarded ones were refused", st.Refused))
	}
	return out
}

// Apps adds the addresses on this host.
func (b daemonBackend) Apps(ctx context.Context) (*localv1.AppsResponse, error) {
	out, err := b.Backend.Apps(ctx)
	for _, app := range out.GetApps() {
		for _, a := range b.d.engine.Addresses(app.Fqdn) {
			app.Addresses = append(app.Addresses, a.String())
		}
	}
	return out, err
}

// Code adds nothing of its own.
func (b daemonBackend) Code(err error) (connect.Code, string) { return b.Backend.Code(err) }
