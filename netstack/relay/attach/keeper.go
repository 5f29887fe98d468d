package attach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/postern-zt/postern/netstack/relay/udpio"
	"github.com/postern-zt/postern/netstack/relay/wire"
	"github.com/postern-zt/postern/proto/ticket"
)

const (
	// keepEvery is the pause between pings: NATs forget UDP after 30 s at the earliest.
	keepEvery = 10 * time.Second
	// keepConnector is the same for a connector: a relay that restarted cannot ring it, so
	// it looks more often than NATs would need.
	keepConnector = 3 * time.Second
	// suspectAfter sending without hearing anything a ping asks whether the mapping still
	// stands (relay restarted, NAT mapped anew).
	suspectAfter = 500 * time.Millisecond
	// pongTimeout (or twice the last round trip) and pongTries: how long until an
	// unanswered ping means a new binding. QUIC's own probes back off meanwhile, so a
	// stall lasts up to twice as long as it takes to notice.
	pongTimeout = 250 * time.Millisecond
	pongTries   = 3
	// bindRetry is the first pause before a bind datagram is repeated; it doubles.
	bindRetry    = 250 * time.Millisecond
	bindRetryMax = 2 * time.Second
	// bindPauseMax bounds the pause between attempts: a relay that comes back is noticed
	// soon, and an attempt costs it nothing until it answers.
	bindPauseMax = 5 * time.Second
	// bindTimeout bounds one attempt to bind; after it tickets are asked for again.
	bindTimeout = 10 * time.Second
	// maxCandidates bounds the relay's addresses that are tried at the same time.
	maxCandidates = 6
)

// ErrNoAnswer says that the relay did not answer over UDP: it is down, the network blocks
// UDP, or the ticket does not hold. A relay does not tell strangers which.
var ErrNoAnswer = errors.New("relay does not answer over UDP")

// keeper is the part of a binding that asks for the mapping and watches it. Its fields
// belong to the goroutine of run, before that to BindUDP.
type keeper struct {
	b       *Binding
	ticket  Ticket
	counter uint64
	scratch udpio.Scratch
	out     []byte
}

// run watches the mapping until ctx ends.
func (k *keeper) run(ctx context.Context) {
	wait := bindRetry
	for ctx.Err() == nil {
		k.watch(ctx)
		for ctx.Err() == nil {
			err := k.renew(ctx)
			if err == nil {
				wait = bindRetry
				break
			}
			if ctx.Err() == nil {
				k.b.log.Warn("binding at the relay failed", "error", err, "retry_in", wait)
			}
			k.b.rest(ctx, jitter(wait))
			wait = min(wait*2, bindPauseMax)
		}
	}
}

// rest waits, unless somebody knows that the network has changed.
func (b *Binding) rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-b.nudge:
	case <-t.C:
	}
}

// renew fetches a ticket and binds under it; a provider that has none leaves the old one
// in use for as long as it lasts.
func (k *keeper) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bindTimeout)
	defer cancel()
	t, err := k.b.tickets(ctx)
	switch {
	case err == nil && t.Handle == k.b.handle:
		k.ticket = t
	case err == nil:
		return errors.New("new relay ticket is for another handle")
	case !k.b.cfg.now().Before(k.ticket.Expires):
		return fmt.Errorf("get relay ticket: %w", err)
	}
	return k.bind(ctx)
}

// bind runs bind, cookie, prove, bound with repetition until ctx ends or bindTimeout.
func (k *keeper) bind(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bindTimeout)
	defer cancel()
	to, err := k.candidates(ctx)
	if err != nil {
		return err
	}
	for wait := bindRetry; ; wait = min(wait*2, bindRetryMax) {
		k.counter = max(k.counter+1, uint64(time.Now().UnixMicro()))
		k.send(wire.AppendBind(k.out[:0], k.ticket.Handle, k.counter, nil, k.ticket.Sealed, k.ticket.MACKey), to...)
		bound, err := k.settle(ctx, wait)
		if bound || err != nil {
			return err
		}
	}
}

// settle answers cookies until the relay confirms or the wait is over.
func (k *keeper) settle(ctx context.Context, wait time.Duration) (bool, error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false, ErrNoAnswer
		case <-timer.C:
			return false, nil
		case m := <-k.b.control:
			if k.onBind(m) {
				return true, nil
			}
		}
	}
}

// onBind handles one answer while binding; true when the mapping stands.
func (k *keeper) onBind(m controlMessage) bool {
	p := m.b[:m.n]
	switch wire.ReadHeader(p).Type() {
	case wire.TypeCookie:
		counter, cookie, err := wire.ParseCookie(p)
		if err == nil && counter == k.counter {
			k.send(wire.AppendBind(k.out[:0], k.ticket.Handle, k.counter, cookie, k.ticket.Sealed, k.ticket.MACKey), m.from)
		}
	case wire.TypeBound:
		counter, err := wire.ParseProven(p, k.ticket.MACKey)
		if err == nil && counter == k.counter {
			k.b.relay.Store(&m.from)
			k.b.received.Store(time.Now().UnixNano())
			return true
		}
	}
	return false
}

// candidates resolves the relay's addresses; those of a family that the socket does not
// have fail when sent to, which costs nothing.
func (k *keeper) candidates(ctx context.Context) ([]netip.AddrPort, error) {
	var out []netip.AddrPort
	var errs []error
	for _, hostport := range k.b.cfg.Relay.UDP {
		found, err := resolve(ctx, hostport)
		out, errs = append(out, found...), append(errs, err)
	}
	if len(out) == 0 {
		return nil, errors.Join(append(errs, ErrAddress)...)
	}
	return out[:min(len(out), maxCandidates)], nil
}

func resolve(ctx context.Context, hostport string) ([]netip.AddrPort, error) {
	if ap, err := netip.ParseAddrPort(hostport); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())}, nil
	}
	host, service, err := net.SplitHostPort(hostport)
	if err != nil {
		return nil, fmt.Errorf("relay address: %w", err)
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "udp", service)
	if err != nil {
		return nil, fmt.Errorf("relay port: %w", err)
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("relay name: %w", err)
	}
	var out []netip.AddrPort
	for _, a := range addrs {
		out = append(out, netip.AddrPortFrom(a.Unmap(), uint16(port)))
	}
	return out, nil
}

// send writes one datagram to each address. An address that cannot be reached now shows
// as a missing answer.
func (k *keeper) send(p []byte, to ...netip.AddrPort) {
	k.out = p
	for _, a := range to {
		_ = k.b.sock.Write(p, 0, 0, a, &k.scratch)
	}
}

// watch returns when the mapping has to be made again: no pong, a nudge, or the ticket
// near its end.
func (k *keeper) watch(ctx context.Context) {
	life := k.ticket.Expires.Sub(k.b.cfg.now())
	renew := time.NewTimer(max(life-renewBefore, life/2, time.Second))
	defer renew.Stop()
	look := time.NewTicker(pongTimeout)
	defer look.Stop()
	p := prober{pinged: time.Now(), every: keepEvery}
	if k.ticket.Role == ticket.RoleConnector {
		p.every = keepConnector
	}
	p.next = jitter(p.every)
	for {
		select {
		case <-ctx.Done():
			return
		case <-renew.C:
			return
		case <-k.b.nudge:
			return
		case m := <-k.b.control:
			p.heard(k, m)
		case now := <-look.C:
			if !p.look(k, now) {
				k.b.log.Info("relay lost our binding")
				return
			}
		}
	}
}

// prober decides when to ping and when to give up.
type prober struct {
	every   time.Duration
	next    time.Duration // pause until the next ping
	counter uint64        // of the ping that waits for its pong, 0: none
	first   time.Time     // when it was sent
	pinged  time.Time     // when it was sent last
	tries   int
	rtt     time.Duration
}

// heard takes note of a pong for the ping that is out.
func (p *prober) heard(k *keeper, m controlMessage) {
	counter, err := wire.ParseProven(m.b[:m.n], k.ticket.MACKey)
	if err != nil || counter != p.counter || wire.ReadHeader(m.b[:]).Type() != wire.TypePong {
		return
	}
	now := time.Now()
	p.rtt = now.Sub(p.first)
	p.counter, p.tries, p.next = 0, 0, jitter(p.every)
	k.b.received.Store(now.UnixNano())
}

// look pings when it is time; false when the relay has not answered often enough.
func (p *prober) look(k *keeper, now time.Time) bool {
	since := now.Sub(p.pinged)
	switch {
	case p.counter != 0 && since < max(pongTimeout, 2*p.rtt): // the pong may be under way
	case p.counter != 0 && p.tries >= pongTries:
		return false
	case p.counter != 0, since >= p.next, k.b.silent(now) && since >= suspectAfter:
		p.ping(k, now)
	}
	return true
}

func (p *prober) ping(k *keeper, now time.Time) {
	if p.counter == 0 {
		k.counter = max(k.counter+1, uint64(now.UnixMicro()))
		p.counter, p.first = k.counter, now
	}
	p.pinged = now
	p.tries++
	k.send(wire.AppendPing(k.out[:0], wire.TypePing, k.ticket.Handle, p.counter, k.ticket.MACKey), k.b.Relay())
}

// silent reports that we have been sending into silence.
func (b *Binding) silent(now time.Time) bool {
	heard := time.Unix(0, b.received.Load())
	return time.Unix(0, b.sent.Load()).After(heard) && now.Sub(heard) > suspectAfter
}
