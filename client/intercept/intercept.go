// Package intercept makes the apps reachable for every program of one user on this host: a
// tunnel interface, routes and DNS for the published names, a user-space stack behind it
// that holds each connection until it is decided. The daemon's root package runs it; what
// a connection may do is decided by its Opener.
//
//	program -> kernel -> TUN -> netstack/stack -> whose program? -> Opener -> flow
//	resolver -> DNS address of the plan -> client/resolve
//
// Packets that no socket of the owner sent are refused: other users, containers, forwarded
// traffic (decisions rule 21). Host changes are declarative, made after everything else
// is ready, and undone at the end and at every start, because the last run may have been
// killed.
//
// Engine is safe for concurrent use; Run owns every goroutine.
package intercept

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-zt/postern/client/resolve"
	"github.com/postern-zt/postern/client/session"
	"github.com/postern-zt/postern/netstack/flow"
	"github.com/postern-zt/postern/netstack/stack"
	"github.com/postern-zt/postern/platform/daemon"
	"github.com/postern-zt/postern/platform/dns"
	"github.com/postern-zt/postern/platform/route"
	"github.com/postern-zt/postern/platform/tun"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
)

const (
	// cleanTimeout bounds the undoing of host changes.
	cleanTimeout = 10 * time.Second
	// retryAfter is the pause after a tunnel that could not be set up or failed.
	retryAfter = 5 * time.Second
)

// Opener opens connections to apps by name.
type Opener interface {
	OpenTCP(ctx context.Context, host string, port uint16) (*flow.Flow, error)
	OpenUDP(ctx context.Context, host string, port uint16) (*flow.Packets, error)
}

// Config is what an Engine needs.
type Config struct {
	Interface string
	Opener    Opener
	// Outcome says what a program is told about an error of the Opener.
	Outcome func(err error) session.Outcome
	// DNS is the resolver configuration to work on; the zero value is the system's.
	DNS dns.HostConfig
	// Owner says whose socket sends from program to app; an error is nobody.
	Owner func(network string, program, app netip.AddrPort) (uint32, error)
	// Prefix returns the IPv4 prefix of the last run; KeepPrefix stores the present one.
	Prefix     func() netip.Prefix
	KeepPrefix func(p netip.Prefix) error
	Log        *slog.Logger
}

// Wanted is the whole wanted state. Down means that nothing of ours is on the host.
type Wanted struct {
	Up bool
	// Owner is the user whose programs pass.
	Owner uint32
	// Catalog is what the user may see.
	Catalog *controlv1.Catalog
	// Avoid are addresses that must stay reachable outside: broker and relays.
	Avoid []netip.Addr
}

// ready reports whether there is anything to set up.
func (w Wanted) ready() bool { return w.Up && len(w.Catalog.GetSuffixes()) > 0 }

// Status is what is in place.
type Status struct {
	Up        bool
	Interface string
	Prefixes  []netip.Prefix
	DNS       string
	// Refused counts connections of other users and forwarded ones.
	Refused uint64
	Problem string
}

// Engine keeps the host as it is wanted.
type Engine struct {
	cfg    Config
	log    *slog.Logger
	router *route.Router
	dns    *dns.Host
	wake   chan struct{} // length 1: Run looks again
	table  atomic.Pointer[table]
	// refused counts; it is shared by the handlers of all connections.
	refused atomic.Uint64

	mu      sync.Mutex // guards the fields below
	wanted  Wanted
	status  Status
	changed chan struct{} // closed and replaced when status changes
}

// New checks the configuration. It does not touch the host.
func New(cfg Config) (*Engine, error) {
	if cfg.Opener == nil || cfg.Outcome == nil || cfg.Owner == nil || cfg.Log == nil {
		return nil, errors.New("interception needs an opener, the owner of sockets and a log")
	}
	if cfg.Interface == "" {
		cfg.Interface = tun.DefaultName
	}
	cfg.DNS.Log = cfg.Log
	router, err := route.New(route.RouterConfig{Log: cfg.Log})
	if err != nil {
		return nil, err
	}
	host, err := dns.New(cfg.DNS)
	if err != nil {
		return nil, err
	}
	return &Engine{cfg: cfg, log: cfg.Log.With("component", "intercept"), router: router, dns: host, wake: make(chan struct{}, 1), changed: make(chan struct{})}, nil
}

// Set replaces the wanted state. It does not wait.
func (e *Engine) Set(w Wanted) {
	e.mu.Lock()
	e.wanted = w
	e.mu.Unlock()
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

func (e *Engine) want() Wanted {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.wanted
}

// Status returns a snapshot.
func (e *Engine) Status() Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	st := e.status
	st.Refused = e.refused.Load()
	if st.Up {
		st.DNS = e.dns.Status().Sentence
	}
	return st
}

func (e *Engine) setStatus(st Status) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.status = st
	close(e.changed)
	e.changed = make(chan struct{})
}

// Changed is closed at the next change of the status.
func (e *Engine) Changed() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.changed
}

// Addresses returns the addresses of a published name on this host.
func (e *Engine) Addresses(name string) []netip.Addr {
	t := e.table.Load()
	if t == nil {
		return nil
	}
	a, ok := t.names.Lookup(name)
	if !ok {
		return nil
	}
	return slices.DeleteFunc([]netip.Addr{a.V4, a.V6}, func(x netip.Addr) bool { return !x.IsValid() })
}

// CleanUp removes from the host what an earlier run left behind.
func (e *Engine) CleanUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	return errors.Join(e.dns.CleanUp(ctx, e.cfg.Interface), e.router.CleanUp(ctx, e.cfg.Interface))
}

// Run sets the host up whenever that is wanted, until ctx ends, and cleans up after itself.
func (e *Engine) Run(ctx context.Context) error {
	if err := e.CleanUp(ctx); err != nil {
		e.log.WarnContext(ctx, "leftovers of an earlier run not removed", "error", err)
	}
	for {
		if !e.awaitReady(ctx) {
			return nil
		}
		err := e.tunnel(ctx)
		err = errors.Join(err, e.CleanUp(ctx))
		e.table.Store(nil)
		st := Status{}
		if err != nil {
			st.Problem = err.Error()
			e.log.ErrorContext(ctx, "tunnel interface failed", "error", err)
		}
		e.setStatus(st)
		if err != nil && !sleep(ctx, retryAfter) {
			return nil
		}
	}
}

func (e *Engine) awaitReady(ctx context.Context) bool {
	for !e.want().ready() {
		select {
		case <-e.wake:
		case <-ctx.Done():
			return false
		}
	}
	return ctx.Err() == nil
}

// tunnel runs one interface until it is no longer wanted or something fails.
func (e *Engine) tunnel(ctx context.Context) error {
	dev, err := tun.Open(tun.Config{Name: e.cfg.Interface})
	if err != nil {
		return err
	}
	resolver, err := resolve.New(resolve.Config{Log: e.cfg.Log})
	if err != nil {
		return errors.Join(err, dev.Close())
	}
	h := &handler{engine: e, resolver: resolver}
	st, err := stack.New(stack.Config{Device: dev, Handler: h, Log: e.cfg.Log})
	if err != nil {
		return errors.Join(err, dev.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &setter{engine: e, stack: st, resolver: resolver, iface: dev.InterfaceName()}
	return daemon.Run(ctx, e.cfg.Log,
		daemon.Part{Name: "stack", Run: st.Run},
		daemon.Part{Name: "dns", Run: e.dns.Run},
		daemon.Part{Name: "host", Run: func(ctx context.Context) error {
			defer cancel()
			return s.run(ctx)
		}},
	)
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
