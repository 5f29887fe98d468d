package attach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/postern-zt/postern/netstack/relay/wire"
	"github.com/postern-zt/postern/proto/ticket"
)

const (
	// pingEvery keeps the control connection alive through NATs and proxies.
	pingEvery = 15 * time.Second
	// silence without a pong is a dead control connection.
	silence = 40 * time.Second
	// steady is how long a control connection must have stood to be worth an immediate
	// reconnect; a shorter one counts as a failure.
	steady     = 10 * time.Second
	backoffMin = 200 * time.Millisecond
	backoffMax = 30 * time.Second
	// renewBefore the ticket's end the control connection is replaced under a new one.
	renewBefore = time.Minute
	// maxAnswers bounds the calls that are being answered at a time.
	maxAnswers = 256
	// answerTimeout bounds the dial back to the relay for one call.
	answerTimeout = 10 * time.Second
)

// Call is what Serve hands over for each call that has been answered: the raw stream of
// the link; the callee owns it. It runs in a goroutine that Serve waits for, so it hands
// a long life over to somebody else or ends with ctx.
type Call func(ctx context.Context, link ticket.Handle, raw net.Conn)

// Serve keeps a connector attached to the relay until ctx ends, reconnecting with
// backoff and 20 % of jitter, and answers the calls. It returns after every goroutine it
// started has ended.
func Serve(ctx context.Context, cfg Config, tickets Tickets, onCall Call) error {
	if cfg.Log == nil {
		return errors.New("attach: no logger")
	}
	c := &callee{cfg: cfg, tickets: tickets, onCall: onCall, slots: make(chan struct{}, maxAnswers),
		log: cfg.Log.With("component", "attach", "relay", cfg.Relay.ID)}
	defer c.wg.Wait()
	wait := backoffMin
	for ctx.Err() == nil {
		since := time.Now()
		err := c.standOnce(ctx)
		if ctx.Err() != nil {
			break
		}
		if err == nil || time.Since(since) > steady {
			wait = backoffMin
		}
		c.log.Warn("relay control connection ended", "error", err, "retry_in", wait)
		pause(ctx, jitter(wait))
		wait = min(wait*2, backoffMax)
	}
	return context.Cause(ctx)
}

// callee is the state of one Serve.
type callee struct {
	cfg     Config
	tickets Tickets
	onCall  Call
	log     *slog.Logger
	slots   chan struct{}
	wg      sync.WaitGroup
}

// standOnce holds one control connection. It returns nil when the ticket nears its end.
func (c *callee) standOnce(ctx context.Context) error {
	t, err := c.tickets(ctx)
	if err != nil {
		return fmt.Errorf("get relay ticket: %w", err)
	}
	s, err := open(ctx, c.cfg, wire.PurposeControl, wire.CallID{}, t)
	if err != nil {
		return err
	}
	defer s.drop()
	attachCtx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if err := s.expect(attachCtx, wire.KindAttached); err != nil {
		return err
	}
	c.log.Info("attached to relay")
	if c.cfg.OnAttached != nil {
		c.cfg.OnAttached()
	}
	return c.hold(ctx, s, t)
}

// hold reads calls while a second goroutine pings; whichever ends first ends both.
func (c *callee) hold(ctx context.Context, s *session, t Ticket) error {
	life := t.Expires.Sub(c.cfg.now())
	holdCtx, cancel := context.WithTimeout(ctx, max(life-renewBefore, life/2))
	defer cancel()
	stop := context.AfterFunc(holdCtx, s.drop)
	defer stop()
	out := make(chan []byte, maxAnswers)
	var wg sync.WaitGroup
	wg.Go(func() { c.writeLoop(holdCtx, s, out) })
	err := c.readLoop(ctx, s, t, out)
	expired := errors.Is(holdCtx.Err(), context.DeadlineExceeded)
	cancel()
	wg.Wait()
	if expired {
		return nil
	}
	return err
}

func (c *callee) writeLoop(ctx context.Context, s *session, out <-chan []byte) {
	tick := time.NewTicker(jitter(pingEvery))
	defer tick.Stop()
	defer s.drop()
	ping := wire.AppendMessage(nil, wire.KindPing, nil)
	for {
		msg := ping
		select {
		case <-ctx.Done():
			return
		case msg = <-out:
		case <-tick.C:
		}
		_ = s.raw.SetWriteDeadline(time.Now().Add(dialTimeout))
		if _, err := s.tls.Write(msg); err != nil {
			return // the reader sees the closed connection and reports
		}
	}
}

func (c *callee) readLoop(ctx context.Context, s *session, t Ticket, out chan<- []byte) error {
	for {
		if err := s.raw.SetReadDeadline(time.Now().Add(silence)); err != nil {
			return err
		}
		kind, body, err := wire.ReadMessage(s.tls)
		if err != nil {
			return err
		}
		switch kind {
		case wire.KindCall:
			if err := c.called(ctx, body, t, out); err != nil {
				return err
			}
		case wire.KindRefused:
			return &RefusedError{Code: wire.ParseRefused(body)}
		case wire.KindPong:
		default: // a newer relay's message that an older connector does not know
		}
	}
}

// called answers one call in a goroutine of its own, or declines when too many run. Its
// ctx is that of Serve: an answered call outlives the control connection it came on.
func (c *callee) called(ctx context.Context, body []byte, t Ticket, out chan<- []byte) error {
	link, id, err := wire.ParseCall(body)
	if err != nil {
		return err
	}
	select {
	case c.slots <- struct{}{}:
	default:
		c.decline(id, out)
		return nil
	}
	c.wg.Go(func() {
		raw, err := c.answer(ctx, id, t)
		<-c.slots
		if err != nil {
			c.log.Debug("relay call not answered", "link", link, "error", err)
			c.decline(id, out)
			return
		}
		c.onCall(ctx, link, raw)
	})
	return nil
}

// decline drops the message when the queue is full: the relay's own deadline then ends
// the call.
func (c *callee) decline(id wire.CallID, out chan<- []byte) {
	select {
	case out <- wire.AppendMessage(nil, wire.KindDecline, id[:]):
	default:
	}
}

func (c *callee) answer(ctx context.Context, id wire.CallID, t Ticket) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	s, err := open(ctx, c.cfg, wire.PurposeAnswer, id, t)
	if err != nil {
		return nil, err
	}
	return s.ready(ctx)
}

// jitter spreads d by 20 % either way (decisions rule 32).
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
