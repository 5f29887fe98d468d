package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/flow"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/ids"
)

// Server is the connector's end of all links.
type Server struct {
	handler  Handler
	memory   *flow.Memory
	limits   Limits
	log      *slog.Logger
	instance frame.InstanceID

	// closes counts CloseGrant and ClosePeer, so that a grant that was revoked while the
	// handler looked at it is looked at again.
	closes atomic.Uint64

	// The locks are taken in this order: mu, a remote's, gate.
	mu      sync.Mutex // guards the fields below
	remotes map[ids.KeyID]*remote
	held    map[ids.GrantID]bool

	gate     sync.Mutex // guards the fields below; nothing is called while it is held
	draining bool
	closed   bool
	flows    sync.WaitGroup // splices, which outlive their carriers
	telling  sync.WaitGroup // broadcasts that nobody waits for but Close
}

// NewServer returns a Server without carriers.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.Handler == nil || cfg.Log == nil {
		return nil, errors.New("link server needs a handler and a logger")
	}
	if cfg.Memory == nil {
		cfg.Memory = flow.NewMemory(0)
	}
	return &Server{
		handler: cfg.Handler, memory: cfg.Memory, limits: cfg.Limits.withDefaults(), log: cfg.Log,
		instance: frame.NewInstanceID(), remotes: make(map[ids.KeyID]*remote), held: make(map[ids.GrantID]bool),
	}, nil
}

// Serve works on one accepted carrier until it dies, ctx ends, or the peer misbehaves.
// The peer's flows outlive it. It owns c.
func (s *Server) Serve(ctx context.Context, c carrier.Carrier) error {
	l := newLine("", c)
	defer l.kill(ErrClosed)
	if err := s.greet(ctx, l); err != nil {
		return fmt.Errorf("greet: %w", err)
	}
	r, err := s.join(l)
	if err != nil {
		return err
	}
	defer r.leave(l)
	ctx, cancel := context.WithCancelCause(ctx)
	var work sync.WaitGroup
	run := func(fn func(context.Context) error) {
		work.Go(func() { cancel(fn(ctx)) })
	}
	run(func(ctx context.Context) error {
		return l.readControl(func(h frame.Header, p []byte) error { return r.control(ctx, l, h, p) })
	})
	run(func(ctx context.Context) error { return r.acceptStreams(ctx, l, &work) })
	run(func(ctx context.Context) error { return r.datagrams(ctx, l) })
	run(func(ctx context.Context) error { return r.watchGrants(ctx, l) })
	select {
	case <-ctx.Done():
	case <-l.dead:
		cancel(l.err)
	case <-c.Done():
		cancel(c.Err())
	}
	err = context.Cause(ctx)
	l.kill(err)
	work.Wait()
	if hangUp(err) {
		return nil
	}
	return err
}

func (s *Server) greet(ctx context.Context, l *line) error {
	ctx, cancel := context.WithTimeout(ctx, greetTimeout)
	defer cancel()
	ctl, err := l.c.AcceptStream(ctx)
	if err != nil {
		return err
	}
	l.ctl = ctl
	return l.greet(frame.NewHello(s.instance, frame.KindConnector), false)
}

// join adds the line to its peer. A new client instance resets the flows of the old one.
func (s *Server) join(l *line) (*remote, error) {
	id := l.c.Peer()
	s.mu.Lock()
	closed, draining := s.state()
	if closed {
		s.mu.Unlock()
		return nil, ErrClosed
	}
	s.forgetIdleLocked()
	old := s.remotes[id.KeyID]
	r := old
	if old == nil || old.hello.Instance != l.hello.Instance {
		r = newRemote(s, id, l.hello)
		s.remotes[id.KeyID] = r
	} else {
		old = nil
	}
	surplus := r.addLine(l, s.limits.CarriersPerPeer)
	s.mu.Unlock()
	if old != nil {
		old.end(frame.Superseded)
	}
	if surplus != nil {
		surplus.kill(fmt.Errorf("%w: the peer has newer carriers", ErrClosed))
	}
	if draining {
		_ = l.write(frame.AppendDrain(nil)) // a dead line shows in its readers
	}
	return r, nil
}

// forgetIdleLocked drops peers that left long ago; s.mu is held.
func (s *Server) forgetIdleLocked() {
	now := time.Now()
	for k, r := range s.remotes {
		if r.idleSince(now) > tombstoneFor {
			delete(s.remotes, k)
		}
	}
}

func (s *Server) all() []*remote {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*remote, 0, len(s.remotes))
	for _, r := range s.remotes {
		out = append(out, r)
	}
	return out
}

// CloseGrant ends every micro-tunnel of a grant at once: app side, flow and, by a
// withdraw, the client's. It returns how many flows were cut.
func (s *Server) CloseGrant(g ids.GrantID, code frame.Code) int {
	s.closes.Add(1)
	s.mu.Lock()
	delete(s.held, g)
	s.mu.Unlock()
	n := 0
	for _, r := range s.all() {
		n += r.closeGrant(g, code)
	}
	return n
}

// ClosePeer ends everything of one device, its carriers included.
func (s *Server) ClosePeer(k ids.KeyID, code frame.Code) int {
	s.closes.Add(1)
	s.mu.Lock()
	r := s.remotes[k]
	delete(s.remotes, k)
	s.mu.Unlock()
	if r == nil {
		return 0
	}
	return r.end(code)
}

// Hold stops every byte of a grant and keeps its sockets (outage mode hold).
func (s *Server) Hold(g ids.GrantID) { s.setHeld(g, true) }

// Resume lets the flows of a held grant move again.
func (s *Server) Resume(g ids.GrantID) { s.setHeld(g, false) }

func (s *Server) setHeld(g ids.GrantID, on bool) {
	s.mu.Lock()
	if on {
		s.held[g] = true
	} else {
		delete(s.held, g)
	}
	s.mu.Unlock()
	for _, r := range s.all() {
		r.setHeld(g, on)
	}
}

// Drain refuses new flows and tells every client; the old flows go on.
func (s *Server) Drain() {
	s.gate.Lock()
	s.draining = true
	s.gate.Unlock()
	for _, r := range s.all() {
		s.tell(r, frame.AppendDrain(nil))
	}
}

// Flows is the number of living flows.
func (s *Server) Flows() int {
	n := 0
	for _, r := range s.all() {
		n += r.flowCount()
	}
	return n
}

// WaitFlows returns when no flow is left, or when ctx ends.
func (s *Server) WaitFlows(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.flows.Wait()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Close resets every flow, ends every line and waits. Safe twice.
func (s *Server) Close() error {
	s.gate.Lock()
	s.closed = true
	s.gate.Unlock()
	for _, r := range s.all() {
		r.end(frame.Draining)
	}
	s.flows.Wait()
	s.telling.Wait()
	return nil
}

// tell writes control frames to a peer in a goroutine that Close waits for: a peer that
// does not read must not delay what the caller does to others.
func (s *Server) tell(r *remote, b []byte) {
	s.gate.Lock()
	defer s.gate.Unlock()
	if !s.closed {
		s.telling.Go(func() { r.broadcast(b) })
	}
}

func (s *Server) isHeld(g ids.GrantID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held[g]
}

func (s *Server) state() (closed, draining bool) {
	s.gate.Lock()
	defer s.gate.Unlock()
	return s.closed, s.draining
}

// accepting says whether a new flow may start, and reserves the goroutine for it.
func (s *Server) accepting() frame.Code {
	s.gate.Lock()
	defer s.gate.Unlock()
	if s.closed || s.draining {
		return frame.Draining
	}
	s.flows.Add(1)
	return frame.OK
}
