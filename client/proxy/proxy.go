// Package proxy is a SOCKS5 server (RFC 1928) on a loopback address: the way to the apps
// without root and without the daemon. Names are resolved by the caller's Opener, so only
// published names are served; addresses and all other names are refused with the code that
// is true. It asks for no password; instead the kernel says whose program it is.
//
// It knows no policy. Run owns every goroutine it starts.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/postern-zt/postern/netstack/flow"
)

const (
	// greetTimeout bounds the talk before the connection is opened.
	greetTimeout = 10 * time.Second
	// maxConns bounds the programs that are served at once.
	maxConns = 4096
)

// Opener opens connections to apps by name.
type Opener interface {
	OpenTCP(ctx context.Context, host string, port uint16) (*flow.Flow, error)
	OpenUDP(ctx context.Context, host string, port uint16) (*flow.Packets, error)
}

// Config is what a Server needs.
type Config struct {
	// Listen is a loopback address with a port.
	Listen string
	Opener Opener
	// Reply chooses the reply to an error of the Opener.
	Reply func(err error) Reply
	// Admit judges the program by its two addresses, its own first; nil admits all.
	Admit func(program, proxy netip.AddrPort) error
	Log   *slog.Logger
}

// Server serves one address.
type Server struct {
	cfg      Config
	log      *slog.Logger
	listener net.Listener
	slots    chan struct{}
}

// ErrNotLoopback says that the address would let other machines in.
var ErrNotLoopback = errors.New("the proxy listens on loopback addresses only")

// Listen takes the address; Run serves it.
func Listen(ctx context.Context, cfg Config) (*Server, error) {
	host, _, err := net.SplitHostPort(cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen: want 127.0.0.1:PORT: %w", err)
	}
	if a, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !a.IsLoopback()) {
		return nil, fmt.Errorf("%w, not on %q", ErrNotLoopback, host)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		return nil, err
	}
	return &Server{cfg: cfg, log: cfg.Log.With("component", "proxy"), listener: l, slots: make(chan struct{}, maxConns)}, nil
}

// Addr is the address that is served.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Close gives the address back when Run was never called. Safe twice.
func (s *Server) Close() error { return s.listener.Close() }

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { s.listener.Close() })
	defer stop()
	for {
		conn, err := s.listener.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		select {
		case s.slots <- struct{}{}:
			wg.Go(func() {
				defer func() { <-s.slots }()
				s.serve(ctx, conn)
			})
		default:
			conn.Close()
			s.log.WarnContext(ctx, "too many programs use the proxy", "limit", maxConns)
		}
	}
}

func (s *Server) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := s.admit(conn); err != nil {
		s.log.WarnContext(ctx, "program not admitted", "error", err)
		return
	}
	_ = conn.SetDeadline(time.Now().Add(greetTimeout)) // a closed connection shows in the read
	req, err := greet(conn)
	if err != nil {
		s.log.DebugContext(ctx, "not a SOCKS5 program", "error", err)
		return
	}
	_ = conn.SetDeadline(time.Time{})
	switch req.command {
	case commandConnect:
		s.connect(ctx, conn, req)
	case commandUDP:
		s.associate(ctx, conn)
	default:
		_ = writeReply(conn, CommandNotSupported, netip.AddrPort{})
	}
}

func (s *Server) admit(conn net.Conn) error {
	if s.cfg.Admit == nil {
		return nil
	}
	return s.cfg.Admit(addrPort(conn.RemoteAddr()), addrPort(conn.LocalAddr()))
}

func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// connect opens the app first and answers then, so that the program learns the truth.
func (s *Server) connect(ctx context.Context, conn net.Conn, req request) {
	f, reply := s.open(ctx, req)
	if f == nil {
		_ = writeReply(conn, reply, netip.AddrPort{}) // the program may be gone
		return
	}
	if err := writeReply(conn, Succeeded, netip.AddrPort{}); err != nil {
		_ = f.Close()
		return
	}
	f.Splice(conn)
}

func (s *Server) open(ctx context.Context, req request) (*flow.Flow, Reply) {
	if req.host == "" {
		return nil, NotAllowed // an address: nobody published it
	}
	f, err := s.cfg.Opener.OpenTCP(ctx, req.host, req.port)
	if err != nil {
		s.log.DebugContext(ctx, "connection not opened", "name", req.host, "port", req.port, "error", err)
		return nil, s.cfg.Reply(err)
	}
	return f, Succeeded
}
