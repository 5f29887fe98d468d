package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/postern-zt/postern/netstack/relay/udpio"
	"github.com/postern-zt/postern/netstack/relay/wire"
	"github.com/postern-zt/postern/proto/ticket"
)

// sweepEvery is how often silent and expired bindings are removed.
const sweepEvery = 5 * time.Second

// ServeUDP serves the sockets until ctx ends, one reader each; several sockets may share
// one port (SO_REUSEPORT) or have different families. It closes them and returns after
// its goroutines. A socket that fails ends all: its datagrams would be lost silently.
func (r *Relay) ServeUDP(ctx context.Context, conns ...*net.UDPConn) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	loops, err := r.openLoops(conns)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for _, u := range loops {
		wg.Go(func() { cancel(u.run(ctx)) })
	}
	wg.Go(func() { r.sweepLoop(ctx) })
	<-ctx.Done()
	for _, u := range loops {
		_ = u.sock.Close() // ends its reader; there is nothing to flush
	}
	wg.Wait()
	return context.Cause(ctx)
}

func (r *Relay) openLoops(conns []*net.UDPConn) ([]*udpLoop, error) {
	loops := make([]*udpLoop, 0, len(conns))
	for _, c := range conns {
		s, err := udpio.New(c)
		if err != nil {
			return nil, fmt.Errorf("relay: %w", err)
		}
		if err := s.ReportLocal(); err != nil {
			return nil, fmt.Errorf("relay: %w", err)
		}
		loops = append(loops, &udpLoop{r: r, sock: s, in: make([]byte, udpio.MaxRead), out: make([]byte, 0, 256)})
	}
	return loops, nil
}

func (r *Relay) sweepLoop(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			r.sweep(r.cfg.Now())
		}
	}
}

// udpLoop is the reader of one socket; its fields belong to that goroutine.
type udpLoop struct {
	r       *Relay
	sock    *udpio.Socket
	in, out []byte
	scratch udpio.Scratch
}

func (u *udpLoop) run(ctx context.Context) error {
	for {
		p, err := u.sock.Read(u.in, &u.scratch)
		switch {
		case err == nil:
			u.receive(u.in[:p.N], p, u.r.cfg.Now())
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("relay udp: %w", err)
		default: // an ICMP error of an earlier send, or a passing shortage
			u.r.drops.count(DropSend)
		}
	}
}

// receive walks one super-packet: a run of datagrams with one header is handled as one.
func (u *udpLoop) receive(b []byte, p udpio.Packet, now time.Time) {
	for len(b) > 0 {
		n := wire.EqualRun(b, p.Segment)
		if reason := u.handle(b[:n], p, now); reason != OK {
			u.r.drops.count(reason)
		}
		b = b[n:]
	}
}

func (u *udpLoop) handle(b []byte, p udpio.Packet, now time.Time) Reason {
	if len(b) < wire.HeaderLen {
		return DropMalformed
	}
	switch wire.Type(b[0]) {
	case wire.TypeData:
		return u.forward(b, p, now.UnixNano())
	case wire.TypeBind, wire.TypeProve:
		return u.bind(b, p, now)
	case wire.TypePing:
		return u.ping(b, p, now)
	default:
		return DropMalformed
	}
}

// forward sends a run of datagrams to the other side of its link, header untouched.
func (u *udpLoop) forward(b []byte, p udpio.Packet, now int64) Reason {
	link := u.r.bindings.get(wire.ReadHeader(b).Handle())
	if link == nil || link.role != ticket.RoleClient {
		return DropHandle
	}
	peer := u.r.bindings.get(link.connector)
	if peer == nil || peer.role != ticket.RoleConnector {
		return DropNoPeer
	}
	if now >= link.expires.Load() || now >= peer.expires.Load() {
		return DropExpired
	}
	to, reason := u.route(link, peer, p.Source, len(b), now)
	if reason != OK {
		return reason
	}
	return sendReason(to.sock.WriteFrom(to.local, b, p.Segment, p.ECN, to.addr, &u.scratch))
}

// route finds out which side sent, from its bound address alone, and returns the other.
func (u *udpLoop) route(link, peer *binding, src netip.AddrPort, n int, now int64) (*endpoint, Reason) {
	client, connector := link.dest.Load(), peer.dest.Load()
	if client == nil || connector == nil {
		return nil, DropNoPeer
	}
	limit := u.r.cfg.Limits.BytesPerSecond
	if own := link.rate.Load(); own != 0 {
		limit = own
	}
	switch src {
	case client.addr:
		link.seen.Store(now)
		if !link.up.allow(n, limit, now) {
			return nil, DropPaced
		}
		link.usage.up.Add(uint64(n))
		return connector, OK
	case connector.addr:
		peer.seen.Store(now)
		if !link.down.allow(n, limit, now) {
			return nil, DropPaced
		}
		link.usage.down.Add(uint64(n))
		return client, OK
	default:
		return nil, DropAddress
	}
}

func sendReason(err error) Reason {
	switch {
	case err == nil:
		return OK
	case errors.Is(err, udpio.ErrTooLarge):
		return DropTooLarge
	default:
		return DropSend
	}
}
