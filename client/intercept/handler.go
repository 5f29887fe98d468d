package intercept

import (
	"context"
	"errors"
	"net/netip"
	"sync"

	"github.com/postern-zt/postern/client/resolve"
	"github.com/postern-zt/postern/client/session"
	"github.com/postern-zt/postern/netstack/flow"
	"github.com/postern-zt/postern/netstack/stack"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/frame"
)

const (
	dnsPort = 53
	// maxUDP is the largest datagram.
	maxUDP = 64 << 10
)

// handler decides what happens to the connections of programs. Every branch that is not a
// clear permission refuses.
type handler struct {
	engine   *Engine
	resolver *resolve.Server
}

var _ stack.Handler = (*handler)(nil)

// target finds the app of a destination and checks whose program asks for it.
func (h *handler) target(network string, program, dest netip.AddrPort) (*controlv1.CatalogApp, bool) {
	t := h.engine.table.Load()
	if t == nil {
		return nil, false
	}
	app := t.apps[dest.Addr()]
	if app == nil || !serves(app, network, dest.Port()) {
		return nil, false
	}
	owner, err := h.engine.cfg.Owner(network, program, dest)
	if err != nil || owner != t.owner {
		h.engine.refused.Add(1)
		h.engine.log.Debug("connection of another user refused", "app", app.Name, "error", err)
		return nil, false
	}
	return app, true
}

// HandleTCP dials first and completes the program's handshake then, so that the program
// learns what the app says.
func (h *handler) HandleTCP(ctx context.Context, held *stack.HeldTCP) {
	if t := h.engine.table.Load(); t != nil && t.isDNS(held.Local) {
		h.serveDNS(ctx, held)
		return
	}
	app, ok := h.target("tcp", held.Remote, held.Local)
	if !ok {
		_ = held.Reset() // the hold may be over
		return
	}
	f, err := h.open(ctx, held, app)
	if err != nil {
		h.refuse(held, err)
		return
	}
	conn, err := held.Complete(ctx)
	if err != nil {
		f.Abort(frame.Reset)
		return
	}
	f.Splice(conn)
}

// open gives up when the hold ends: nobody waits any more.
func (h *handler) open(ctx context.Context, held *stack.HeldTCP, app *controlv1.CatalogApp) (*flow.Flow, error) {
	ctx, cancel := context.WithDeadline(ctx, held.Deadline())
	defer cancel()
	return h.engine.cfg.Opener.OpenTCP(ctx, app.Name, held.Local.Port())
}

// refuse tells the program the truth. Its error says that the hold was over.
func (h *handler) refuse(held *stack.HeldTCP, err error) {
	h.engine.log.Debug("connection refused", "error", err)
	switch h.engine.cfg.Outcome(err) {
	case session.Unreachable:
		_ = held.Unreachable()
	case session.TimedOut:
		_ = held.Drop()
	default:
		_ = held.Reset()
	}
}

func (h *handler) serveDNS(ctx context.Context, held *stack.HeldTCP) {
	conn, err := held.Complete(ctx)
	if err != nil {
		return
	}
	_ = h.resolver.ServeTCP(ctx, conn) // it closes conn; a bad question is the asker's error
}

// HandleUDP serves our resolver's address, or joins the association with the app.
func (h *handler) HandleUDP(ctx context.Context, u *stack.UDPFlow) {
	if t := h.engine.table.Load(); t != nil && t.isDNS(u.Local) {
		h.answerDNS(ctx, u)
		return
	}
	app, ok := h.target("udp", u.Remote, u.Local)
	if !ok {
		_ = u.Refuse() // the hold may be over
		return
	}
	p, err := h.openUDP(ctx, u, app)
	if err != nil {
		h.refuseUDP(u, err)
		return
	}
	defer p.Close()
	if err := u.Accept(); err != nil {
		return
	}
	h.join(ctx, u, p)
}

// openUDP gives up when the association ends: its hold is over.
func (h *handler) openUDP(ctx context.Context, u *stack.UDPFlow, app *controlv1.CatalogApp) (*flow.Packets, error) {
	ctx, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel()
	watch.Go(func() {
		select {
		case <-u.Done():
			cancel()
		case <-ctx.Done():
		}
	})
	return h.engine.cfg.Opener.OpenUDP(ctx, app.Name, u.Local.Port())
}

func (h *handler) refuseUDP(u *stack.UDPFlow, err error) {
	h.engine.log.Debug("association refused", "error", err)
	switch h.engine.cfg.Outcome(err) {
	case session.Refused:
		_ = u.Refuse()
	case session.Unreachable, session.TimedOut:
		_ = u.Unreachable()
	default:
		_ = u.Prohibited()
	}
}

// join copies datagrams until either side ends. An end by the connector reaches the
// program as ICMP, not as silence.
func (h *handler) join(ctx context.Context, u *stack.UDPFlow, p *flow.Packets) {
	var back sync.WaitGroup
	back.Go(func() { h.fromApp(u, p) })
	buf := make([]byte, maxUDP)
	for {
		n, err := u.ReadPacket(ctx, buf)
		if err != nil {
			break
		}
		if _, err := p.Write(buf[:n]); err != nil {
			break
		}
	}
	_ = p.Close()
	back.Wait()
}

func (h *handler) fromApp(u *stack.UDPFlow, p *flow.Packets) {
	buf := make([]byte, maxUDP)
	for {
		n, err := p.Read(buf)
		if err != nil {
			break
		}
		if u.WritePacket(buf[:n]) != nil {
			break
		}
	}
	if err := p.Err(); err != nil && !idle(err) {
		h.refuseUDP(u, err)
		return
	}
	_ = u.Close()
}

func idle(err error) bool {
	refusal, ok := errors.AsType[*frame.Error](err)
	return ok && refusal.Code == frame.Idle
}

// answerDNS serves whoever asks: the system's resolver asks for everybody, and names of
// apps are no secret on this host.
func (h *handler) answerDNS(ctx context.Context, u *stack.UDPFlow) {
	if u.Accept() != nil {
		return
	}
	defer u.Close()
	var answers sync.WaitGroup
	defer answers.Wait()
	slots := make(chan struct{}, maxQuestions)
	buf := make([]byte, maxUDP)
	for {
		n, err := u.ReadPacket(ctx, buf)
		if err != nil {
			return
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		question := append([]byte(nil), buf[:n]...)
		answers.Go(func() {
			defer func() { <-slots }()
			if a, err := h.resolver.Answer(ctx, question, resolve.UDP); err == nil {
				_ = u.WritePacket(a) // the asker may be gone
			}
		})
	}
}

// maxQuestions bounds the questions of one asker that wait for an upstream.
const maxQuestions = 64

// HandleEcho answers a ping of a published app that the user may use.
func (h *handler) HandleEcho(_ context.Context, echo *stack.Echo) {
	t := h.engine.table.Load()
	if t == nil {
		return
	}
	switch app := t.apps[echo.Local]; {
	case app == nil && (echo.Local == t.dns.V4 || echo.Local == t.dns.V6):
		echo.Reply()
	case app == nil:
		echo.Unreachable()
	case app.Allowed:
		echo.Reply()
	default:
		echo.Prohibited()
	}
}
