package attach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-zt/postern/netstack/relay/udpio"
	"github.com/postern-zt/postern/netstack/relay/wire"
	"github.com/postern-zt/postern/proto/ticket"
)

const (
	// controlLen is more than any control datagram of a relay.
	controlLen = 64
	// controlQueue holds answers while the keeper is busy; a lost one is asked for again.
	controlQueue = 16
)

// ErrClosed is the error of a Binding or Path that has been closed.
var ErrClosed = fmt.Errorf("relay binding: %w", net.ErrClosed)

// Binding is one UDP socket bound at one relay under one handle: a client's link, or all
// links of a connector. It keeps the mapping alive and binds again by itself when the
// relay forgot it, the network changed or the ticket nears its end; paths live on.
type Binding struct {
	cfg     Config
	tickets Tickets
	log     *slog.Logger
	sock    *udpio.Socket
	role    ticket.Role
	handle  ticket.Handle

	relay    atomic.Pointer[netip.AddrPort]
	received atomic.Int64 // Unix nanoseconds of the last datagram from the relay
	sent     atomic.Int64 // Unix nanoseconds of the last datagram that we sent
	dropped  atomic.Uint64

	control chan controlMessage
	nudge   chan struct{}
	paths   *pathSet
	cancel  context.CancelFunc
	done    chan struct{}
}

// controlMessage is a copy of an answer of the relay.
type controlMessage struct {
	from netip.AddrPort
	n    int
	b    [controlLen]byte
}

// BindUDP binds socket, which it takes over in every case, and returns once the relay has
// confirmed or ctx has ended. The binding lives until Close.
func BindUDP(ctx context.Context, cfg Config, socket *net.UDPConn, tickets Tickets) (*Binding, error) {
	b, first, err := newBinding(ctx, cfg, socket, tickets)
	if err != nil {
		_ = socket.Close()
		return nil, err
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	b.cancel = cancel
	var wg sync.WaitGroup
	wg.Go(func() { b.read(life) })
	k := &keeper{b: b, ticket: first}
	err = k.bind(ctx)
	if err != nil {
		cancel()
		_ = b.sock.Close()
		wg.Wait()
		return nil, fmt.Errorf("bind at relay %s: %w", cfg.Relay.ID, err)
	}
	wg.Go(func() { k.run(life) })
	go func() { wg.Wait(); close(b.done) }() // Close waits for done
	return b, nil
}

func newBinding(ctx context.Context, cfg Config, socket *net.UDPConn, tickets Tickets) (*Binding, Ticket, error) {
	if cfg.Log == nil {
		return nil, Ticket{}, errors.New("attach: no logger")
	}
	t, err := tickets(ctx)
	if err != nil {
		return nil, Ticket{}, fmt.Errorf("get relay ticket: %w", err)
	}
	sock, err := udpio.New(socket)
	if err != nil {
		return nil, Ticket{}, err
	}
	b := &Binding{cfg: cfg, tickets: tickets, sock: sock, role: t.Role, handle: t.Handle,
		log:     cfg.Log.With("component", "attach", "relay", cfg.Relay.ID),
		control: make(chan controlMessage, controlQueue), nudge: make(chan struct{}, 1), done: make(chan struct{})}
	b.paths = newPathSet(b)
	return b, t, nil
}

// Path returns the packets of one link; a client uses it with its own handle. The path
// must be read from or closed.
func (b *Binding) Path(link ticket.Handle) (*Path, error) { return b.paths.open(link) }

// Accept waits for a link that the relay sends for the first time (connectors).
func (b *Binding) Accept(ctx context.Context) (*Path, error) {
	select {
	case p := <-b.paths.fresh:
		return p, nil
	case <-b.done:
		return nil, ErrClosed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Rebind asks for a new mapping at once, because the network has changed.
func (b *Binding) Rebind() {
	select {
	case b.nudge <- struct{}{}:
	default: // one is asked for already
	}
}

// Relay returns the relay's address in use.
func (b *Binding) Relay() netip.AddrPort {
	if a := b.relay.Load(); a != nil {
		return *a
	}
	return netip.AddrPort{}
}

// Dropped counts datagrams that came for no path or a full one.
func (b *Binding) Dropped() uint64 { return b.dropped.Load() }

// Done is closed when the binding has ended.
func (b *Binding) Done() <-chan struct{} { return b.done }

// Close ends the binding and its paths and waits for its goroutines. It is safe twice.
func (b *Binding) Close() error {
	b.cancel()
	_ = b.sock.Close() // ends the reader
	b.paths.closeAll()
	<-b.done
	return nil
}

// read is the only reader of the socket: it hands answers to the keeper and packets to
// the paths.
func (b *Binding) read(ctx context.Context) {
	defer b.paths.closeAll()
	var scratch udpio.Scratch
	buf := getBuffer()
	defer func() { putBuffer(buf) }()
	for {
		p, err := b.sock.Read(buf.b[:], &scratch)
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			return
		}
		if err != nil { // the error of an earlier send, shown once
			continue
		}
		if b.receive(ctx, buf, p) {
			buf = getBuffer()
		}
	}
}

// receive handles one super-packet and reports whether the buffer went with it.
func (b *Binding) receive(ctx context.Context, buf *buffer, p udpio.Packet) (gone bool) {
	if p.N < wire.HeaderLen {
		return false
	}
	from := netip.AddrPortFrom(p.Source.Addr().Unmap(), p.Source.Port())
	if wire.Type(buf.b[0]) != wire.TypeData {
		b.answer(buf.b[:min(p.N, p.Segment)], from)
		return false
	}
	if at := b.relay.Load(); at == nil || *at != from {
		b.dropped.Add(1)
		return false
	}
	b.received.Store(time.Now().UnixNano())
	return b.paths.deliver(ctx, buf, p)
}

func (b *Binding) answer(p []byte, from netip.AddrPort) {
	if len(p) > controlLen || wire.ReadHeader(p).Handle() != b.handle {
		b.dropped.Add(1)
		return
	}
	m := controlMessage{from: from}
	m.n = copy(m.b[:], p)
	select {
	case b.control <- m:
	default:
		b.dropped.Add(1)
	}
}

// write sends super-packets to the relay.
func (b *Binding) write(p []byte, segment int, ecn byte, x *udpio.Scratch) error {
	at := b.relay.Load()
	if at == nil {
		return ErrClosed
	}
	b.sent.Store(time.Now().UnixNano())
	return b.sock.Write(p, segment, ecn, *at, x)
}

// Handle returns the handle that is bound.
func (b *Binding) Handle() ticket.Handle { return b.handle }
