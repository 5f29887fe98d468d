package stack_test

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-zt/postern/netstack/packet"
	"github.com/postern-zt/postern/netstack/stack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	app     = netip.MustParseAddrPort("100.96.1.0:80")
	program = netip.MustParseAddr("100.96.0.1")
	inside  = []netip.Prefix{netip.MustParsePrefix("100.96.0.0/16")}
)

// patience bounds what must happen soon; nothing is measured with it.
const patience = 10 * time.Second

// wire is a Device whose other side is the test.
type wire struct {
	in, out chan []byte
	closed  chan struct{}
	once    sync.Once
}

func newWire() *wire {
	return &wire{in: make(chan []byte), out: make(chan []byte, 10000), closed: make(chan struct{})}
}

func (w *wire) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case b := <-w.in:
		sizes[0] = copy(bufs[0][offset:], b)
		return 1, nil
	case <-w.closed:
		return 0, os.ErrClosed
	}
}

func (w *wire) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		w.out <- append([]byte(nil), b[offset:]...)
	}
	return len(bufs), nil
}

func (w *wire) MTU() (int, error) { return 65000, nil }
func (w *wire) BatchSize() int    { return 1 }
func (w *wire) Close() error      { w.once.Do(func() { close(w.closed) }); return nil }

// calls collects what the stack asks; a test decides in its own goroutine.
type calls struct {
	tcp  chan *stack.HeldTCP
	udp  chan *stack.UDPFlow
	echo chan *stack.Echo
}

func (c *calls) HandleTCP(ctx context.Context, h *stack.HeldTCP) {
	c.tcp <- h
	select {
	case <-h.Done():
	case <-ctx.Done():
	}
}

func (c *calls) HandleUDP(ctx context.Context, f *stack.UDPFlow) {
	c.udp <- f
	select {
	case <-f.Done():
	case <-ctx.Done():
	}
}

func (c *calls) HandleEcho(_ context.Context, e *stack.Echo) { c.echo <- e }

type fixture struct {
	t     *testing.T
	wire  *wire
	calls *calls
	stack *stack.Stack
}

func newFixture(t *testing.T, limits stack.Limits, times stack.Times) *fixture {
	t.Helper()
	c := &calls{make(chan *stack.HeldTCP, 10000), make(chan *stack.UDPFlow, 10000), make(chan *stack.Echo, 100)}
	w := newWire()
	s, err := stack.New(stack.Config{
		Device: w, Handler: c, Prefixes: inside, Log: slog.New(slog.DiscardHandler), Limits: limits, Times: times,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run() = %v", err)
		}
	})
	return &fixture{t, w, c, s}
}

// syn sends a SYN from the given port of the program.
func (f *fixture) syn(port uint16, to netip.AddrPort) {
	f.wire.in <- synPacket(netip.AddrPortFrom(program, port), to)
}

func synPacket(src, dst netip.AddrPort) []byte {
	b := packet.AppendUDP(nil, src, dst, make([]byte, 12)) // 8 + 12 bytes: a TCP header
	t := b[20:]
	clear(t[4:])
	binary.BigEndian.PutUint32(t[4:], 1000)
	t[12], t[13] = 5<<4, packet.FlagSYN
	binary.BigEndian.PutUint16(t[14:], 65535)
	b[9] = byte(packet.ProtoTCP)
	fixHeaderSum(b)
	return b
}

// fixHeaderSum computes the checksum of the IPv4 header; that of the transport is
// taken as right by the stack.
func fixHeaderSum(b []byte) {
	binary.BigEndian.PutUint16(b[10:], 0)
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum+sum>>16))
}

func (f *fixture) datagram(port uint16, to netip.AddrPort, payload string) {
	f.wire.in <- packet.AppendUDP(nil, netip.AddrPortFrom(program, port), to, []byte(payload))
}

// settle returns when the stack has taken everything that was sent: packets are
// handled in order, and this one shows.
func (f *fixture) settle() {
	f.t.Helper()
	request := []byte{8, 0, 0, 0, 0, 1, 0, 1}
	b := packet.AppendEchoReply(nil, app.Addr(), program, request)
	b[20] = 8
	f.wire.in <- b
	receive(f.t, f.calls.echo)
}

func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(patience):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

// answer reads the next packet that the program gets.
func (f *fixture) answer() packet.Parsed {
	f.t.Helper()
	var p packet.Parsed
	if err := p.Decode(receive(f.t, f.wire.out)); err != nil {
		f.t.Fatal(err)
	}
	return p
}

func (f *fixture) wantSilence() {
	f.t.Helper()
	f.settle()
	if n := len(f.wire.out); n != 0 {
		f.t.Errorf("program got %d packets, want silence", n)
	}
}

func TestHeldLimits(t *testing.T) {
	for _, c := range []struct {
		name   string
		limits stack.Limits
		apps   int
		want   int
	}{
		{"per app", stack.Limits{}, 1, 256},
		{"per app, two apps", stack.Limits{}, 2, 300},
		{"all", stack.Limits{Held: 100}, 2, 100},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t, c.limits, stack.Times{})
			for i := range 300 {
				to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{100, 96, 1, byte(i % c.apps)}), 80)
				f.syn(uint16(20000+i), to)
			}
			f.settle()
			for range c.want {
				receive(t, f.calls.tcp)
			}
			if got := f.stack.Drops().Limited; got != uint64(300-c.want) {
				t.Errorf("limited = %d, want %d", got, 300-c.want)
			}
			f.wantSilence()
		})
	}
}

func TestLimitsAreGivenBack(t *testing.T) {
	f := newFixture(t, stack.Limits{Held: 1}, stack.Times{Remember: time.Nanosecond})
	for i := range 20 {
		f.syn(uint16(20000+i), app)
		if err := receive(t, f.calls.tcp).Reset(); err != nil {
			t.Fatal(err)
		}
		f.answer()
	}
}

func TestRepeatedSYNDoesNotAskTwice(t *testing.T) {
	f := newFixture(t, stack.Limits{}, stack.Times{})
	for range 5 {
		f.syn(20000, app)
	}
	f.settle()
	receive(t, f.calls.tcp)
	if n := len(f.calls.tcp); n != 0 {
		t.Errorf("handler was asked %d times more", n)
	}
}

func TestResetAnswersRepetitions(t *testing.T) {
	f := newFixture(t, stack.Limits{}, stack.Times{})
	f.syn(20000, app)
	held := receive(t, f.calls.tcp)
	if err := held.Reset(); err != nil {
		t.Fatal(err)
	}
	f.syn(20000, app)
	for range 2 {
		p := f.answer()
		if p.TCPFlags != packet.FlagRST|packet.FlagACK || p.Src != app || binary.BigEndian.Uint32(p.Transport[8:]) != 1001 {
			t.Errorf("answer = %+v, want RST with acknowledgement 1001", p)
		}
	}
	if err := held.Unreachable(); !errors.Is(err, stack.ErrDecided) {
		t.Errorf("second verdict = %v, want ErrDecided", err)
	}
	if n := len(f.calls.tcp); n != 0 {
		t.Errorf("handler was asked %d times more", n)
	}
}

func TestForgottenVerdictAsksAgain(t *testing.T) {
	f := newFixture(t, stack.Limits{}, stack.Times{Remember: time.Nanosecond})
	for range 2 {
		f.syn(20000, app)
		if err := receive(t, f.calls.tcp).Unreachable(); err != nil {
			t.Fatal(err)
		}
		if p := f.answer(); p.ICMPType != 3 || p.ICMPCode != 1 {
			t.Errorf("answer = %+v, want host unreachable", p)
		}
	}
}

func TestHoldTimeEndsInSilence(t *testing.T) {
	f := newFixture(t, stack.Limits{}, stack.Times{HoldTCP: time.Millisecond})
	f.syn(20000, app)
	held := receive(t, f.calls.tcp)
	<-held.Done()
	if _, err := held.Complete(t.Context()); !errors.Is(err, stack.ErrExpired) {
		t.Errorf("late Complete = %v, want ErrExpired", err)
	}
	if err := held.Reset(); !errors.Is(err, stack.ErrExpired) {
		t.Errorf("late Reset = %v, want ErrExpired", err)
	}
	f.wantSilence()
}

func TestHandshakeHasADeadline(t *testing.T) {
	f := newFixture(t, stack.Limits{}, stack.Times{Handshake: 5 * time.Millisecond})
	f.syn(20000, app)
	_, err := receive(t, f.calls.tcp).Complete(t.Context())
	if !errors.Is(err, stack.ErrHandshake) {
		t.Errorf("Complete without the program = %v, want ErrHandshake", err)
	}
	if p := f.answer(); p.TCPFlags != packet.FlagSYN|packet.FlagACK {
		t.Errorf("answer = %+v, want SYN and ACK", p)
	}
}

func TestOutsideIsDropped(t *testing.T) {
	f := newFixture(t, stack.Limits{}, stack.Times{})
	f.syn(20000, netip.MustParseAddrPort("10.0.0.1:80"))
	f.datagram(20000, netip.MustParseAddrPort("10.0.0.1:53"), "x")
	f.wire.in <- []byte("no packet")
	f.wantSilence()
	if d := f.stack.Drops(); d.Outside != 2 || d.Malformed != 1 || len(f.calls.tcp)+len(f.calls.udp) != 0 {
		t.Errorf("drops = %+v, asked %d", d, len(f.calls.tcp)+len(f.calls.udp))
	}
}

func TestDatagramsAreHeldWithinLimits(t *testing.T) {
	f := newFixture(t, stack.Limits{}, stack.Times{})
	for i := range 20 {
		f.datagram(20000, app, string(rune('a'+i)))
	}
	f.settle()
	flow := receive(t, f.calls.udp)
	if err := flow.WritePacket([]byte("early")); err == nil {
		t.Error("WritePacket before Accept: no error")
	}
	if err := flow.Accept(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10)
	for i := range 8 {
		n, err := flow.ReadPacket(t.Context(), buf)
		if want := string(rune('a' + i)); err != nil || string(buf[:n]) != want {
			t.Errorf("ReadPacket = %q, %v, want %q", buf[:n], err, want)
		}
	}
	if got := f.stack.Drops().Overflow; got != 12 {
		t.Errorf("overflow = %d, want 12", got)
	}
	if n := len(f.calls.udp); n != 0 {
		t.Errorf("handler was asked %d times more", n)
	}
}

func TestOpenFlowDropsTheOldest(t *testing.T) {
	f := newFixture(t, stack.Limits{QueuePackets: 2}, stack.Times{})
	f.datagram(20000, app, "a")
	flow := receive(t, f.calls.udp)
	if err := flow.Accept(); err != nil {
		t.Fatal(err)
	}
	f.datagram(20000, app, "b")
	f.datagram(20000, app, "c")
	f.settle()
	buf := make([]byte, 10)
	if n, err := flow.ReadPacket(t.Context(), buf); err != nil || string(buf[:n]) != "b" {
		t.Errorf("ReadPacket = %q, %v, want b", buf[:n], err)
	}
}

func TestLateAcceptFails(t *testing.T) {
	f := newFixture(t, stack.Limits{}, stack.Times{HoldUDP: time.Millisecond})
	f.datagram(20000, app, "a")
	flow := receive(t, f.calls.udp)
	<-flow.Done()
	if err := flow.Accept(); !errors.Is(err, stack.ErrExpired) {
		t.Errorf("late Accept = %v, want ErrExpired", err)
	}
	f.wantSilence()
}

func TestIdleFlowEnds(t *testing.T) {
	for _, to := range []netip.AddrPort{app, netip.AddrPortFrom(app.Addr(), 53)} {
		times := stack.Times{IdleUDP: time.Millisecond, IdleDNS: time.Hour}
		if to.Port() == 53 {
			times = stack.Times{IdleUDP: time.Hour, IdleDNS: time.Millisecond}
		}
		f := newFixture(t, stack.Limits{}, times)
		f.datagram(20000, to, "a")
		flow := receive(t, f.calls.udp)
		if err := flow.Accept(); err != nil {
			t.Fatal(err)
		}
		<-flow.Done()
		if _, err := flow.ReadPacket(t.Context(), nil); !errors.Is(err, net.ErrClosed) {
			t.Errorf("ReadPacket after the end = %v, want net.ErrClosed", err)
		}
		f.datagram(20000, to, "b") // a new association
		receive(t, f.calls.udp)
	}
}

func TestRefusedDatagramsAreAnsweredFromMemory(t *testing.T) {
	f := newFixture(t, stack.Limits{}, stack.Times{})
	f.datagram(20000, app, "a")
	if err := receive(t, f.calls.udp).Prohibited(); err != nil {
		t.Fatal(err)
	}
	f.datagram(20000, app, "b")
	for range 2 {
		if p := f.answer(); p.ICMPType != 3 || p.ICMPCode != 13 || p.Src.Addr() != app.Addr() {
			t.Errorf("answer = %+v, want administratively prohibited", p)
		}
	}
	if n := len(f.calls.udp); n != 0 {
		t.Errorf("handler was asked %d times more", n)
	}
}

func TestAnOpenFlowCanBeRevoked(t *testing.T) {
	f := newFixture(t, stack.Limits{}, stack.Times{})
	f.datagram(20000, app, "a")
	flow := receive(t, f.calls.udp)
	if err := errors.Join(flow.Accept(), flow.Prohibited()); err != nil {
		t.Fatal(err)
	}
	if p := f.answer(); p.ICMPCode != 13 {
		t.Errorf("answer = %+v, want administratively prohibited", p)
	}
	if err := flow.WritePacket([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("WritePacket after the end = %v, want net.ErrClosed", err)
	}
}

func TestUDPLimits(t *testing.T) {
	f := newFixture(t, stack.Limits{UDPPerApp: 3}, stack.Times{})
	for i := range 10 {
		f.datagram(uint16(20000+i), app, "a")
	}
	f.settle()
	for range 3 {
		receive(t, f.calls.udp)
	}
	if got := f.stack.Drops().Limited; got != 7 {
		t.Errorf("limited = %d, want 7", got)
	}
}

// failing is a wire whose first reads fail.
type failing struct {
	*wire
	err   error
	times int
}

func (f *failing) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	if f.times > 0 {
		f.times--
		return 0, f.err
	}
	return f.wire.Read(bufs, sizes, offset)
}

func TestBadPacketsEndNothing(t *testing.T) {
	c := &calls{echo: make(chan *stack.Echo, 1), tcp: make(chan *stack.HeldTCP, 1)}
	dev := &failing{newWire(), errors.New("too many segments"), 1000}
	done, cancel := runOn(t, dev, c)
	(&fixture{t: t, wire: dev.wire, calls: c}).settle()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run() = %v", err)
	}
}

func TestFailedDeviceEndsTheStack(t *testing.T) {
	for _, err := range []error{&os.PathError{Op: "read", Err: syscall.EIO}, os.ErrClosed} {
		done, cancel := runOn(t, &failing{newWire(), err, 1000}, &calls{})
		if got := receive(t, done); !errors.Is(got, err) {
			t.Errorf("Run() = %v, want %v", got, err)
		}
		cancel()
	}
}

func runOn(t *testing.T, dev stack.Device, h stack.Handler) (<-chan error, context.CancelFunc) {
	t.Helper()
	s, err := stack.New(stack.Config{Device: dev, Handler: h, Prefixes: inside, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return done, cancel
}
