package link

import (
	"context"
	"maps"
	"time"

	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/ids"
)

// tunnel is one micro-tunnel; the remote's mu guards it.
type tunnel struct {
	MicroTunnel
	ref    GrantRef
	held   bool
	closed bool
	code   frame.Code
}

// present asks the handler and answers. A grant that was good and is refused now takes
// its flows with it.
func (r *remote) present(ctx context.Context, l *line, ref GrantRef, envelope []byte) error {
	code := r.verify(ctx, ref, envelope)
	if code != frame.OK {
		r.closeTunnel(ref, code)
	}
	return l.write(frame.AppendPresented(nil, frame.Presented{Ref: uint64(ref), Code: code, Message: messageOf(code)}))
}

// maxVerify bounds how often revocations may make us ask again.
const maxVerify = 8

// verify stores what the handler accepts. A revocation that came meanwhile may have
// missed the new micro-tunnel: then the handler is asked again.
func (r *remote) verify(ctx context.Context, ref GrantRef, envelope []byte) frame.Code {
	for range maxVerify {
		before := r.s.closes.Load()
		mt, code := r.s.handler.Present(ctx, r.id, r.hello, envelope)
		if code == frame.OK {
			code = r.accept(ref, mt)
		}
		if code != frame.OK || r.s.closes.Load() == before {
			return code
		}
	}
	return frame.NotLive
}

func messageOf(code frame.Code) string {
	if code == frame.OK {
		return ""
	}
	return code.Sentence()
}

// accept stores the micro-tunnel. A reference that named another grant before is closed first.
func (r *remote) accept(ref GrantRef, mt MicroTunnel) frame.Code {
	r.mu.Lock()
	old := r.tunnels[ref]
	r.mu.Unlock()
	if old != nil && old.Grant != mt.Grant {
		r.closeTunnel(ref, frame.Withdrawn)
	}
	held := r.s.isHeld(mt.Grant)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return frame.Superseded
	}
	if old != nil && old.Grant == mt.Grant && !old.closed {
		old.MicroTunnel = mt
		return frame.OK
	}
	if r.tunnels[ref] == nil && len(r.tunnels) >= r.s.limits.GrantsPerPeer && !r.forgetClosedLocked() {
		return frame.TooManyFlows
	}
	r.tunnels[ref] = &tunnel{MicroTunnel: mt, ref: ref, held: held}
	return frame.OK
}

// forgetClosedLocked makes room by dropping micro-tunnels that are over; r.mu is held.
func (r *remote) forgetClosedLocked() bool {
	before := len(r.tunnels)
	maps.DeleteFunc(r.tunnels, func(_ GrantRef, t *tunnel) bool { return t.closed })
	return len(r.tunnels) < before
}

// withdraw forgets a micro-tunnel on the client's wish.
func (r *remote) withdraw(ref GrantRef) {
	r.closeTunnel(ref, frame.Withdrawn)
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.tunnels, ref)
	r.lastUsed = time.Now()
}

// closeTunnel marks the micro-tunnel and cuts its flows; it returns how many.
func (r *remote) closeTunnel(ref GrantRef, code frame.Code) int {
	r.mu.Lock()
	t := r.tunnels[ref]
	if t == nil {
		r.mu.Unlock()
		return 0
	}
	t.closed, t.code = true, code
	r.lastUsed = time.Now()
	cut := r.flowsOfLocked(t)
	r.mu.Unlock()
	for _, sf := range cut {
		sf.abort(code)
	}
	return len(cut)
}

func (r *remote) flowsOfLocked(t *tunnel) []*serverFlow {
	var out []*serverFlow
	for _, sf := range r.flows {
		if sf.tunnel == t {
			out = append(out, sf)
		}
	}
	return out
}

// closeGrant is closeTunnel for every reference of the grant, and tells the client without
// waiting for it: whoever revokes has others to cut.
func (r *remote) closeGrant(g ids.GrantID, code frame.Code) int {
	n := 0
	var withdraws []byte
	for _, t := range r.tunnelsOf(g) {
		n += r.closeTunnel(t.ref, code)
		withdraws = frame.AppendWithdraw(withdraws, uint64(t.ref), code)
	}
	if withdraws != nil {
		r.s.tell(r, withdraws)
	}
	return n
}

func (r *remote) tunnelsOf(g ids.GrantID) []*tunnel {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*tunnel
	for _, t := range r.tunnels {
		if t.Grant == g && !t.closed {
			out = append(out, t)
		}
	}
	return out
}

func (r *remote) setHeld(g ids.GrantID, on bool) {
	for _, t := range r.tunnelsOf(g) {
		r.mu.Lock()
		t.held = on
		flows := r.flowsOfLocked(t)
		r.mu.Unlock()
		for _, sf := range flows {
			sf.hold(on)
		}
	}
}
