package controlapi

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/push"
	"github.com/postern-zt/postern/broker/registry"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/ids"
)

// counter numbers the pushes of this broker.
type counter struct{ n atomic.Uint64 }

func (c *counter) next() uint64 { return c.n.Add(1) }

// stamp is the head of every push.
type stamp struct {
	epoch, seq uint64
	ms         int64
}

func (a *API) stamp() stamp {
	return stamp{epoch: a.cfg.Epoch(), seq: a.seq.next(), ms: a.cfg.Now().UnixMilli()}
}

// next waits for marks on a stream; a period without any gives the mark idle.
func next[K comparable](ctx context.Context, s *push.Stream[K], idle push.Mark, every time.Duration) (push.Mark, error) {
	waited, cancel := context.WithTimeout(ctx, every)
	defer cancel()
	m, err := s.Next(waited)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return idle, nil
	}
	return m, err
}

// reconnect tells a caller to come back, spread over a window scaled to the fleet (rule 32).
func (a *API) reconnect() *controlv1.Reconnect {
	fleet := len(a.devices.Keys()) + len(a.connectors.Keys())
	spread := min(max(500, int64(fleet)*5), 300_000)
	return &controlv1.Reconnect{AfterMs: 200, SpreadMs: spread}
}

// seenTimeout bounds the note that a caller was seen.
const seenTimeout = 500 * time.Millisecond

// seen notes that a caller was seen. A store that does not take it keeps nobody from the
// stream: revocations travel on it, and they never wait for the disk.
func (a *API) seen(ctx context.Context, note func(context.Context) error) {
	bounded, cancel := context.WithTimeout(ctx, seenTimeout)
	defer cancel()
	if err := note(bounded); err != nil && ctx.Err() == nil {
		a.log.WarnContext(ctx, "caller seen but not noted", "error", err)
	}
}

// Watch is a device's stream.
func (s deviceService) Watch(ctx context.Context, req *connect.Request[controlv1.WatchRequest], out *connect.ServerStream[controlv1.DevicePush]) error {
	d, err := s.device(ctx)
	if err != nil {
		return err
	}
	s.seen(ctx, func(ctx context.Context) error {
		return s.cfg.Registry.SeeDevice(ctx, d.ID, callerOf(ctx).addr, req.Msg.Version, s.cfg.Now())
	})
	if ses, err := s.session(ctx, d); err == nil {
		s.moved(ctx, ses)
	}
	stream := s.devices.Subscribe(d.ID)
	defer stream.Close()
	w := deviceWatch{API: s.API, device: d, out: out, given: newGiven(), heads: newHeads(req.Msg)}
	defer s.watchers.enter(d.ID, w.given)()
	for {
		m, err := next(ctx, stream, 0, heartbeatEvery)
		if err != nil {
			return err
		}
		if w.device, err = s.device(ctx); err != nil {
			return err
		}
		if err := w.send(ctx, m); err != nil {
			return err
		}
		if m.Has(push.Reconnect) {
			return nil
		}
		if err := w.sendHeads(ctx); err != nil {
			return err
		}
	}
}

// deviceWatch is one open stream of a device.
type deviceWatch struct {
	*API
	device registry.Device
	out    *connect.ServerStream[controlv1.DevicePush]
	given  *given
	heads  *heads
}

func (w *deviceWatch) push(fill func(p *controlv1.DevicePush)) error {
	st := w.stamp()
	p := &controlv1.DevicePush{Epoch: st.epoch, Sequence: st.seq, TimeMs: st.ms}
	fill(p)
	return w.out.Send(p)
}

func (w *deviceWatch) send(ctx context.Context, m push.Mark) error {
	if m == 0 {
		return w.push(func(*controlv1.DevicePush) {})
	}
	if m.Has(push.Reconnect) {
		return w.push(func(p *controlv1.DevicePush) { p.News = &controlv1.DevicePush_Reconnect{Reconnect: w.reconnect()} })
	}
	if err := w.sendEnded(); err != nil {
		return err
	}
	if m&push.Session != 0 {
		if err := w.sendSession(ctx); err != nil {
			return err
		}
	}
	if m&(push.Catalog|push.Session) == 0 {
		return nil
	}
	cat, err := w.catalogFor(ctx, w.device)
	if err != nil {
		return err
	}
	if err := w.push(func(p *controlv1.DevicePush) { p.News = &controlv1.DevicePush_Catalog{Catalog: cat} }); err != nil {
		return err
	}
	return w.push(func(p *controlv1.DevicePush) {
		p.News = &controlv1.DevicePush_Denials{Denials: &controlv1.Denials{Forget: true}}
	})
}

// sendHeads tells what is to be remembered of the audit, when it is time.
func (w *deviceWatch) sendHeads(ctx context.Context) error {
	h := w.dueHeads(ctx, w.heads)
	if h == nil {
		return nil
	}
	return w.push(func(p *controlv1.DevicePush) { p.News = &controlv1.DevicePush_Audit{Audit: h} })
}

func (w *deviceWatch) sendSession(ctx context.Context) error {
	news := &controlv1.SessionNews{State: "live"}
	ses, err := w.session(ctx, w.device)
	if err != nil {
		news.State, news.Reason = "ended", "Nobody is signed in on this device."
	} else {
		news.Session = w.sessionView(ctx, ses)
	}
	return w.push(func(p *controlv1.DevicePush) { p.News = &controlv1.DevicePush_Session{Session: news} })
}

// sendEnded tells which grants have ended since the last time, each with its receipt.
func (w *deviceWatch) sendEnded() error {
	for _, id := range w.given.ended(w.liveGrants) {
		ended := &controlv1.GrantsEnded{GrantIds: []string{string(id)}}
		if why, ok := w.cfg.Authorize.WhyEnded(id); ok && why.Record.Receipt != "" {
			ended.Receipt = w.receipt(why.Record, why.Grant.AppName)
		}
		if err := w.push(func(p *controlv1.DevicePush) { p.News = &controlv1.DevicePush_Ended{Ended: ended} }); err != nil {
			return err
		}
	}
	return nil
}

func (w *deviceWatch) liveGrants() (out []ids.GrantID) {
	for _, g := range w.cfg.Ledger.Matching(grants.Device(w.device.Identity.Key)) {
		out = append(out, g.ID)
	}
	return out
}

// ulaPrefix is the org's IPv6 prefix, derived from the CA key so that all brokers and all
// clients agree (RFC 4193 section 3.2 asks for 40 random bits).
func ulaPrefix(pin ids.KeyID) string {
	a := netip.AddrFrom16([16]byte{0xfd, pin[0], pin[1], pin[2], pin[3], pin[4]})
	return netip.PrefixFrom(a, 48).String()
}

// ipv4Candidates are the prefixes that a client may choose from, first that collides with
// nothing: benchmarking range (RFC 2544), class E stays out, then parts of RFC 6598 and
// RFC 1918 that are rarely used.
func ipv4Candidates() []string {
	return []string{"198.18.0.0/16", "198.19.0.0/16", "100.127.0.0/16", "172.31.128.0/17", "10.255.0.0/16"}
}

// splitProtocol reads the "/udp" or "/tcp" at the end of a target.
func splitProtocol(target string) (string, catalog.Protocol) {
	if rest, ok := cutSuffix(target, "/udp"); ok {
		return rest, catalog.UDP
	}
	if rest, ok := cutSuffix(target, "/tcp+udp"); ok {
		return rest, catalog.Both
	}
	rest, _ := cutSuffix(target, "/tcp")
	return rest, catalog.TCP
}

func cutSuffix(s, suffix string) (string, bool) {
	if len(s) > len(suffix) && s[len(s)-len(suffix):] == suffix {
		return s[:len(s)-len(suffix)], true
	}
	return s, false
}

// maxCuts bounds what a relay that was away is told again.
const maxCuts = 4096

// cutLog keeps the newest cuts for relays of their own process.
type cutLog struct {
	mu   sync.Mutex // guards all below
	last uint64
	list []cut
}

type cut struct {
	seq     uint64
	handles map[ids.RelayID][]uint64
	holders [][]byte
	at      time.Time
	// void says that the tickets of the handles of before at are void.
	void bool
}

func newCutLog() *cutLog { return &cutLog{} }

func (l *cutLog) add(c cut) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	c.seq = l.last
	l.list = append(l.list, c)
	if len(l.list) > maxCuts {
		l.list = l.list[len(l.list)-maxCuts:]
	}
}

// after returns the cuts behind a sequence and the newest sequence.
func (l *cutLog) after(seq uint64) ([]cut, uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []cut
	for _, c := range l.list {
		if c.seq > seq {
			out = append(out, c)
		}
	}
	return out, l.last
}
