package link

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/flow"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/tlv"
)

// dnsPort is the port whose UDP flows are short.
const dnsPort = 53

// serverFlow is one flow at the connector, from the first open until its tombstone.
type serverFlow struct {
	r      *remote
	id     uint64
	tunnel *tunnel
	cancel context.CancelCauseFunc // ends a dial in progress

	// ready is closed when the dial has ended; the four fields below are set before.
	ready   chan struct{}
	code    frame.Code
	connect time.Duration
	tcp     *flow.Flow
	udp     *flow.Packets

	line atomic.Pointer[line] // where UDP goes; swapped by attach

	mu     sync.Mutex // guards the fields below
	rec    FlowRecord
	detach *time.Timer
	epoch  uint32
	cut    frame.Code // an abort that came before ready
}

func codeOfParse(err error) frame.Code {
	if errors.Is(err, tlv.ErrUnknownCritical) {
		return frame.UnsupportedConstraint
	}
	return frame.Protocol
}

func (r *remote) refuseOpen(st carrier.Stream, id uint64, code frame.Code) {
	_ = st.SetWriteDeadline(time.Now().Add(controlTimeout))
	_, _ = st.Write(frame.AppendOpened(nil, frame.Opened{Flow: id, Code: code, Message: messageOf(code)}))
	_ = st.CloseWrite()
	awaitEnd(st)
}

// awaitEnd lets the peer read our last frame before the stream is aborted.
func awaitEnd(st carrier.Stream) {
	_ = st.SetReadDeadline(time.Now().Add(greetTimeout))
	_, _ = io.Copy(io.Discard, io.LimitReader(st, 64<<10))
}

// open answers an open. An open that is repeated on another carrier finds the flow of
// the first one: the app is dialled at most once.
func (r *remote) open(ctx context.Context, l *line, st carrier.Stream, o frame.Open) {
	sf, created, code := r.findOrCreate(l, o)
	if code != frame.OK {
		r.refuseOpen(st, o.Flow, code)
		return
	}
	if created {
		go sf.run(context.WithoutCancel(ctx), o) // owned by the server: s.flows
	}
	select {
	case <-sf.ready:
	case <-ctx.Done():
		return
	}
	if sf.code != frame.OK {
		r.refuseOpen(st, o.Flow, sf.code)
		return
	}
	opened := frame.AppendOpened(nil, frame.Opened{Flow: o.Flow, ConnectMicros: micros(sf.connect), Window: r.s.memory.Window()})
	if sf.udp != nil {
		sf.serveUDP(l, st, o.Epoch, opened)
		return
	}
	sf.serveTCP(st, o.Epoch, frame.Ack{Window: o.Window}, func(frame.Ack) []byte { return opened })
}

func micros(d time.Duration) uint32 { return uint32(min(d.Microseconds(), 1<<32-1)) }

// findOrCreate returns the flow of an open, or why it is refused. Every refusal here is
// before the handler is asked.
func (r *remote) findOrCreate(l *line, o frame.Open) (sf *serverFlow, created bool, code frame.Code) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, dead := r.tombs[o.Flow]; dead {
		return nil, false, frame.Closed
	}
	t := r.tunnels[GrantRef(o.Ref)]
	if code := usable(r, t); code != frame.OK {
		return nil, false, code
	}
	if sf := r.flows[o.Flow]; sf != nil {
		if sf.tunnel != t {
			return nil, false, frame.Protocol
		}
		return sf, false, frame.OK
	}
	if t.held {
		return nil, false, frame.NotLive
	}
	if o.Epoch == 0 {
		return nil, false, frame.Protocol
	}
	if len(r.flows) >= r.s.limits.FlowsPerPeer {
		return nil, false, frame.TooManyFlows
	}
	if code := r.s.accepting(); code != frame.OK {
		return nil, false, code
	}
	sf = r.newFlowLocked(l, t, o)
	return sf, true, frame.OK
}

func usable(r *remote, t *tunnel) frame.Code {
	switch {
	case r.ended:
		return frame.Superseded
	case t == nil:
		return frame.GrantUnknown
	case t.closed:
		return t.code
	default:
		return frame.OK
	}
}

func (r *remote) newFlowLocked(l *line, t *tunnel, o frame.Open) *serverFlow {
	sf := &serverFlow{r: r, id: o.Flow, tunnel: t, ready: make(chan struct{})}
	sf.line.Store(l)
	sf.rec = FlowRecord{
		FlowOpen: FlowOpen{
			Peer: r.id, Instance: r.hello.Instance, Flow: o.Flow, Network: o.Network, Port: o.Port, Host: o.Host,
			Carrier: l.c.Kind(), Path: l.c.Path(),
		},
		Tunnel: t.MicroTunnel, Started: time.Now(),
	}
	r.flows[o.Flow] = sf
	return sf
}

// run lives as long as the flow: record, dial, splice, record.
func (sf *serverFlow) run(ctx context.Context, o frame.Open) {
	defer sf.r.s.flows.Done()
	ctx, cancel := context.WithTimeout(ctx, sf.r.s.limits.DialTimeout)
	ctx, cut := context.WithCancelCause(ctx)
	sf.mu.Lock()
	sf.cancel = cut
	if sf.cut != frame.OK {
		cut(sf.cut.Err())
	}
	sf.mu.Unlock()
	app, code := sf.dial(ctx)
	cut(nil)
	cancel()
	if app == nil {
		sf.finish(code, frame.Ack{})
		return
	}
	if o.Network == frame.UDP {
		sf.runUDP(app)
		return
	}
	sf.tcp = flow.New(flow.Config{ID: sf.id, Epoch: o.Epoch - 1, Memory: sf.r.s.memory})
	sf.publish()
	stats := sf.tcp.Splice(app)
	state := sf.tcp.State()
	sf.count(stats)
	sf.finish(stats.Code, state)
}

// dial writes the record and connects to the app.
func (sf *serverFlow) dial(ctx context.Context) (net.Conn, frame.Code) {
	h := sf.r.s.handler
	handle, code := h.FlowOpened(ctx, sf.rec)
	if code != frame.OK {
		return nil, code
	}
	sf.mu.Lock()
	sf.rec.Handle, sf.rec.Dialled = handle, ctx.Err() == nil
	dial := sf.rec.Dialled
	sf.mu.Unlock()
	if !dial {
		return sf.notDialled(frame.CodeOf(context.Cause(ctx)))
	}
	start := time.Now()
	app, code := h.Dial(ctx, sf.rec.Tunnel, sf.rec.FlowOpen)
	sf.connect = time.Since(start)
	if code == frame.OK && app == nil {
		code = frame.Internal
	}
	if code != frame.OK {
		return sf.notDialled(code)
	}
	return app, frame.OK
}

// notDialled closes the record of a flow without an app connection.
func (sf *serverFlow) notDialled(code frame.Code) (net.Conn, frame.Code) {
	sf.closeRecord(code)
	return nil, code
}

func (sf *serverFlow) closeRecord(code frame.Code) {
	sf.mu.Lock()
	sf.rec.Ended, sf.rec.Cause = time.Now(), code
	rec := sf.rec
	sf.mu.Unlock()
	sf.r.s.handler.FlowClosed(rec)
}

func (sf *serverFlow) count(st flow.Stats) {
	sf.mu.Lock()
	sf.rec.ToApp, sf.rec.FromApp = st.ToApp, st.FromApp
	sf.mu.Unlock()
	sf.closeRecord(st.Code)
}

// publish makes the living flow known to waiting opens and to aborts that came early.
func (sf *serverFlow) publish() {
	sf.mu.Lock()
	cut := sf.cut
	close(sf.ready)
	sf.mu.Unlock()
	if cut != frame.OK {
		sf.abort(cut)
	}
	sf.r.mu.Lock()
	held := sf.tunnel.held
	sf.r.mu.Unlock()
	if held {
		sf.hold(true)
	}
	sf.armDetach()
}

// finish leaves the tombstone; for a flow that never lived it is the answer to its open.
func (sf *serverFlow) finish(code frame.Code, state frame.Ack) {
	sf.r.bury(sf.id, tombstone{at: time.Now(), code: code, state: state})
	sf.mu.Lock()
	defer sf.mu.Unlock()
	if sf.detach != nil {
		sf.detach.Stop()
	}
	select {
	case <-sf.ready:
	default:
		sf.code = code
		close(sf.ready)
	}
}

// abort cuts the flow, also one whose dial is under way.
func (sf *serverFlow) abort(code frame.Code) {
	sf.mu.Lock()
	select {
	case <-sf.ready:
		sf.mu.Unlock()
	default:
		sf.cut = code
		if sf.cancel != nil {
			sf.cancel(code.Err())
		}
		sf.mu.Unlock()
		return
	}
	switch {
	case sf.tcp != nil:
		sf.tcp.Abort(code)
	case sf.udp != nil:
		sf.udp.Abort(code)
	}
}

// ended is the client's word about a flow that has no stream: reset, or (Closed) that it
// has everything.
func (sf *serverFlow) ended(code frame.Code) {
	select {
	case <-sf.ready:
		if code == frame.Closed && sf.tcp != nil {
			sf.tcp.PeerHasAll()
			return
		}
	default:
	}
	sf.abort(resetCode(code))
}

func (sf *serverFlow) hold(on bool) {
	select {
	case <-sf.ready:
	default:
		return // publish looks at the tunnel
	}
	switch {
	case sf.tcp != nil:
		sf.tcp.Hold(on)
	case sf.udp != nil:
		sf.udp.Hold(on)
	}
}

// attach continues a flow: same device, same instance (the remote), same live grant.
func (r *remote) attach(l *line, st carrier.Stream, a frame.Attach) {
	sf, tomb, code := r.findFlow(a)
	if code != frame.OK {
		_ = st.SetWriteDeadline(time.Now().Add(controlTimeout))
		_, _ = st.Write(frame.AppendAttached(nil, frame.Attach{Flow: a.Flow, Ref: a.Ref, Epoch: a.Epoch, Code: code, State: tomb}))
		_ = st.CloseWrite()
		awaitEnd(st)
		return
	}
	attached := func(state frame.Ack) []byte {
		return frame.AppendAttached(nil, frame.Attach{Flow: a.Flow, Ref: a.Ref, Epoch: a.Epoch, State: state})
	}
	if sf.udp != nil {
		sf.serveUDP(l, st, a.Epoch, attached(frame.Ack{}))
		return
	}
	sf.serveTCP(st, a.Epoch, a.State, attached)
}

func (r *remote) findFlow(a frame.Attach) (*serverFlow, frame.Ack, frame.Code) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t, dead := r.tombs[a.Flow]; dead {
		if t.code == frame.OK {
			return nil, t.state, frame.Closed
		}
		return nil, frame.Ack{}, t.code
	}
	sf := r.flows[a.Flow]
	if sf == nil {
		return nil, frame.Ack{}, frame.Gone
	}
	t := r.tunnels[GrantRef(a.Ref)]
	if code := usable(r, t); code != frame.OK {
		return nil, frame.Ack{}, code
	}
	if sf.tunnel != t {
		return nil, frame.Ack{}, frame.GrantForeign
	}
	select {
	case <-sf.ready:
		return sf, frame.Ack{}, sf.code
	default:
		return nil, frame.Ack{}, frame.Protocol // the client attaches only what was opened
	}
}

// serveTCP puts the flow on st and reads it until the stream ends.
func (sf *serverFlow) serveTCP(st carrier.Stream, epoch uint32, peer frame.Ack, first func(frame.Ack) []byte) {
	a, err := sf.tcp.Attach(st, epoch, peer, first)
	if err != nil {
		_, _ = st.Write(frame.AppendAttached(nil, frame.Attach{Flow: sf.id, Epoch: epoch, Code: frame.CodeOf(err)}))
		_ = st.CloseWrite()
		awaitEnd(st)
		return
	}
	sf.disarmDetach()
	_ = sf.tcp.Serve(a) // a lost stream is not the end of the flow
	sf.armDetach()
}

// armDetach starts the time a flow may be without a carrier.
func (sf *serverFlow) armDetach() {
	d := sf.rec.Tunnel.DetachFor // fixed at the open; the tunnel may be presented again
	if d <= 0 {
		d = sf.r.s.limits.DetachFor
	}
	sf.mu.Lock()
	defer sf.mu.Unlock()
	if sf.detach != nil {
		sf.detach.Stop()
	}
	sf.detach = time.AfterFunc(d, func() {
		if !sf.attached() {
			sf.abort(frame.DetachedTooLong)
		}
	})
}

func (sf *serverFlow) disarmDetach() {
	sf.mu.Lock()
	defer sf.mu.Unlock()
	if sf.detach != nil {
		sf.detach.Stop()
	}
}

func (sf *serverFlow) attached() bool {
	if sf.tcp != nil {
		return sf.tcp.Attached()
	}
	return sf.line.Load() != nil
}
