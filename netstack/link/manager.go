package link

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/proto/frame"
)

const (
	// raceDelay is how long a way has before the next one is tried beside it: UDP that
	// does not pass is seen after 300 ms.
	raceDelay = 300 * time.Millisecond
	// dialTimeout bounds one attempt with its greeting.
	dialTimeout = 15 * time.Second
	// minBackoff and maxBackoff bound the pause after a failed attempt.
	minBackoff = 250 * time.Millisecond
	maxBackoff = 10 * time.Second
	// maxBackoffBusy bounds it while flows stand still.
	maxBackoffBusy = 2 * time.Second
	// farewell is how long the end waits for the resets to leave.
	farewell = time.Second
)

// way is the state of one Dialer.
type way struct {
	dialing bool
	backoff time.Duration
	retryAt time.Time
}

// Run keeps carriers up while there are grants, flows or openers, and moves flows
// between them. It returns when ctx ends, after everything it started.
func (c *Client) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.mu.Lock()
	if c.closed || c.runCtx != nil {
		c.mu.Unlock()
		return ErrClosed
	}
	c.runCtx = ctx
	c.mu.Unlock()
	c.manage(ctx)
	c.shutDown(cancel)
	return context.Cause(ctx)
}

// manage starts dials until ctx ends.
func (c *Client) manage(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var started time.Time // when we began to look for a first line
	for {
		c.mu.Lock()
		if len(c.lines) > 0 || !c.neededLocked() {
			started = time.Time{}
		} else if started.IsZero() {
			started = time.Now()
		}
		next := c.planLocked(ctx, started)
		c.mu.Unlock()
		if next > 0 {
			timer.Reset(next)
		} else {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
			return
		case <-c.wakeup:
		case <-timer.C:
		}
	}
}

func (c *Client) neededLocked() bool {
	return len(c.grants) > 0 || len(c.flows) > 0 || len(c.owed) > 0 || c.waiters > 0
}

// planLocked starts what is due and returns when to look again (zero: on a wake-up).
func (c *Client) planLocked(ctx context.Context, started time.Time) time.Duration {
	switch {
	case !c.neededLocked():
		return 0
	case len(c.lines) == 0:
		return c.raceLocked(ctx, started)
	case len(c.lines) == 1:
		return c.standbyLocked(ctx)
	default:
		return 0
	}
}

// raceLocked dials the ways in order, each raceDelay after the one before.
func (c *Client) raceLocked(ctx context.Context, started time.Time) time.Duration {
	now := time.Now()
	next := time.Duration(0)
	for rank, i := range c.orderLocked() {
		if c.ways[i].dialing {
			continue
		}
		due := started.Add(time.Duration(rank) * raceDelay)
		if c.ways[i].retryAt.After(due) {
			due = c.ways[i].retryAt
		}
		if wait := due.Sub(now); wait > 0 {
			next = sooner(next, wait)
			continue
		}
		c.dialLocked(ctx, i)
	}
	return next
}

// standbyLocked keeps one more way warm, of another kind if there is one.
func (c *Client) standbyLocked(ctx context.Context) time.Duration {
	active := c.lines[0]
	best := -1
	for _, i := range c.orderLocked() {
		d := c.cfg.Dial[i]
		if d.Name == active.name {
			continue
		}
		if c.ways[i].dialing {
			return 0
		}
		if best < 0 || c.cfg.Dial[best].Kind == active.c.Kind() && d.Kind != active.c.Kind() {
			best = i
		}
	}
	if best < 0 {
		return 0
	}
	if wait := time.Until(c.ways[best].retryAt); wait > 0 {
		return wait
	}
	c.dialLocked(ctx, best)
	return 0
}

func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b < a {
		return b
	}
	return a
}

// orderLocked lists the ways, the kind that worked on this network first.
func (c *Client) orderLocked() []int {
	order := make([]int, len(c.cfg.Dial))
	for i := range order {
		order[i] = i
	}
	if best := c.cfg.Chooser.Best(); best != "" {
		slices.SortStableFunc(order, func(a, b int) int {
			return boolInt(string(c.cfg.Dial[b].Kind) == best) - boolInt(string(c.cfg.Dial[a].Kind) == best)
		})
	}
	return order
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (c *Client) dialLocked(ctx context.Context, i int) {
	c.ways[i].dialing = true
	c.work.Go(func() {
		l, err := c.dial(ctx, c.cfg.Dial[i])
		c.dialled(i, err)
		if err != nil {
			c.log.Debug("carrier dial failed", "carrier", c.cfg.Dial[i].Name, "error", err)
			return
		}
		err = c.serveLine(ctx, l)
		c.log.Debug("carrier ended", "carrier", l.name, "error", err)
		c.wake()
	})
}

// dial makes a carrier and greets the connector on it.
func (c *Client) dial(ctx context.Context, d Dialer) (*clientLine, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	car, err := d.Dial(ctx)
	if err != nil {
		return nil, err
	}
	l, err := c.greet(ctx, d, car)
	if err != nil {
		_ = car.Close()
		return nil, err
	}
	return l, nil
}

func (c *Client) greet(ctx context.Context, d Dialer, car carrier.Carrier) (*clientLine, error) {
	if car.Peer().KeyID != c.cfg.Peer {
		return nil, fmt.Errorf("%w: carrier leads to %s", ErrProtocol, car.Peer())
	}
	l := newClientLine(c, d.Name, car)
	ctl, err := car.OpenStream(ctx)
	if err != nil {
		return nil, fmt.Errorf("open control stream: %w", err)
	}
	l.ctl = ctl
	if err := l.greet(frame.NewHello(c.cfg.Instance, c.cfg.Kind), true); err != nil {
		return nil, err
	}
	if l.hello.Kind != frame.KindConnector {
		return nil, fmt.Errorf("%w: the peer is no connector", ErrProtocol)
	}
	return l, nil
}

// dialled notes the result of an attempt.
func (c *Client) dialled(i int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := &c.ways[i]
	w.dialing = false
	if err == nil {
		// The pause is kept until the line has lived for a while: serveLine clears it.
		if len(c.lines) == 0 {
			c.cfg.Chooser.Won(string(c.cfg.Dial[i].Kind))
		}
	}
	bound := maxBackoff
	if len(c.flows) > 0 {
		bound = maxBackoffBusy
	}
	w.backoff = min(max(2*w.backoff, minBackoff), bound)
	w.retryAt = time.Now().Add(w.backoff/2 + rand.N(w.backoff/2))
	c.wake()
}

// addLine makes l usable; it becomes the active one when there is no other.
func (c *Client) addLine(l *clientLine) {
	c.mu.Lock()
	c.lines = append(c.lines, l)
	c.changedLocked()
	c.mu.Unlock()
	c.wake()
	if c.cfg.Events.CarrierUp != nil {
		c.cfg.Events.CarrierUp(l.status())
	}
}

// removeLine takes l away; the standby, if there is one, becomes active.
func (c *Client) removeLine(l *clientLine, err error) {
	c.mu.Lock()
	i := slices.Index(c.lines, l)
	if i < 0 {
		c.mu.Unlock()
		return
	}
	c.lines = slices.Delete(c.lines, i, i+1)
	if len(c.flows) > 0 && i == 0 {
		c.lostAt = time.Now()
	}
	for w := range c.ways {
		if c.cfg.Dial[w].Name == l.name && time.Since(l.since) > maxBackoff {
			c.ways[w].backoff, c.ways[w].retryAt = 0, time.Time{}
		}
	}
	c.changedLocked()
	c.mu.Unlock()
	c.wake()
	if c.cfg.Events.CarrierDown != nil {
		c.cfg.Events.CarrierDown(l.name, err)
	}
}

// shutDown resets every flow, says so to the connector, and waits for everything.
func (c *Client) shutDown(cancel context.CancelFunc) {
	c.mu.Lock()
	c.closed = true
	flows := make([]*clientFlow, 0, len(c.flows))
	for _, f := range c.flows {
		flows = append(flows, f)
	}
	lines := append([]*clientLine(nil), c.lines...)
	c.changedLocked()
	c.mu.Unlock()
	for _, f := range flows {
		f.abort(frame.Reset)
	}
	c.sayFarewell(flows)
	cancel()
	for _, l := range lines {
		l.kill(errors.Join(ErrClosed, context.Canceled))
	}
	c.work.Wait()
}

// sayFarewell waits a moment for the last words of flows; dead lines cut it short.
func (c *Client) sayFarewell(flows []*clientFlow) {
	said := make(chan struct{})
	c.work.Go(func() {
		defer close(said)
		for _, f := range flows {
			if f.tcp != nil {
				f.tcp.Wait()
			}
		}
	})
	t := time.NewTimer(farewell)
	defer t.Stop()
	select {
	case <-said:
	case <-t.C:
	}
}
