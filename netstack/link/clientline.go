package link

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/proto/frame"
)

const (
	// silence is how long a line may be quiet, after something moved on it, before it is
	// asked; looks is how often that is looked at meanwhile.
	silence = 200 * time.Millisecond
	looks   = 2
	// answerWithin is how long a silent line has to answer when another one is warm. With
	// silence and the looks it keeps the stall of a cut below a second (decisions rule 19).
	answerWithin = 500 * time.Millisecond
	// answerWithinAlone is the same without another line: giving up gains nothing but a
	// fresh dial.
	answerWithinAlone = 5 * time.Second
	// idlePing keeps address mappings alive and finds a dead standby.
	idlePing = 15 * time.Second
)

// clientLine is one carrier at the client.
type clientLine struct {
	*line
	client *Client

	mu       sync.Mutex // guards verdicts
	verdicts map[GrantRef]*verdict
}

// verdict is the connector's answer to one present on one line.
type verdict struct {
	grant *clientGrant
	done  chan struct{}
	code  frame.Code // set before done is closed
	// due is how many answers are still to come for the reference: only the last is ours.
	due int
}

func newClientLine(c *Client, name string, car carrier.Carrier) *clientLine {
	return &clientLine{line: newLine(name, car), client: c, verdicts: make(map[GrantRef]*verdict)}
}

func (l *clientLine) status() CarrierStatus {
	rtt := time.Duration(l.rtt.Load())
	if rtt == 0 {
		rtt = l.c.RTT()
	}
	return CarrierStatus{Name: l.name, Kind: l.c.Kind(), Path: l.c.Path(), RTT: rtt, Since: l.since}
}

// present shows g on this line once; the answer comes in through control.
func (l *clientLine) present(g *clientGrant) *verdict {
	l.mu.Lock()
	v := l.verdicts[g.ref]
	if v != nil && v.grant == g {
		l.mu.Unlock()
		return v
	}
	due := 1
	if v != nil {
		due += v.due
	}
	v = &verdict{grant: g, done: make(chan struct{}), due: due}
	l.verdicts[g.ref] = v
	l.mu.Unlock()
	if err := l.write(frame.AppendPresent(nil, uint64(g.ref), g.envelope)); err != nil {
		l.client.lineFailed(l, err)
	}
	return v
}

// verdict waits for the connector's answer to g on this line.
func (l *clientLine) verdict(ctx context.Context, g *clientGrant) (frame.Code, error) {
	v := l.present(g)
	select {
	case <-v.done:
		return v.code, nil
	case <-l.dead:
		return frame.Internal, ErrNoCarrier
	case <-ctx.Done():
		return frame.Internal, context.Cause(ctx)
	}
}

func (l *clientLine) withdraw(ref GrantRef) {
	l.mu.Lock()
	if v := l.verdicts[ref]; v != nil {
		v.grant = nil // the record stays while answers are due
	}
	l.mu.Unlock()
	if err := l.write(frame.AppendWithdraw(nil, uint64(ref), frame.Withdrawn)); err != nil {
		l.client.lineFailed(l, err)
	}
}

// control handles one control frame of the connector.
func (l *clientLine) control(h frame.Header, payload []byte) error {
	switch h.Type {
	case frame.TypePresented:
		p, err := frame.ParsePresented(h, payload)
		if err != nil {
			return err
		}
		l.presented(p)
		return nil
	case frame.TypeWithdraw:
		l.client.grantClosed(GrantRef(h.Value), resetCode(h.Code))
		return nil
	case frame.TypeDrain:
		l.client.drain()
		return nil
	default:
		return unknownFrame(h)
	}
}

// presented takes a verdict. Presents are answered in order, one frame each.
func (l *clientLine) presented(p frame.Presented) {
	l.mu.Lock()
	v := l.verdicts[GrantRef(p.Ref)]
	fresh := false
	if v != nil && v.due > 0 {
		v.due--
		fresh = v.due == 0
	}
	if fresh {
		v.code = p.Code
		close(v.done)
	}
	l.mu.Unlock()
	if fresh && p.Code != frame.OK {
		l.client.grantClosed(GrantRef(p.Ref), p.Code)
	}
}

func isDone(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func (c *Client) drain() {
	c.mu.Lock()
	first := !c.draining
	c.draining = true
	c.mu.Unlock()
	if first && c.cfg.Events.Draining != nil {
		c.cfg.Events.Draining()
	}
}

// lineFailed takes l out of use at once, so that nobody picks it again, and ends it.
func (c *Client) lineFailed(l *clientLine, err error) {
	c.removeLine(l, err)
	c.mu.Lock()
	closed := c.closed
	if !closed {
		c.work.Add(1)
	}
	c.mu.Unlock()
	if closed {
		return
	}
	go func() {
		defer c.work.Done()
		l.kill(err)
	}()
}

// serveLine works on one carrier until it dies. New grants and flows find it in the list.
func (c *Client) serveLine(ctx context.Context, l *clientLine) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var work sync.WaitGroup
	run := func(fn func(context.Context) error) {
		work.Go(func() { cancel(fn(ctx)) })
	}
	run(func(context.Context) error { return l.readControl(l.control) })
	run(func(ctx context.Context) error { return c.datagrams(ctx, l) })
	run(l.watch)
	c.introduce(l)
	select {
	case <-ctx.Done():
	case <-l.dead:
		cancel(l.err)
	case <-l.c.Done():
		cancel(l.c.Err())
	}
	err := context.Cause(ctx)
	c.removeLine(l, err)
	l.kill(err)
	work.Wait()
	return err
}

// introduce presents all grants, says the resets that are owed, and puts the line to use.
func (c *Client) introduce(l *clientLine) {
	c.mu.Lock()
	grants := make([]*clientGrant, 0, len(c.grants))
	for _, g := range c.grants {
		grants = append(grants, g)
	}
	owed := c.owed
	c.owed = make(map[uint64]frame.Code)
	c.mu.Unlock()
	for _, g := range grants {
		l.present(g)
	}
	for id, code := range owed {
		if err := l.write(frame.AppendRst(nil, id, code)); err != nil {
			break // the line is dead; the connector's own timers end these flows
		}
	}
	c.addLine(l)
}

// datagrams hands UDP pieces to their flows.
func (c *Client) datagrams(ctx context.Context, l *clientLine) error {
	for {
		b, err := l.c.ReceiveDatagram(ctx)
		if err != nil {
			return fmt.Errorf("receive datagram: %w", err)
		}
		l.heard.Add(uint64(len(b)))
		l.touch() // an app may send without end and hear nothing
		f, piece, err := frame.ParseFragment(b)
		if err != nil {
			continue // a malformed datagram is dropped like a lost one
		}
		c.mu.Lock()
		cf := c.flows[f.Flow]
		c.mu.Unlock()
		if cf != nil && cf.udp != nil {
			cf.udp.Deliver(f, piece)
		}
	}
}

// watch ends a line that falls silent after something moved on it, or that does not
// answer the ping of an idle one. A line that moves any byte is never ended.
func (l *clientLine) watch(ctx context.Context) error {
	t := time.NewTimer(idlePing)
	defer t.Stop()
	for {
		t.Reset(idlePing)
		var err error
		select {
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-l.kick:
			l.wrote.Store(false) // what is written from now on is watched anew
			err = l.awaitSilence(ctx, t)
		case <-t.C:
		}
		if err == nil {
			err = l.proveAlive(ctx, t)
		}
		if err != nil {
			return err
		}
		if l.client.outstanding() {
			l.touch() // a sender that waits writes nothing more: go on looking
		}
	}
}

// awaitSilence returns when nothing was heard for a while. Who only receives has nothing
// to write into a line that dies, so the end of what it hears is looked at too.
func (l *clientLine) awaitSilence(ctx context.Context, t *time.Timer) error {
	heard, quiet := l.heard.Load(), 0
	for quiet < looks {
		t.Reset(silence / looks)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
		}
		quiet++
		if now := l.heard.Load(); now != heard {
			heard, quiet = now, 0
		}
	}
	return nil
}

// outstanding reports whether the connector still has something to acknowledge.
func (c *Client) outstanding() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.flows {
		if f.tcp != nil && f.tcp.Stats().Unacked > 0 {
			return true
		}
	}
	return false
}

// proveAlive asks and returns nil once a byte was heard after the call.
func (l *clientLine) proveAlive(ctx context.Context, t *time.Timer) error {
	before := l.heard.Load()
	asked := time.Now()
	answered := make(chan error, 1)
	pctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	work.Go(func() {
		_, err := l.ping(pctx)
		answered <- err
	})
	for {
		t.Reset(silence / 3)
		select {
		case err := <-answered:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
		}
		if l.heard.Load() != before {
			l.touch() // it moves again: see how that ends
			return nil
		}
		if time.Since(asked) > l.patience() {
			l.client.lineFailed(l, fmt.Errorf("%w: silent for %s", ErrNoCarrier, time.Since(asked)))
			return fmt.Errorf("%w: silent", ErrNoCarrier)
		}
	}
}

// patience is how long a silent line has, by what there is instead of it.
func (l *clientLine) patience() time.Duration {
	bound := answerWithinAlone
	l.client.mu.Lock()
	if len(l.client.lines) > 1 {
		bound = answerWithin
	}
	l.client.mu.Unlock()
	return max(bound, 4*time.Duration(l.rtt.Load()))
}
