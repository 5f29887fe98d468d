// Package serve keeps the connector reachable: it attaches to every relay that the broker
// names, over TCP and over UDP, and gives each end-to-end carrier that a device opens to
// the link server. It only ever dials out. Whoever comes in has proved a device key and
// nothing else; the enforcer behind the link server judges the grant.
//
// SetRelays may be called at any time; Run owns every goroutine.
package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

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

	mu     sync.Mutex // guards wanted and states
	wanted []*controlv1.RelayPath
	states map[string]State
	// changed wakes Run; its length 1 lets changes collapse.
	changed chan struct{}
}

// State is how one transport to one relay stands.
type State struct {
	Relay     ids.RelayID
	Transport string
	Up        bool
	Problem   string
	Since     time.Time
}

// New returns a server that is attached to nothing.
func New(cfg Config) (*Server, error) {
	server, err := peer.ServerConfig(peer.Config{Credentials: cfg.Credentials, Expect: peer.Anyone})
	if err != nil {
		return nil, err
	}
	return &Server{
		cfg: cfg, log: cfg.Log.With("component", "serve"), server: server,
		states: make(map[string]State), changed: make(chan struct{}, 1),
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
func (s *Server) States() []State {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]State, 0, len(s.states))
	for _, st := range s.states {
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b State) int {
		if a.Relay != b.Relay {
			return compare(string(a.Relay), string(b.Relay))
		}
		return compare(a.Transport, b.Transport)
	})
	return out
}

func compare(a, b string) int {
	if a < b {
		return -1
	}
	return 1
}

// worker keeps one relay attached.
type worker struct {
	cancel context.CancelFunc
	done   chan struct{}
	// path is the newest ticket, guarded by the server's mu.
	path *controlv1.RelayPath
}

// Run attaches to what SetRelays names until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	workers := map[string]*worker{}
	defer func() {
		for _, w := range workers {
			w.cancel()
			<-w.done
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.changed:
		}
		s.reconcile(ctx, workers)
	}
}

// reconcile starts workers for new relays, renews the tickets of known ones and ends the
// others.
func (s *Server) reconcile(ctx context.Context, workers map[string]*worker) {
	s.mu.Lock()
	wanted := s.wanted
	s.mu.Unlock()
	keep := map[string]bool{}
	for _, p := range wanted {
		id := p.GetRelay().GetId()
		keep[id] = true
		if w := workers[id]; w != nil {
			s.mu.Lock()
			w.path = p
			s.mu.Unlock()
			continue
		}
		workers[id] = s.start(ctx, p)
	}
	for id, w := range workers {
		if !keep[id] {
			w.cancel()
			<-w.done
			delete(workers, id)
		}
	}
}

func (s *Server) start(ctx context.Context, p *controlv1.RelayPath) *worker {
	ctx, cancel := context.WithCancel(ctx)
	w := &worker{cancel: cancel, done: make(chan struct{}), path: p}
	go func() {
		defer close(w.done)
		s.attach(ctx, w)
	}()
	return w
}

// attach keeps both transports of one relay up.
func (s *Server) attach(ctx context.Context, w *worker) {
	id, err := ids.Parse[ids.RelayID](w.path.GetRelay().GetId())
	if err != nil {
		s.log.WarnContext(ctx, "relay with a malformed id", "error", err)
		return
	}
	cfg := attach.Config{Relay: s.relayInfo(w.path, id), Dialer: s.cfg.Dialer, Log: s.log}
	tickets := func(context.Context) (attach.Ticket, error) { return s.ticket(w) }
	var wg sync.WaitGroup
	wg.Go(func() {
		s.note(id, "tcp", nil)
		s.note(id, "tcp", attach.Serve(ctx, cfg, tickets, s.onCall))
	})
	wg.Go(func() { s.bind(ctx, id, cfg, tickets) })
	wg.Wait()
	s.forget(id)
}

// relayInfo says where a relay is and what it must prove: the broker's CA vouches for a
// relay of its own process and for the one inside the broker.
func (s *Server) relayInfo(p *controlv1.RelayPath, id ids.RelayID) attach.RelayInfo {
	addrs := p.GetRelay().GetAddresses()
	kind, name := control.KindRelay, string(id)
	if len(p.GetRelay().GetKeyId()) == 0 {
		kind, name = control.KindBroker, ""
		addrs = append([]string{s.cfg.Broker.Address}, addrs...)
	}
	pin := s.cfg.Broker.Pin
	return attach.RelayInfo{ID: id, TCP: addrs, UDP: addrs, TLS: &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // the chain is checked against the pin
		VerifyConnection: func(cs tls.ConnectionState) error {
			return control.VerifyServer(cs, pin, kind, name, time.Now())
		},
	}}
}

func (s *Server) ticket(w *worker) (attach.Ticket, error) {
	s.mu.Lock()
	p := w.path
	s.mu.Unlock()
	t := attach.Ticket{
		Sealed: p.GetTicket(), Role: ticket.RoleConnector, Handle: ticket.Handle(p.GetHandle()), Expires: time.UnixMilli(p.GetExpiresMs()),
	}
	if len(p.GetMacKey()) != len(t.MACKey) || !t.Handle.Valid() {
		return attach.Ticket{}, errors.New("the broker gave a malformed ticket")
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
func (s *Server) bind(ctx context.Context, id ids.RelayID, cfg attach.Config, tickets attach.Tickets) {
	retry := bindRetryMin
	for ctx.Err() == nil {
		began := time.Now()
		s.note(id, "udp", s.bindOnce(ctx, id, cfg, tickets))
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

func (s *Server) bindOnce(ctx context.Context, id ids.RelayID, cfg attach.Config, tickets attach.Tickets) error {
	socket, err := net.ListenUDP("udp", nil)
	if err != nil {
		return err
	}
	b, err := attach.BindUDP(ctx, cfg, socket, tickets)
	if err != nil {
		return err
	}
	defer b.Close()
	s.note(id, "udp", nil)
	return quic.Serve(ctx, b, quic.Config{TLS: s.server}, func(ctx context.Context, link ticket.Handle, c *quic.Carrier) {
		s.serve(ctx, link, c)
	})
}

// note keeps how a transport stands: nil is up.
func (s *Server) note(id ids.RelayID, transport string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := State{Relay: id, Transport: transport, Up: err == nil, Since: time.Now()}
	if err != nil {
		st.Problem = err.Error()
	}
	s.states[string(id)+"/"+transport] = st
}

func (s *Server) forget(id ids.RelayID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.states, string(id)+"/tcp")
	delete(s.states, string(id)+"/udp")
}
