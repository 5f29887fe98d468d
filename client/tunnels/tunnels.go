// Package tunnels opens connections to apps: it asks the broker once per app, keeps the
// grant, holds one link per connector over whatever relays and transports work, and tells
// the truth when it does not work. The SOCKS proxy, the tunnel interface and stdio are its
// callers.
//
//	Open(app) -> Book: denied? granted? -> Authorize (once for all who wait)
//	          -> for each connector of the grant: pin, link, Present, OpenTCP/OpenUDP
//	             not dialled: the next one;  grant over: ask again;  else: the truth
//
// It must not know names or addresses of the host. What it decides from memory stands in
// client/session. Tunnels is safe for concurrent use; Run owns all goroutines, and Open
// waits for Run.
package tunnels

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/client/session"
	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/flow"
	"github.com/postern-zt/postern/netstack/link"
	"github.com/postern-zt/postern/netstack/peer"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/ids"
)

const (
	// openTimeout bounds one Open whose caller is more patient. It is longer than the
	// connector's own dial of an app and shorter than a program's SYN is held.
	openTimeout = 18 * time.Second
	// carrierWait is how long the connectors of an app have together to be reached. A
	// program waits for it when all are away.
	carrierWait = 5 * time.Second
	// lookEvery is how often an open looks whether its connector is still reached.
	lookEvery = 500 * time.Millisecond
	// maxTries bounds new grants and rounds over the connectors within one Open; retryPause
	// grows with each, so that a connector which has just started gets its statement.
	maxTries   = 4
	retryPause = 300 * time.Millisecond
	// pruneEvery looks for grants that ended while their connector was away.
	pruneEvery = 30 * time.Second
)

// Authorizer asks the broker; the generated DeviceServiceClient is one.
type Authorizer interface {
	Authorize(ctx context.Context, req *connect.Request[controlv1.AuthorizeRequest]) (*connect.Response[controlv1.AuthorizeResponse], error)
}

// Config is what Tunnels need.
type Config struct {
	Client Authorizer
	Broker control.Broker
	// Credentials prove the device key to connectors.
	Credentials *peer.Credentials
	// CheckConnector pins identity keys: it refuses a connector whose key has changed.
	CheckConnector func(id ids.ConnectorID, key ids.KeyID) error
	// Dialer opens TCP connections; nil is a plain *net.Dialer.
	Dialer control.Dialer
	// TLSOnly leaves QUIC out, as behind an HTTP proxy.
	TLSOnly bool
	// Now is the broker's time as far as known; nil is time.Now.
	Now func() time.Time
	// OnDenied is told each new refusal, not those from memory; nil is nobody. It must
	// not block.
	OnDenied func(app string, r *controlv1.Receipt)
	Log      *slog.Logger
}

// Tunnels is the client's data plane.
type Tunnels struct {
	cfg      Config
	log      *slog.Logger
	memory   *flow.Memory
	chooser  *link.Chooser
	instance frame.InstanceID
	ready    chan struct{} // closed when Run begins
	// reach makes carriers; tests replace it.
	reach func(ctx context.Context, c *connector, w way, config *tls.Config) (carrier.Carrier, error)

	work sync.WaitGroup // everything that Run waits for

	mu         sync.Mutex // guards the fields below
	life       context.Context
	closed     bool
	book       session.Book
	asking     map[string]*call[*session.Grant]
	connectors map[ids.ConnectorID]*connector
	nextRef    link.GrantRef
	refused    *controlv1.Receipt
	void       chan struct{} // closed and replaced when denials are void
}

// New checks the configuration; Run does the work.
func New(cfg Config) (*Tunnels, error) {
	if cfg.Client == nil || cfg.Credentials == nil || cfg.CheckConnector == nil || cfg.Log == nil {
		return nil, errors.New("tunnels need a broker, credentials, pins and a log")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.OnDenied == nil {
		cfg.OnDenied = func(string, *controlv1.Receipt) {}
	}
	t := &Tunnels{
		cfg: cfg, log: cfg.Log.With("component", "tunnels"), memory: flow.NewMemory(0), chooser: link.NewChooser(),
		instance: frame.NewInstanceID(), ready: make(chan struct{}),
		void:   make(chan struct{}),
		asking: map[string]*call[*session.Grant]{}, connectors: map[ids.ConnectorID]*connector{},
	}
	t.reach = t.dial
	return t, nil
}

// Run keeps links and calls going until ctx ends; then every flow is reset.
func (t *Tunnels) Run(ctx context.Context) error {
	t.mu.Lock()
	if t.life != nil {
		t.mu.Unlock()
		return ErrClosed
	}
	t.life = ctx
	close(t.ready)
	t.mu.Unlock()
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			t.prune()
		}
	}
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.work.Wait()
	return nil
}

// startLocked runs f under Run; it reports false when Run has ended.
func (t *Tunnels) startLocked(f func(ctx context.Context)) bool {
	if t.closed || t.life == nil {
		return false
	}
	ctx := t.life
	t.work.Go(func() { f(ctx) })
	return true
}

// OpenTCP opens a connection to a port of an app.
func (t *Tunnels) OpenTCP(ctx context.Context, app session.App, port uint16) (*flow.Flow, error) {
	var f *flow.Flow
	err := t.open(ctx, app, "tcp", port, func(ctx context.Context, c *connector, ref link.GrantRef) (err error) {
		f, err = c.client.OpenTCP(ctx, ref, port)
		return err
	})
	return f, err
}

// OpenUDP opens an association with a port of an app.
func (t *Tunnels) OpenUDP(ctx context.Context, app session.App, port uint16) (*flow.Packets, error) {
	var p *flow.Packets
	err := t.open(ctx, app, "udp", port, func(ctx context.Context, c *connector, ref link.GrantRef) (err error) {
		p, err = c.client.OpenUDP(ctx, ref, port)
		return err
	})
	return p, err
}

// use is what Open does with a link on which the grant was accepted.
type use func(ctx context.Context, c *connector, ref link.GrantRef) error

func (t *Tunnels) open(ctx context.Context, app session.App, network string, port uint16, do use) error {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	select {
	case <-t.ready:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	var last error
	for try := range maxTries {
		if try > 0 && !pause(ctx, time.Duration(try-1)*retryPause) {
			return last
		}
		g, err := t.grant(ctx, ask{app: app, network: network, port: port})
		if err != nil {
			return err
		}
		action, err := t.through(ctx, g, do)
		if err == nil {
			return nil
		}
		last = err
		switch action {
		case session.AskAgain:
			t.end(g.ID)
		case session.TryAnother:
			if try == 0 && !pause(ctx, retryPause) {
				return last
			}
		default:
			return err
		}
	}
	return last
}

// through tries the connectors of a grant in their order.
func (t *Tunnels) through(ctx context.Context, g *session.Grant, do use) (session.Action, error) {
	action, last := session.GiveUp, ErrNoConnector
	patience := carrierWait
	for i, path := range g.Connectors {
		c, err := t.connector(path)
		if err != nil {
			t.log.ErrorContext(ctx, "connector not used", "connector", path.GetConnectorId(), "error", err)
			last = err
			continue
		}
		if i < len(g.Connectors)-1 {
			patience /= 2 // the other half is for those that come after
		}
		dialled, err := t.attempt(ctx, c, g, patience, do)
		if err == nil {
			return session.GiveUp, nil
		}
		last = err
		refusal, ok := errors.AsType[*frame.Error](err)
		switch {
		case !ok && (dialled || ctx.Err() != nil):
			return session.GiveUp, err
		case ok && session.After(refusal.Code) != session.TryAnother:
			return session.After(refusal.Code), err
		case ok:
			action = session.TryAnother // a later round may find it ready
		}
	}
	return action, last
}

// attempt uses one connector, which has patience to be reached. dialled says that the app
// may have been tried.
func (t *Tunnels) attempt(ctx context.Context, c *connector, g *session.Grant, patience time.Duration, do use) (dialled bool, err error) {
	waiting, cancel := context.WithTimeoutCause(ctx, patience, errNotReached)
	defer cancel()
	ref, err := t.present(waiting, c, g)
	if err == nil && c.carriers.Load() == 0 {
		_, err = c.client.Ping(waiting) // which waits for one: nothing was sent yet
	}
	if err != nil {
		return false, err
	}
	reached, stop := c.whileReached(ctx)
	defer stop()
	return true, do(reached, c, ref)
}

// Ended takes the broker's word that grants are over, with the receipt that says why.
func (t *Tunnels) Ended(grants []string, r *controlv1.Receipt) {
	for _, id := range grants {
		t.end(ids.GrantID(id))
	}
	if r.GetId() == "" || allowed(r) {
		return
	}
	t.mu.Lock()
	t.refused = r
	t.mu.Unlock()
	t.cfg.OnDenied(r.GetAppName(), r)
}

// EndAll withdraws every grant, because nobody is signed in any more.
func (t *Tunnels) EndAll() {
	t.mu.Lock()
	t.book.EndAll()
	connectors := t.listLocked()
	t.mu.Unlock()
	for _, c := range connectors {
		for _, id := range c.presentedGrants() {
			c.withdraw(id)
		}
	}
}

// ForgetDenials makes the next use of each denied app ask the broker.
func (t *Tunnels) ForgetDenials() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.book.ForgetDenials()
	close(t.void)
	t.void = make(chan struct{})
}

// Refused is the receipt of the latest refusal, nil when there was none.
func (t *Tunnels) Refused() *controlv1.Receipt {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.refused
}

// end drops a grant here and at its connectors; its flows are reset.
func (t *Tunnels) end(id ids.GrantID) {
	t.mu.Lock()
	t.book.End(id)
	connectors := t.listLocked()
	t.mu.Unlock()
	for _, c := range connectors {
		c.withdraw(id)
	}
}

// prune withdraws grants whose hard end passed while their connector was away.
func (t *Tunnels) prune() {
	now := t.cfg.Now()
	t.mu.Lock()
	connectors := t.listLocked()
	t.mu.Unlock()
	for _, c := range connectors {
		for _, id := range c.endedBy(now) {
			c.withdraw(id)
		}
	}
}

func (t *Tunnels) listLocked() []*connector {
	out := make([]*connector, 0, len(t.connectors))
	for _, c := range t.connectors {
		out = append(out, c)
	}
	return out
}

// NetworkChanged says that the machine is on another network now, or on the same one by
// another address.
func (t *Tunnels) NetworkChanged(fingerprint string) {
	t.chooser.SetNetwork(fingerprint)
	t.mu.Lock()
	connectors := t.listLocked()
	t.mu.Unlock()
	for _, c := range connectors {
		c.probe()
	}
}

// Status is one link.
type Status struct {
	Connector ids.ConnectorID
	link.Status
}

// Status lists the links, ordered by connector.
func (t *Tunnels) Status() []Status {
	t.mu.Lock()
	connectors := t.listLocked()
	t.mu.Unlock()
	var out []Status
	for _, c := range connectors {
		out = append(out, Status{Connector: c.id, Status: c.client.Status()})
	}
	slices.SortFunc(out, func(a, b Status) int {
		if a.Connector < b.Connector {
			return -1
		}
		return 1
	})
	return out
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
