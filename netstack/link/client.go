package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/postern-zt/postern/netstack/flow"
	"github.com/postern-zt/postern/proto/frame"
)

// Client is the device's end of one link. Its carriers live as long as there are grants.
type Client struct {
	cfg ClientConfig
	log *slog.Logger

	work sync.WaitGroup // everything that Run waits for

	mu             sync.Mutex // guards the fields below
	runCtx         context.Context
	lines          []*clientLine // live, the active one first
	changed        chan struct{} // closed and replaced when lines change
	ways           []way
	grants         map[GrantRef]*clientGrant
	flows          map[uint64]*clientFlow
	owed           map[uint64]frame.Code // resets that no carrier has carried yet
	nextFlow       uint64
	waiters        int
	lostAt         time.Time // when the last line went with flows on it
	draining       bool
	closed         bool
	sent, received uint64 // of ended flows

	wakeup chan struct{} // length 1: the manager looks again
}

// clientGrant is one presented grant; the envelope is shown again on every new line.
type clientGrant struct {
	ref      GrantRef
	envelope []byte
}

// NewClient checks the configuration; Run does the work.
func NewClient(cfg ClientConfig) (*Client, error) {
	if cfg.Peer.IsZero() || len(cfg.Dial) == 0 || cfg.Log == nil || cfg.Instance == (frame.InstanceID{}) {
		return nil, errors.New("link client needs a peer, a way to it, an instance and a logger")
	}
	if cfg.Kind == 0 {
		cfg.Kind = frame.KindDevice
	}
	if cfg.Memory == nil {
		cfg.Memory = flow.NewMemory(0)
	}
	if cfg.DetachFor <= 0 {
		cfg.DetachFor = DefaultDetachFor
	}
	return &Client{
		cfg: cfg, log: cfg.Log, ways: make([]way, len(cfg.Dial)),
		changed: make(chan struct{}), wakeup: make(chan struct{}, 1),
		grants: make(map[GrantRef]*clientGrant), flows: make(map[uint64]*clientFlow), owed: make(map[uint64]frame.Code),
	}, nil
}

// Present shows a signed grant under ref and waits for the connector's verdict. It is
// shown again, without being asked, on every later carrier. A ref stands for one grant:
// showing another grant under it ends the flows of the first. Events.GrantClosed also
// reports a refusal here.
func (c *Client) Present(ctx context.Context, envelope []byte, ref GrantRef) error {
	g := &clientGrant{ref: ref, envelope: envelope}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return ErrClosed
	}
	c.grants[ref] = g
	lines := append([]*clientLine(nil), c.lines...)
	c.mu.Unlock()
	c.wake()
	for _, l := range lines {
		l.present(g)
	}
	for {
		l, err := c.activeLine(ctx)
		if err != nil {
			c.dropGrant(g)
			return err
		}
		code, err := l.verdict(ctx, g)
		if err == nil {
			return code.Err()
		}
		if ctx.Err() != nil {
			c.dropGrant(g)
			return err
		}
	}
}

// dropGrant forgets g unless it was replaced.
func (c *Client) dropGrant(g *clientGrant) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.grants[g.ref] != g {
		return false
	}
	delete(c.grants, g.ref)
	return true
}

// Withdraw closes the micro-tunnel of ref: all its flows are reset on both sides.
func (c *Client) Withdraw(ref GrantRef) {
	c.mu.Lock()
	delete(c.grants, ref)
	lines := append([]*clientLine(nil), c.lines...)
	c.mu.Unlock()
	for _, l := range lines {
		l.withdraw(ref)
	}
	c.abortGrant(ref, frame.Withdrawn)
}

// grantClosed is the connector's word that ref is over.
func (c *Client) grantClosed(ref GrantRef, code frame.Code) {
	c.mu.Lock()
	g := c.grants[ref]
	c.mu.Unlock()
	if g == nil || !c.dropGrant(g) {
		return
	}
	c.abortGrant(ref, code)
	if c.cfg.Events.GrantClosed != nil {
		c.cfg.Events.GrantClosed(ref, code)
	}
}

func (c *Client) abortGrant(ref GrantRef, code frame.Code) {
	c.mu.Lock()
	var cut []*clientFlow
	for _, f := range c.flows {
		if f.ref == ref {
			cut = append(cut, f)
		}
	}
	c.mu.Unlock()
	for _, f := range cut {
		f.abort(code)
	}
}

// OpenTCP opens a flow; it returns when the app has answered. A refusal is a
// *frame.Error with the connector's reason. The app is dialled at most once, also when
// the carrier dies meanwhile.
func (c *Client) OpenTCP(ctx context.Context, ref GrantRef, port uint16) (*flow.Flow, error) {
	f, err := c.open(ctx, frame.Open{Ref: uint64(ref), Network: frame.TCP, Port: port})
	if err != nil {
		return nil, err
	}
	return f.tcp, nil
}

// OpenUDP opens a UDP flow: each Read and Write is one datagram.
func (c *Client) OpenUDP(ctx context.Context, ref GrantRef, port uint16) (*flow.Packets, error) {
	f, err := c.open(ctx, frame.Open{Ref: uint64(ref), Network: frame.UDP, Port: port})
	if err != nil {
		return nil, err
	}
	return f.udp, nil
}

// ConnectTime opens and closes a TCP flow and returns the connector's time to the app,
// beside which Ping gives the time to the connector.
func (c *Client) ConnectTime(ctx context.Context, ref GrantRef, port uint16) (time.Duration, error) {
	f, err := c.open(ctx, frame.Open{Ref: uint64(ref), Network: frame.TCP, Port: port})
	if err != nil {
		return 0, err
	}
	f.tcp.Abort(frame.Reset)
	return f.connect, nil
}

// Ping measures the round trip to the connector on the active carrier.
func (c *Client) Ping(ctx context.Context) (time.Duration, error) {
	l, err := c.activeLine(ctx)
	if err != nil {
		return 0, err
	}
	l.touch() // a dead line is found dead, not waited for
	return l.ping(ctx)
}

// activeLine waits for a line.
func (c *Client) activeLine(ctx context.Context) (*clientLine, error) {
	c.mu.Lock()
	c.waiters++
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.waiters--
		c.mu.Unlock()
	}()
	for {
		c.mu.Lock()
		closed, changed := c.closed, c.changed
		var l *clientLine
		if len(c.lines) > 0 {
			l = c.lines[0]
		}
		c.mu.Unlock()
		if closed {
			return nil, ErrClosed
		}
		if l != nil {
			return l, nil
		}
		c.wake()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrNoCarrier, context.Cause(ctx))
		}
	}
}

// Status returns a snapshot.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := Status{Flows: len(c.flows), Grants: len(c.grants), Sent: c.sent, Received: c.received, Draining: c.draining}
	for i, l := range c.lines {
		s := l.status()
		s.Active = i == 0
		st.Carriers = append(st.Carriers, s)
	}
	for _, f := range c.flows {
		s := f.stats()
		st.Sent += s.FromApp
		st.Received += s.ToApp
		if !f.isAttached() {
			st.Detached++
		}
	}
	return st
}

// Probe looks at once whether the carriers still live, as after a change of network.
func (c *Client) Probe() {
	c.mu.Lock()
	lines := append([]*clientLine(nil), c.lines...)
	for i := range c.ways {
		c.ways[i].retryAt, c.ways[i].backoff = time.Time{}, 0
	}
	c.mu.Unlock()
	for _, l := range lines {
		l.touch()
	}
	c.wake()
}

func (c *Client) wake() {
	select {
	case c.wakeup <- struct{}{}:
	default:
	}
}

// changedLocked tells everyone who waits that lines or closed have changed.
func (c *Client) changedLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

var _ net.Conn = (*flow.Flow)(nil)
