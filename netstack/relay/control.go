package relay

import (
	"context"
	"sync"
	"time"

	"github.com/postern-zt/postern/netstack/relay/wire"
	"github.com/postern-zt/postern/proto/ticket"
)

const (
	// controlSilence is how long a control connection may be silent; connectors ping
	// every 15 s.
	controlSilence = 45 * time.Second
	// controlQueue is how many messages may wait for one connector; beyond it calls are
	// refused, since the connector does not keep up.
	controlQueue = 64
)

// control is the standing connection of one attached connector.
type control struct {
	ticket ticket.Ticket
	sess   *session
	out    chan []byte
}

// serveControl holds a control connection until it ends, expires, is cut or replaced.
func (r *Relay) serveControl(ctx context.Context, s *session, t ticket.Ticket) Reason {
	c := &control{ticket: t, sess: s, out: make(chan []byte, controlQueue)}
	c.out <- wire.AppendMessage(nil, wire.KindAttached, nil)
	if !r.attach(c) {
		return DropLimit
	}
	defer r.detach(c)
	if r.revoked.covers(t) { // revoked between the check of the ticket and now
		return DropRevoked
	}
	ctx, cancel := context.WithTimeout(ctx, t.Expires.Sub(r.cfg.Now()))
	defer cancel()
	stop := context.AfterFunc(ctx, s.close)
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { c.writeLoop(ctx) })
	r.controlLoop(c)
	cancel()
	wg.Wait()
	return OK
}

func (c *control) writeLoop(ctx context.Context) {
	defer c.sess.close()
	for {
		select {
		case <-ctx.Done():
			return
		case msg := <-c.out:
			if c.sess.write(msg) != nil {
				return // the reader ends on the closed connection
			}
		}
	}
}

// controlLoop reads until the connection ends; that it ends is no fault.
func (r *Relay) controlLoop(c *control) {
	for {
		if c.sess.raw.SetReadDeadline(time.Now().Add(controlSilence)) != nil {
			return
		}
		kind, body, err := wire.ReadMessage(c.sess.tls)
		if err != nil {
			return
		}
		switch kind {
		case wire.KindPing:
			c.post(wire.AppendMessage(nil, wire.KindPong, nil))
		case wire.KindDecline:
			id, err := wire.ParseDecline(body)
			if err != nil {
				return
			}
			if call := r.takeCall(id, c.ticket.Handle); call != nil {
				close(call.answered)
			}
		default: // a newer connector's message
		}
	}
}

// post queues a message; false when the connector does not keep up.
func (c *control) post(msg []byte) bool {
	select {
	case c.out <- msg:
		return true
	default:
		return false
	}
}

// attach makes c the connector's connection; the one before is closed, because the
// connector itself has opened a newer.
func (r *Relay) attach(c *control) bool {
	h := c.ticket.Handle
	r.mu.Lock()
	old := r.controls[h]
	if old == nil && len(r.controls) >= r.cfg.Limits.Controls {
		r.mu.Unlock()
		return false
	}
	r.controls[h] = c
	close(r.arrived)
	r.arrived = make(chan struct{})
	r.mu.Unlock()
	if old != nil {
		old.sess.close()
	}
	return true
}

func (r *Relay) detach(c *control) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.controls[c.ticket.Handle] == c {
		delete(r.controls, c.ticket.Handle)
	}
}

// waitControl returns the connector's connection, waiting a little: after a relay's
// restart the client may be back before the connector.
func (r *Relay) waitControl(ctx context.Context, h ticket.Handle) *control {
	ctx, cancel := context.WithTimeout(ctx, attachGrace)
	defer cancel()
	for {
		r.mu.Lock()
		c, arrived := r.controls[h], r.arrived
		r.mu.Unlock()
		if c != nil {
			return c
		}
		select {
		case <-ctx.Done():
			return nil
		case <-arrived:
		}
	}
}
