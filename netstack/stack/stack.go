// Package stack ends the TCP connections, UDP associations and pings of local
// programs in user space, on top of gVisor, so that each can be decided before the
// program sees anything. The root package of the client gives it a tunnel
// interface and a Handler.
//
//	program -> kernel -> Device -> reader -> gVisor -> Handler, Conn, UDPFlow
//	program <- kernel <- Device <- writer <- queue  <- gVisor, verdicts
//
// It must not know apps, grants or names, and must not touch the host: it sees
// addresses and packets only. Whatever has no verdict gets silence.
//
// New checks and stores; Run owns the reader, the writer and every handler, and
// returns when all have ended. All methods may be called from any goroutine.
package stack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const nicID = 1

// maxHandshakes under way at a time; each takes microseconds, and more than this
// many wait for their turn.
const maxHandshakes = 64

// flushTime is how long each step of telling the programs about the end may take.
const flushTime = 500 * time.Millisecond

// Stack is a user-space network for one tunnel interface.
type Stack struct {
	cfg       Config
	log       *slog.Logger
	ip        *gstack.Stack
	link      *link
	forwarder *tcp.Forwarder
	prefixes  atomic.Pointer[[]netip.Prefix] // swapped whole by SetPrefixes
	stats     counters
	handlers  sync.WaitGroup  // added to by the reader only
	ctx       context.Context // of Run, for handlers: the library starts them without one

	held   heldTable
	memory memory
	flows  flowTable
	conns  connTable
	echoes chan struct{} // one token per echo without a verdict

	handshakes chan struct{} // one token per handshake under way
}

// New checks cfg and builds the stack; nothing runs before Run.
func New(cfg Config) (*Stack, error) {
	if cfg.Device == nil || cfg.Handler == nil || cfg.Log == nil {
		return nil, errors.New("device, handler and log must be set")
	}
	cfg.Limits, cfg.Times = cfg.Limits.withDefaults(), cfg.Times.withDefaults()
	mtu, err := cfg.Device.MTU()
	if err != nil {
		return nil, fmt.Errorf("read mtu: %w", err)
	}
	s := &Stack{
		cfg: cfg, log: cfg.Log.With("component", "stack"), link: newLink(mtu),
		held: newHeldTable(), memory: newMemory(cfg.Limits.Verdicts), flows: newFlowTable(), conns: newConnTable(),
		echoes: make(chan struct{}, cfg.Limits.Echoes), handshakes: make(chan struct{}, maxHandshakes),
	}
	s.SetPrefixes(cfg.Prefixes)
	if err := s.build(); err != nil {
		return nil, err
	}
	return s, nil
}

// SetPrefixes replaces the destinations that exist. Connections stay as they are.
func (s *Stack) SetPrefixes(prefixes []netip.Prefix) {
	prefixes = slices.Clone(prefixes)
	s.prefixes.Store(&prefixes)
}

func (s *Stack) inside(a netip.Addr) bool {
	for _, p := range *s.prefixes.Load() {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// build makes a gVisor stack with one interface that takes every address.
func (s *Stack) build() error {
	s.ip = gstack.New(gstack.Options{
		NetworkProtocols: []gstack.NetworkProtocolFactory{
			ipv4.NewProtocol,
			ipv6.NewProtocolWithOptions(ipv6.Options{NDPConfigs: ipv6.NDPConfigurations{HandleRAs: ipv6.HandlingRAsDisabled}}),
		},
		TransportProtocols: []gstack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	steps := []func() tcpip.Error{
		func() tcpip.Error { return s.ip.CreateNIC(nicID, s.link) },
		func() tcpip.Error { return s.ip.SetPromiscuousMode(nicID, true) },
		func() tcpip.Error { return s.ip.SetSpoofing(nicID, true) },
		s.setTCPOptions,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("build stack: %s", err)
		}
	}
	s.ip.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nicID},
		{Destination: header.IPv6EmptySubnet, NIC: nicID},
	})
	s.forwarder = tcp.NewForwarder(s.ip, receiveWindow, s.cfg.Limits.Held, s.startTCP)
	s.ip.SetTransportProtocolHandler(tcp.ProtocolNumber, s.handleTCP)
	s.ip.SetTransportProtocolHandler(udp.ProtocolNumber, s.handleUDP)
	return nil
}

// TCP settings. The path is one copy inside this host: no loss, no delay.
const (
	// receiveWindow and sendBuffer hold a few dozen super-packets; more only
	// fills memory when the far side is slow.
	receiveWindow = 1 << 20
	sendBuffer    = 1 << 20
	maxBuffer     = 4 << 20
	// timeWait is short: both ends are on this host, nothing is under way.
	timeWait = time.Second
	// handshakeTries bounds a handshake that the deadline does not end.
	handshakeTries = 3
)

func (s *Stack) setTCPOptions() tcpip.Error {
	sack := tcpip.TCPSACKEnabled(true)
	recovery := tcpip.TCPRecovery(0) // RACK costs timers and sees no loss here
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: receiveWindow, Max: maxBuffer}
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: sendBuffer, Max: maxBuffer}
	wait := tcpip.TCPTimeWaitTimeoutOption(timeWait)
	retries := tcpip.TCPSynRetriesOption(handshakeTries)
	for _, option := range []tcpip.SettableTransportProtocolOption{&sack, &recovery, &rcv, &snd, &wait, &retries} {
		if err := s.ip.SetTransportProtocolOption(tcp.ProtocolNumber, option); err != nil {
			return err
		}
	}
	return nil
}

// Run moves packets until ctx ends or the device fails. At the end programs see
// their connections reset.
func (s *Stack) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.ctx = ctx
	var wg sync.WaitGroup
	var readErr, writeErr error
	wg.Go(func() { defer cancel(); readErr = s.read() })
	wg.Go(func() { defer cancel(); defer s.link.stop(); writeErr = s.write() })
	<-ctx.Done()
	s.abortAll()
	s.awaitHandshakes()
	s.link.flush(flushTime)
	closeErr := s.cfg.Device.Close() // ends the reader
	s.link.stop()                    // ends the writer
	wg.Wait()
	s.abortAll() // what the reader let in meanwhile
	s.handlers.Wait()
	s.ip.Destroy()
	return errors.Join(readErr, writeErr, closeErr)
}

// awaitHandshakes lets those under way end, so that their programs get a reset: a
// connection that is established on one side only would hang.
func (s *Stack) awaitHandshakes() {
	timer := time.NewTimer(flushTime)
	defer timer.Stop()
	for range cap(s.handshakes) {
		select {
		case s.handshakes <- struct{}{}:
		case <-timer.C:
			return
		}
	}
}

func (s *Stack) abortAll() {
	for _, c := range s.conns.all() {
		c.Abort()
	}
	for _, f := range s.flows.all() {
		f.end(errStopped)
	}
	for _, h := range s.held.all() {
		_ = h.Drop() // ErrDecided: somebody was faster
	}
}
