package controlapi

import (
	"context"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker/push"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/ids"
)

type relayService struct{ *API }

// Watch is a relay's stream: signing keys and cuts.
func (s relayService) Watch(ctx context.Context, req *connect.Request[controlv1.WatchRequest], out *connect.ServerStream[controlv1.RelayPush]) error {
	r, err := s.relay(ctx)
	if err != nil {
		return err
	}
	stream := s.relays.Subscribe(r.ID)
	defer func() {
		stream.Close()
		s.RelaysChanged()
	}()
	s.RelaysChanged()
	w := relayWatch{API: s.API, id: r.ID, out: out}
	for {
		m, err := next(ctx, stream, 0, heartbeatEvery)
		if err != nil {
			return err
		}
		if _, err := s.relay(ctx); err != nil {
			return err
		}
		if err := w.send(ctx, m); err != nil {
			return err
		}
		if m.Has(push.Reconnect) {
			return nil
		}
		s.seen(ctx, func(ctx context.Context) error {
			return s.cfg.Registry.SeeRelay(ctx, r.ID, callerOf(ctx).addr, req.Msg.Version, s.cfg.Now())
		})
	}
}

// relayWatch is one open stream of a relay.
type relayWatch struct {
	*API
	id   ids.RelayID
	out  *connect.ServerStream[controlv1.RelayPush]
	seen uint64
	// repeated says that the relay has heard what stood before this stream.
	repeated bool
}

func (w *relayWatch) push(fill func(p *controlv1.RelayPush)) error {
	st := w.stamp()
	p := &controlv1.RelayPush{Epoch: st.epoch, Sequence: st.seq, TimeMs: st.ms}
	fill(p)
	return w.out.Send(p)
}

func (w *relayWatch) send(ctx context.Context, m push.Mark) error {
	if m.Has(push.Reconnect) {
		return w.push(func(p *controlv1.RelayPush) { p.News = &controlv1.RelayPush_Reconnect{Reconnect: w.reconnect()} })
	}
	if m.Has(push.Keys) {
		_, certs, err := w.cfg.Ring.SignerKeys()
		if err != nil {
			return err
		}
		if err := w.push(func(p *controlv1.RelayPush) {
			p.News = &controlv1.RelayPush_Keys{Keys: &controlv1.Keys{CertificatesDer: certs}}
		}); err != nil {
			return err
		}
	}
	if err := w.repeatCuts(ctx); err != nil {
		return err
	}
	return w.sendCuts()
}

// repeatCuts tells once what is durable: relay or broker may have restarted. While the
// database is away the stream goes on with what is new, and the next news tries again.
func (w *relayWatch) repeatCuts(ctx context.Context) error {
	if w.repeated {
		return nil
	}
	list, err := w.standingCuts(ctx, w.id)
	if err != nil {
		w.log.WarnContext(ctx, "earlier cuts not repeated yet", "relay", w.id, "error", err)
		return nil
	}
	w.repeated = true
	for _, c := range list {
		if err := w.sendCut(c); err != nil {
			return err
		}
	}
	return nil
}

// sendCuts repeats what the relay has not heard; a heartbeat goes out when there is none.
func (w *relayWatch) sendCuts() error {
	cuts, last := w.cuts.after(w.seen)
	w.seen = last
	for _, c := range cuts {
		if err := w.sendCut(c); err != nil {
			return err
		}
	}
	if len(cuts) == 0 {
		return w.push(func(*controlv1.RelayPush) {})
	}
	return nil
}

// sendCut sends one cut, in parts when it names many links.
func (w *relayWatch) sendCut(c cut) error {
	holders := c.holders
	for handles := c.handles[w.id]; len(handles)+len(holders) > 0; {
		n := min(len(handles), maxHandles)
		msg := &controlv1.Cut{Handles: handles[:n], Holders: holders, AtMs: c.at.UnixMilli(), Void: c.void}
		if err := w.push(func(p *controlv1.RelayPush) { p.News = &controlv1.RelayPush_Cut{Cut: msg} }); err != nil {
			return err
		}
		handles, holders = handles[n:], nil
	}
	return nil
}

// Report takes a relay's counters; they are shown, not trusted.
func (s relayService) Report(ctx context.Context, req *connect.Request[controlv1.RelayReportRequest]) (*connect.Response[controlv1.RelayReportResponse], error) {
	r, err := s.relay(ctx)
	if err != nil {
		return nil, err
	}
	s.log.DebugContext(ctx, "relay report", "relay", r.ID, "links", req.Msg.Links, "bytes", req.Msg.Bytes)
	return connect.NewResponse(&controlv1.RelayReportResponse{TimeMs: s.cfg.Now().UnixMilli()}), nil
}
