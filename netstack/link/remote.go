package link

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/peer"
	"github.com/postern-zt/postern/proto/frame"
)

// maxUnread bounds the streams of one line whose first frame has not come.
const maxUnread = 1024

// maxTombstones bounds what a peer can make us remember; the oldest goes.
const maxTombstones = 8192

// remote is one device at the connector: one identity and one client instance, with all
// its lines, micro-tunnels and flows.
type remote struct {
	s     *Server
	id    peer.Identity
	hello frame.Hello

	mu       sync.Mutex // guards the fields below
	lines    []*line
	tunnels  map[GrantRef]*tunnel
	flows    map[uint64]*serverFlow
	tombs    map[uint64]tombstone
	tombList []uint64 // oldest first
	ended    bool
	lastUsed time.Time // when the last line or grant went
}

// tombstone remembers how a flow ended.
type tombstone struct {
	at    time.Time
	code  frame.Code
	state frame.Ack
}

func newRemote(s *Server, id peer.Identity, hello frame.Hello) *remote {
	return &remote{
		s: s, id: id, hello: hello, lastUsed: time.Now(),
		tunnels: make(map[GrantRef]*tunnel), flows: make(map[uint64]*serverFlow), tombs: make(map[uint64]tombstone),
	}
}

// addLine adds l and returns the line that it replaces when there are too many: the
// oldest is the likeliest to be dead without our knowing.
func (r *remote) addLine(l *line, limit int) (surplus *line) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return l
	}
	r.lines = append(r.lines, l)
	if len(r.lines) > limit {
		surplus = r.lines[0]
		r.lines = r.lines[1:]
	}
	return surplus
}

func (r *remote) leave(l *line) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, x := range r.lines {
		if x == l {
			r.lines = append(r.lines[:i:i], r.lines[i+1:]...)
			break
		}
	}
	r.lastUsed = time.Now()
}

// idleSince is how long nothing of the peer has been left; zero while something is.
func (r *remote) idleSince(now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.lines) > 0 || len(r.flows) > 0 {
		return 0
	}
	return now.Sub(r.lastUsed)
}

func (r *remote) flowCount() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.flows)
}

// control handles one control frame of the client.
func (r *remote) control(ctx context.Context, l *line, h frame.Header, payload []byte) error {
	switch h.Type {
	case frame.TypePresent:
		return r.present(ctx, l, GrantRef(h.Value), payload)
	case frame.TypeWithdraw:
		r.withdraw(GrantRef(h.Value))
		return nil
	case frame.TypeRst:
		r.mu.Lock()
		sf := r.flows[h.Value]
		r.mu.Unlock()
		if sf != nil {
			sf.ended(h.Code)
		}
		return nil
	default:
		return unknownFrame(h)
	}
}

func resetCode(c frame.Code) frame.Code {
	if c == frame.OK {
		return frame.Reset
	}
	return c
}

// broadcast writes control frames on every line and waits, at most controlTimeout. A line
// that does not take them ends: its peer would go on in ignorance.
func (r *remote) broadcast(b []byte) {
	r.mu.Lock()
	lines := append([]*line(nil), r.lines...)
	r.mu.Unlock()
	var wg sync.WaitGroup
	for _, l := range lines {
		wg.Go(func() {
			if err := l.write(b); err != nil {
				l.kill(err)
			}
		})
	}
	wg.Wait()
}

// end cuts all flows and lines; the remote accepts nothing afterwards.
func (r *remote) end(code frame.Code) int {
	r.mu.Lock()
	r.ended = true
	lines := append([]*line(nil), r.lines...)
	flows := make([]*serverFlow, 0, len(r.flows))
	for _, sf := range r.flows {
		flows = append(flows, sf)
	}
	for _, t := range r.tunnels {
		t.closed, t.code = true, code
	}
	r.mu.Unlock()
	for _, sf := range flows {
		sf.abort(code)
	}
	for _, l := range lines {
		l.kill(fmt.Errorf("link ended: %w", code.Err()))
	}
	return len(flows)
}

// watchGrants ends a line whose peer has no live micro-tunnel for too long.
func (r *remote) watchGrants(ctx context.Context, l *line) error {
	t := time.NewTicker(r.s.limits.PresentWithin)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
			if r.unused() {
				return fmt.Errorf("%w: no grant within %s", ErrProtocol, r.s.limits.PresentWithin)
			}
		}
	}
}

func (r *remote) unused() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.tunnels {
		if !t.closed {
			return false
		}
	}
	return true
}

// acceptStreams handles every stream of the client in a goroutine of work.
func (r *remote) acceptStreams(ctx context.Context, l *line, work *sync.WaitGroup) error {
	var unread atomic.Int64
	for {
		st, err := l.c.AcceptStream(ctx)
		if err != nil {
			return fmt.Errorf("accept stream: %w", err)
		}
		if unread.Load() >= maxUnread {
			st.Abort()
			continue
		}
		unread.Add(1)
		work.Go(func() { r.stream(ctx, l, &countedStream{Stream: st, l: l}, &unread) })
	}
}

// stream reads the first frame of a stream, which says what the stream is for.
func (r *remote) stream(ctx context.Context, l *line, st carrier.Stream, unread *atomic.Int64) {
	defer st.Abort()
	_ = st.SetReadDeadline(time.Now().Add(greetTimeout)) // checked by the read
	h, payload, err := readFrame(st)
	unread.Add(-1)
	if err != nil {
		return
	}
	_ = st.SetReadDeadline(time.Time{})
	switch h.Type {
	case frame.TypeOpen:
		open, err := frame.ParseOpen(h, payload)
		if err != nil {
			r.refuseOpen(st, h.Value, codeOfParse(err))
			return
		}
		r.open(ctx, l, st, open)
	case frame.TypeAttach:
		if a, err := frame.ParseAttach(h, payload); err == nil {
			r.attach(l, st, a)
		}
	}
}

// datagrams hands UDP pieces to their flows.
func (r *remote) datagrams(ctx context.Context, l *line) error {
	for {
		b, err := l.c.ReceiveDatagram(ctx)
		if err != nil {
			return fmt.Errorf("receive datagram: %w", err)
		}
		l.heard.Add(uint64(len(b)))
		f, piece, err := frame.ParseFragment(b)
		if err != nil {
			continue // a malformed datagram is dropped like a lost one
		}
		r.mu.Lock()
		sf := r.flows[f.Flow]
		r.mu.Unlock()
		if sf != nil {
			sf.deliver(f, piece)
		}
	}
}

// bury forgets a flow and remembers its end for a while.
func (r *remote) bury(id uint64, t tombstone) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.flows, id)
	r.lastUsed = t.at
	r.tombs[id] = t
	r.tombList = append(r.tombList, id)
	for len(r.tombList) > 0 {
		first := r.tombList[0]
		if len(r.tombList) <= maxTombstones && t.at.Sub(r.tombs[first].at) <= tombstoneFor {
			return
		}
		delete(r.tombs, first)
		r.tombList = r.tombList[1:]
	}
}
