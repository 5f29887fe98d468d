// Package serve keeps the connector reachable: it attaches to every relay that the broker
// names, over TCP and over UDP, and gives each end-to-end carrier that a device opens to
// the link server. It only ever dials out. Whoever comes in has proved a device key and
// nothing else; the enforcer behind the link server judges the grant.
//
// SetRelays may be called at any time; Run owns every goroutine.
package serve

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/carrier/quic"
	carriertls "github.com/postern-zt/postern/netstack/carrier/tls"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/peer"
	"github.com/postern-zt/postern/netstack/relay/attach"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/ticket"
)

const (
	handshakeTimeout = 10 * time.Second
	bindRetryMin     = time.Second
	bindRetryMax     = 30 * time.Second
	// maxRelays bounds how many relays one connector attaches to.
	maxRelays = 16
	// linger is how long a relay stays attached that the broker no longer names: a broker
	// that has just started names a relay only when that has found its way back, and flows
	// through it must not notice (DESIGN section 6).
	linger = 10 * time.Minute
)

var (
	errAttaching = errors.New("attaching")
	errTicket    = errors.New("the broker gave a malformed ticket")
	errExpired   = errors.New("the ticket has expired and the broker gave no other")
)

// Links takes carriers; *link.Server has it. Serve returns when the carrier has ended.
type Links interface {
	Serve(ctx context.Context, c carrier.Carrier) error
}

// Config is what a Server needs; Dialer may be nil for direct connections.
type Config struct {
	Credentials *peer.Credentials
	Links       Links
	// Broker is where this connector reaches its broker: the relay inside the broker is
	// reached there too, whatever address it knows of itself.
	Broker control.Broker
	Dialer attach.Dialer
	Log    *slog.Logger
}

// Server attaches to relays.
type Server struct {
	cfg    Config
	log    *slog.Logger
	server *tls.Config

	states *states

	mu     sync.Mutex // guards wanted and the paths of workers
	wanted []*controlv1.RelayPath
	// changed wakes Run; its length 1 lets changes collapse.
	changed chan struct{}
}

// New returns a server that is attached to nothing.
func New(cfg Config) (*Server, error) {
	server, err := peer.ServerConfig(peer.Config{Credentials: cfg.Credentials, Expect: peer.Anyone})
	if err != nil {
		return nil, err
	}
	return &Server{
		cfg: cfg, log: cfg.Log.With("component", "serve"), server: server,
		states: newStates(), changed: make(chan struct{}, 1),
	}, nil
}

// SetRelays replaces the relays to be attached to, with fresh tickets.
func (s *Server) SetRelays(paths []*controlv1.RelayPath) {
	s.mu.Lock()
	s.wanted = paths[:min(len(paths), maxRelays)]
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// States lists how the transports stand, ordered by relay.
func (s *Server) States() []State { return s.states.list(time.Now()) }

// worker keeps one relay attached.
type worker struct {
	cancel context.CancelFunc
	done   chan struct{}
	// path has the newest ticket; guarded by the server's mu.
	path *controlv1.RelayPath
	// unnamed is since when the broker does not name the relay; owned by Run.
	unnamed time.Time
}

// stop ends the worker and what goes through its relay.
func (w *worker) stop() {
	w.cancel()
	<-w.done
}

// Run attaches to what SetRelays names until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	workers := map[string]*worker{}
	defer func() {
		for _, w := range workers {
			w.cancel()
		}
		for _, w := range workers {
			<-w.done
		}
	}()
	leave := time.NewTimer(linger)
	defer leave.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-leave.C:
		case <-s.changed:
		}
		s.reconcile(ctx, workers)
		leave.Reset(nextLeave(workers))
	}
}

// reconcile starts workers for new relays, renews the tickets of known ones and ends those
// that have not been named for a while.
func (s *Server) reconcile(ctx context.Context, workers map[string]*worker) {
	s.mu.Lock()
	wanted := s.wanted
	s.mu.Unlock()
	named := map[string]bool{}
	for _, p := range wanted {
		id := p.GetRelay().GetId()
		named[id] = true
		w := workers[id]
		if w != nil && s.renew(w, p) {
			continue
		}
		if w != nil { // it has moved
			w.stop()
		}
		workers[id] = s.start(ctx, p)
	}
	for id, w := range workers {
		if !named[id] && w.overdue(time.Now()) {
			w.stop()
			delete(workers, id)
		}
	}
}

// renew gives a worker a fresh ticket; false when the relay is somewhere else now.
func (s *Server) renew(w *worker, p *controlv1.RelayPath) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.unnamed = time.Time{}
	if !proto.Equal(w.path.GetRelay(), p.GetRelay()) || w.path.GetHandle() != p.GetHandle() {
		return false
	}
	w.path = p
	return true
}

// overdue notes that the relay is not named and reports whether that has lasted.
func (w *worker) overdue(now time.Time) bool {
	if w.unnamed.IsZero() {
		w.unnamed = now
	}
	return now.Sub(w.unnamed) >= linger
}

// nextLeave is when the next unnamed relay is to be left.
func nextLeave(workers map[string]*worker) time.Duration {
	next := linger
	for _, w := range workers {
		if !w.unnamed.IsZero() {
			next = min(next, max(time.Second, linger-time.Since(w.unnamed)))
		}
	}
	return next
}

func (s *Server) start(ctx context.Context, p *controlv1.RelayPath) *worker {
	ctx, cancel := context.WithCancel(ctx)
	w := &worker{cancel: cancel, done: make(chan struct{}), path: p}
	go func() {
		defer close(w.done)
		s.attach(ctx, w, p.GetRelay())
	}()
	return w
}

// attach keeps both transports of one relay up.
func (s *Server) attach(ctx context.Context, w *worker, at *controlv1.RelayInfo) {
	id, err := ids.Parse[ids.RelayID](at.GetId())
	if err != nil {
		s.log.WarnContext(ctx, "relay with a malformed id", "error", err)
		return
	}
	defer s.states.forget(id)
	cfg := attach.Config{Relay: s.relayInfo(at, id), Dialer: noting{s, id}, Log: s.log}
	var bound atomic.Pointer[attach.Binding]
	var wg sync.WaitGroup
	wg.Go(func() { s.stand(ctx, w, id, cfg, &bound) })
	wg.Go(func() { s.bind(ctx, w, id, cfg, &bound) })
	wg.Wait()
}

// stand keeps the control connection up. Each try asks for the ticket first, so that is
// when the one before has ended. Once the connection stands, the relay may be a new
// process that knows nothing of the UDP binding.
func (s *Server) stand(ctx context.Context, w *worker, id ids.RelayID, cfg attach.Config, bound *atomic.Pointer[attach.Binding]) {
	s.states.down(id, TCP, errAttaching)
	again := false
	cfg.OnAttached = func() {
		s.states.up(id, TCP)
		if b := bound.Load(); again && b != nil {
			b.Rebind()
		}
		again = true
	}
	tickets := func(context.Context) (attach.Ticket, error) {
		t, err := s.ticket(w)
		s.states.down(id, TCP, cmp.Or(err, errAttaching))
		return t, err
	}
	s.states.down(id, TCP, attach.Serve(ctx, cfg, tickets, s.onCall))
}

// relayInfo says where a relay is and what it must prove: the broker's CA vouches for a
// relay of its own process and for the one inside the broker.
func (s *Server) relayInfo(at *controlv1.RelayInfo, id ids.RelayID) attach.RelayInfo {
	addrs := at.GetAddresses()
	kind, name := control.KindRelay, string(id)
	if len(at.GetKeyId()) == 0 {
		kind, name = control.KindBroker, ""
		addrs = append([]string{s.cfg.Broker.Address}, addrs...)
	}
	pin := s.cfg.Broker.Pin
	return attach.RelayInfo{ID: id, TCP: addrs, UDP: addrs, TLS: &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // the chain is checked against the pin
		VerifyConnection: func(cs tls.ConnectionState) error {
			err := control.VerifyServer(cs, pin, kind, name, time.Now())
			if err != nil {
				s.states.fails(id, TCP, err)
			}
			return err
		},
	}}
}

// noting is a dialer that keeps why a relay cannot be reached.
type noting struct {
	s  *Server
	id ids.RelayID
}

// DialContext dials, through the proxy where one is set.
func (n noting) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := n.s.cfg.Dialer
	if dialer == nil {
		dialer = &net.Dialer{}
	}
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		n.s.states.fails(n.id, TCP, err)
	}
	return conn, err
}

func (s *Server) ticket(w *worker) (attach.Ticket, error) {
	s.mu.Lock()
	p := w.path
	s.mu.Unlock()
	t := attach.Ticket{
		Sealed: p.GetTicket(), Role: ticket.RoleConnector, Handle: ticket.Handle(p.GetHandle()), Expires: time.UnixMilli(p.GetExpiresMs()),
	}
	if len(p.GetMacKey()) != len(t.MACKey) || !t.Handle.Valid() {
		return attach.Ticket{}, errTicket
	}
	if !time.Now().Before(t.Expires) {
		return attach.Ticket{}, errExpired
	}
	copy(t.MACKey[:], p.GetMacKey())
	return t, nil
}

// onCall shakes hands with a device over a relayed TCP connection.
func (s *Server) onCall(ctx context.Context, link ticket.Handle, raw net.Conn) {
	shake, cancel := context.WithTimeout(ctx, handshakeTimeout)
	c, err := carriertls.Server(shake, raw, carriertls.Config{TLS: s.server, Path: "relay " + raw.RemoteAddr().String()})
	cancel()
	if err != nil {
		s.log.DebugContext(ctx, "device not admitted", "link", link.String(), "error", err)
		raw.Close()
		return
	}
	s.serve(ctx, link, c)
}

func (s *Server) serve(ctx context.Context, link ticket.Handle, c carrier.Carrier) {
	if err := s.cfg.Links.Serve(ctx, c); err != nil && ctx.Err() == nil {
		s.log.DebugContext(ctx, "carrier ended", "link", link.String(), "error", err)
	}
	_ = c.Close() // it has ended; Close only waits
}

// bind keeps a UDP socket bound at the relay and serves QUIC on it.
func (s *Server) bind(ctx context.Context, w *worker, id ids.RelayID, cfg attach.Config, bound *atomic.Pointer[attach.Binding]) {
	retry := bindRetryMin
	for ctx.Err() == nil {
		began := time.Now()
		s.states.down(id, UDP, errAttaching)
		err := s.bindOnce(ctx, w, id, cfg, bound)
		s.states.down(id, UDP, err)
		if time.Since(began) > bindRetryMax {
			retry = bindRetryMin
		}
		timer := time.NewTimer(time.Duration(float64(retry) * (0.8 + 0.4*rand.Float64())))
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		retry = min(2*retry, bindRetryMax)
	}
}

func (s *Server) bindOnce(ctx context.Context, w *worker, id ids.RelayID, cfg attach.Config, bound *atomic.Pointer[attach.Binding]) error {
	socket, err := net.ListenUDP("udp", nil)
	if err != nil {
		return err
	}
	b, err := attach.BindUDP(ctx, cfg, socket, func(context.Context) (attach.Ticket, error) {
		s.states.asked(id, UDP) // for the first time here, later when the binding was lost
		return s.ticket(w)
	})
	if err != nil {
		return err
	}
	bound.Store(b)
	defer func() {
		bound.Store(nil)
		b.Close()
	}()
	s.states.up(id, UDP)
	return quic.Serve(ctx, b, quic.Config{TLS: s.server}, func(ctx context.Context, link ticket.Handle, c *quic.Carrier) {
		s.serve(ctx, link, c)
	})
}
