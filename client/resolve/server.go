package resolve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxQuery bounds a question: one name and options, far below this.
	maxQuery = 4096
	// forwardTimeout per upstream: two of them still answer before most
	// programs give up (5 s).
	forwardTimeout = 2 * time.Second
	// maxForwards bounds the questions that wait for an upstream.
	maxForwards = 256
)

// ErrQuery is returned for bytes that are not one DNS question. Nothing must be
// sent back.
var ErrQuery = errors.New("not a DNS query")

// Transport says how a question came, which bounds its answer.
type Transport string

// The two transports of DNS. They are also the network names of package net.
const (
	UDP Transport = "udp"
	TCP Transport = "tcp"
)

// Config says how a Server works.
type Config struct {
	// Addr is where Run listens on UDP and TCP. Zero means that Run is not used
	// and packets come in through Answer only.
	Addr netip.AddrPort
	Log  *slog.Logger
}

// Server answers for published names. Until the first SetTable it refuses
// everything.
type Server struct {
	cfg       Config
	log       *slog.Logger
	table     atomic.Pointer[Table]            // swapped whole by SetTable
	upstreams atomic.Pointer[[]netip.AddrPort] // swapped whole by SetUpstreams
	forwards  chan struct{}                    // one token per waiting forward
	ready     chan struct{}                    // closed by Run when it listens
	readyOnce sync.Once
}

// New checks cfg and returns a Server that listens nowhere yet.
func New(cfg Config) (*Server, error) {
	if cfg.Log == nil {
		return nil, errors.New("log: not set")
	}
	s := &Server{
		cfg: cfg, log: cfg.Log.With("component", "resolve"),
		forwards: make(chan struct{}, maxForwards), ready: make(chan struct{}),
	}
	s.table.Store(&Table{})
	s.SetUpstreams(nil)
	return s, nil
}

// SetTable makes t answer from the next question on.
func (s *Server) SetTable(t *Table) { s.table.Store(t) }

// SetUpstreams names the servers for questions that are not ours. None means that
// such questions are refused. Our own address is left out, else we would ask
// ourselves.
func (s *Server) SetUpstreams(servers []netip.AddrPort) {
	servers = slices.DeleteFunc(slices.Clone(servers), func(a netip.AddrPort) bool { return a == s.cfg.Addr })
	s.upstreams.Store(&servers)
}

// Answer returns the reply to one packed question, which is cut for UDP to what
// the asker accepts. It may wait for an upstream, at most a few seconds. After an
// error nothing must be sent.
func (s *Server) Answer(ctx context.Context, query []byte, via Transport) ([]byte, error) {
	q, err := parseQuery(query)
	if err != nil {
		return nil, err
	}
	reply := s.reply(ctx, q, via)
	if via == UDP {
		reply.Truncate(replySize(q))
	}
	packed, err := reply.Pack()
	if err != nil {
		return nil, fmt.Errorf("pack reply: %w", err)
	}
	return packed, nil
}

func parseQuery(b []byte) (*dns.Msg, error) {
	if len(b) > maxQuery {
		return nil, ErrQuery
	}
	q := new(dns.Msg)
	if err := q.Unpack(b); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrQuery, err)
	}
	if q.Response {
		return nil, ErrQuery
	}
	return q, nil
}

func replySize(q *dns.Msg) int {
	if opt := q.IsEdns0(); opt != nil {
		return max(dns.MinMsgSize, min(int(opt.UDPSize()), ednsSize))
	}
	return dns.MinMsgSize
}

func (s *Server) reply(ctx context.Context, q *dns.Msg, via Transport) *dns.Msg {
	switch opt := q.IsEdns0(); {
	case q.Opcode != dns.OpcodeQuery:
		return newReply(q, dns.RcodeNotImplemented)
	case len(q.Question) != 1:
		return newReply(q, dns.RcodeFormatError)
	case opt != nil && opt.Version() != 0:
		return newReply(q, dns.RcodeBadVers)
	}
	reply, v := s.table.Load().decide(q)
	switch v {
	case answer:
		return reply
	case foreign:
		return s.forward(ctx, q, via)
	default:
		return newReply(q, dns.RcodeRefused)
	}
}

// forward asks the upstreams one after the other. Only questions outside our
// suffixes come here, so no published name ever leaves the host.
func (s *Server) forward(ctx context.Context, q *dns.Msg, via Transport) *dns.Msg {
	upstreams := *s.upstreams.Load()
	if len(upstreams) == 0 {
		return newReply(q, dns.RcodeRefused)
	}
	select {
	case s.forwards <- struct{}{}:
		defer func() { <-s.forwards }()
	default:
		return newReply(q, dns.RcodeServerFailure)
	}
	for _, upstream := range upstreams {
		if reply, err := exchange(ctx, q, upstream, via); err == nil {
			return reply
		}
	}
	return newReply(q, dns.RcodeServerFailure)
}

func exchange(ctx context.Context, q *dns.Msg, upstream netip.AddrPort, via Transport) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	out := q.Copy()
	out.Id = dns.Id() // ours is random, the asker's need not be
	client := &dns.Client{Net: string(via), Timeout: forwardTimeout, UDPSize: ednsSize}
	reply, _, err := client.ExchangeContext(ctx, out, upstream.String())
	if err != nil {
		return nil, err
	}
	if !slices.Equal(reply.Question, q.Question) {
		return nil, errors.New("upstream answered another question")
	}
	reply.Id = q.Id
	return reply, nil
}

// Ready is closed when Run listens.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run listens on Config.Addr, UDP and TCP, until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	if !s.cfg.Addr.IsValid() {
		return errors.New("listen address is not set")
	}
	var lc net.ListenConfig
	udp, err := lc.ListenPacket(ctx, "udp", s.cfg.Addr.String())
	if err != nil {
		return fmt.Errorf("listen for DNS: %w", err)
	}
	tcp, err := lc.Listen(ctx, "tcp", s.cfg.Addr.String())
	if err != nil {
		return errors.Join(fmt.Errorf("listen for DNS: %w", err), udp.Close())
	}
	return s.serve(ctx, udp.(*net.UDPConn), tcp)
}
