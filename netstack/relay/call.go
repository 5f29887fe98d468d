package relay

import (
	"context"
	"crypto/rand"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-zt/postern/netstack/relay/wire"
	"github.com/postern-zt/postern/netstack/splice"
	"github.com/postern-zt/postern/proto/ticket"
)

const (
	// attachGrace is how long a call waits for its connector to attach.
	attachGrace = 4 * time.Second
	// answerTimeout is how long it then waits for the connector's own connection.
	answerTimeout = 10 * time.Second
)

// call is a client's connection waiting for the connector's:
//
//	pending --answer--> taken, answered receives the session --ready--> joined, over closes
//	pending --decline--> taken, answered is closed
//	pending --timeout, cut--> removed
//
// A cut cancels the context of the whole call, whichever state it is in.
type call struct {
	link      ticket.Handle
	connector ticket.Handle
	answered  chan *session // one place, so that the answering side never waits
	over      chan struct{} // closed when the answering connection may be let go
}

// link is what one link handle has joined.
type link struct {
	expires atomic.Int64 // Unix nanoseconds

	// Guarded by Relay.mu:
	ticket ticket.Ticket                 // the newest
	flows  map[uint64]context.CancelFunc // calls and joined connections
	nextID uint64
}

// serveCall joins the client's connection with one of its connector and moves bytes
// until either ends. greeted is called when the wait is over.
func (r *Relay) serveCall(ctx context.Context, s *session, t ticket.Ticket, greeted func()) Reason {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	k, flow := r.reserve(t, cancel)
	if k == nil {
		return DropLimit
	}
	defer r.unreserve(t.Handle, k, flow)
	if r.revoked.covers(t) { // revoked between the check of the ticket and now
		return DropRevoked
	}
	c, id, reason := r.newCall(t)
	if reason != OK {
		return reason
	}
	defer close(c.over)
	defer r.dropCall(id)
	answer, reason := r.await(ctx, c, id)
	if reason != OK {
		return reason
	}
	defer answer.close()
	greeted()
	return r.join(ctx, k, t, s, answer)
}

func (r *Relay) newCall(t ticket.Ticket) (*call, wire.CallID, Reason) {
	c := &call{link: t.Handle, connector: t.Connector, answered: make(chan *session, 1), over: make(chan struct{})}
	var id wire.CallID
	rand.Read(id[:])
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.calls) >= r.cfg.Limits.PendingCalls {
		return nil, id, DropLimit
	}
	r.calls[id] = c
	return c, id, OK
}

// await rings the connector and waits for its own connection.
func (r *Relay) await(ctx context.Context, c *call, id wire.CallID) (*session, Reason) {
	ctl := r.waitControl(ctx, c.connector)
	if ctl == nil {
		return nil, DropNoConnector
	}
	if !ctl.post(wire.AppendCall(nil, c.link, id)) {
		return nil, DropLimit
	}
	timer := time.NewTimer(answerTimeout)
	defer timer.Stop()
	select {
	case s := <-c.answered:
		return answerOr(s, DropDeclined)
	case <-timer.C:
	case <-ctx.Done():
	}
	if r.dropCall(id) {
		return nil, DropCallTimeout
	}
	return answerOr(<-c.answered, DropDeclined) // taken in this moment
}

// answerOr turns the nil of a closed channel into a reason.
func answerOr(s *session, reason Reason) (*session, Reason) {
	if s == nil {
		return nil, reason
	}
	return s, OK
}

// dropCall forgets a pending call; false when it was taken or gone.
func (r *Relay) dropCall(id wire.CallID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.calls[id]
	delete(r.calls, id)
	return ok
}

// takeCall gives the call to the one connector it is for, once.
func (r *Relay) takeCall(id wire.CallID, connector ticket.Handle) *call {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.calls[id]
	if c == nil || c.connector != connector {
		return nil
	}
	delete(r.calls, id)
	return c
}

// serveAnswer hands the connector's connection to the waiting call and holds it open
// until the call lets go.
func (r *Relay) serveAnswer(s *session, id wire.CallID, t ticket.Ticket) Reason {
	c := r.takeCall(id, t.Handle)
	if c == nil {
		return DropUnknownCall
	}
	c.answered <- s
	<-c.over
	return OK
}

// join sends ready to both, connector first, and moves bytes.
func (r *Relay) join(ctx context.Context, k *link, t ticket.Ticket, client, connector *session) Reason {
	b, err := connector.goRaw()
	if err != nil {
		return DropCallTimeout
	}
	a, err := client.goRaw()
	if err != nil {
		connector.reset()
		return OK // the client has left; nobody is there to be told
	}
	use := r.usage.hold(t)
	defer r.usage.release(t.Handle, use)
	p := splice.New(a, b, r.rateOf(t), &use.up, &use.down)
	r.run(ctx, k, p)
	return OK
}

func (r *Relay) rateOf(t ticket.Ticket) uint64 {
	if t.BytesPerSecond != 0 {
		return t.BytesPerSecond
	}
	return r.cfg.Limits.BytesPerSecond
}

// run moves bytes until an end, a cut or the link's expiry.
func (r *Relay) run(ctx context.Context, k *link, p *splice.Pair) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { r.watchExpiry(ctx, k, p) })
	if err := p.Run(ctx); err != nil {
		r.log.Debug("relayed connection ended", "error", err)
	}
	cancel()
	wg.Wait()
}

// watchExpiry cuts the pair when the link's ticket, renewed or not, has ended.
func (r *Relay) watchExpiry(ctx context.Context, k *link, p *splice.Pair) {
	for {
		left := time.Unix(0, k.expires.Load()).Sub(r.cfg.Now())
		if left <= 0 {
			p.Cut()
			return
		}
		t := time.NewTimer(left)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// reserve takes one of the link's connections, to be ended by cancel; nil when the link
// has no more.
func (r *Relay) reserve(t ticket.Ticket, cancel context.CancelFunc) (*link, uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.links[t.Handle]
	if k == nil {
		k = &link{ticket: t, flows: make(map[uint64]context.CancelFunc)}
		r.links[t.Handle] = k
	}
	if uint64(len(k.flows)) >= r.flowsOf(t) || !k.renewLocked(t) {
		return nil, 0
	}
	k.nextID++
	k.flows[k.nextID] = cancel
	return k, k.nextID
}

func (r *Relay) flowsOf(t ticket.Ticket) uint64 {
	if t.Flows != 0 {
		return t.Flows
	}
	return uint64(r.cfg.Limits.FlowsPerHandle)
}

// renewLocked lets the link live as long as its newest ticket; it refuses a ticket that
// leads elsewhere than the link does.
func (k *link) renewLocked(t ticket.Ticket) bool {
	if k.ticket.Connector != t.Connector {
		return false
	}
	if !t.NotBefore.Before(k.ticket.NotBefore) {
		k.ticket = t
		k.expires.Store(t.Expires.UnixNano())
	}
	return true
}

func (r *Relay) unreserve(h ticket.Handle, k *link, flow uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(k.flows, flow)
	if len(k.flows) == 0 && r.links[h] == k {
		delete(r.links, h)
	}
}

// serveRenew extends a link's connections under a newer ticket.
func (r *Relay) serveRenew(s *session, t ticket.Ticket) Reason {
	r.mu.Lock()
	k := r.links[t.Handle]
	ok := k != nil && k.renewLocked(t)
	r.mu.Unlock()
	if !ok {
		return DropHandle
	}
	_ = s.send(wire.KindAttached) // it is renewed whether or not the holder hears of it
	return OK
}

// cutTCP ends everything of a link or of a connector.
func (r *Relay) cutTCP(h ticket.Handle) {
	r.mu.Lock()
	ctl := r.controls[h]
	delete(r.controls, h)
	var flows []context.CancelFunc
	for lh, k := range r.links {
		if lh == h || k.ticket.Connector == h {
			flows = slices.AppendSeq(flows, maps.Values(k.flows))
		}
	}
	r.mu.Unlock()
	if ctl != nil {
		ctl.sess.reset()
	}
	for _, cancel := range flows {
		cancel()
	}
}

// tcpTickets lists the tickets that TCP connections stand on at present.
func (r *Relay) tcpTickets() []ticket.Ticket {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []ticket.Ticket
	for _, c := range r.controls {
		out = append(out, c.ticket)
	}
	for _, k := range r.links {
		out = append(out, k.ticket)
	}
	return out
}
