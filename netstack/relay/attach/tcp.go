package attach

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/postern-zt/postern/netstack/relay/wire"
)

const (
	// dialTimeout bounds TCP and the outer TLS handshake for one address.
	dialTimeout = 10 * time.Second
	// readyTimeout bounds the wait for the connector at the other side: the relay gives up
	// a little earlier, and its reason is worth hearing.
	readyTimeout = 20 * time.Second
)

var (
	errProtocol   = errors.New("relay speaks another protocol")
	errUnexpected = errors.New("unexpected message from the relay")
)

// DialTCP asks the relay for a connection to the connector that the client's ticket
// names and returns the raw stream; nothing of the outer TLS is left on it. The error is
// a *RefusedError where the relay gave a reason.
func DialTCP(ctx context.Context, cfg Config, t Ticket) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	s, err := open(ctx, cfg, wire.PurposeCall, wire.CallID{}, t)
	if err != nil {
		return nil, err
	}
	return s.ready(ctx)
}

// Renew tells the relay that the link's connections live on under a newer ticket for the
// same handle.
func Renew(ctx context.Context, cfg Config, t Ticket) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	s, err := open(ctx, cfg, wire.PurposeRenew, wire.CallID{}, t)
	if err != nil {
		return err
	}
	defer s.drop()
	return s.expect(ctx, wire.KindAttached)
}

// session is an outer TLS connection on which our hello has been sent.
type session struct {
	tls *tls.Conn
	raw net.Conn
}

// open dials the relay's addresses in turn and sends the hello.
func open(ctx context.Context, cfg Config, p wire.Purpose, call wire.CallID, t Ticket) (*session, error) {
	s, err := dialAny(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := s.hello(ctx, p, call, t); err != nil {
		s.drop()
		return nil, fmt.Errorf("greet relay %s: %w", cfg.Relay.ID, err)
	}
	return s, nil
}

func dialAny(ctx context.Context, cfg Config) (*session, error) {
	if len(cfg.Relay.TCP) == 0 || cfg.Relay.TLS == nil {
		return nil, ErrAddress
	}
	var errs []error
	for _, addr := range cfg.Relay.TCP {
		s, err := dialOne(ctx, cfg, addr)
		if err == nil {
			return s, nil
		}
		errs = append(errs, fmt.Errorf("relay %s at %s: %w", cfg.Relay.ID, addr, err))
	}
	return nil, errors.Join(errs...)
}

func dialOne(ctx context.Context, cfg Config, addr string) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var d Dialer = &net.Dialer{}
	if cfg.Dialer != nil {
		d = cfg.Dialer
	}
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	tc := tls.Client(wire.NewRecordConn(raw), outerTLS(cfg.Relay.TLS, addr))
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = raw.Close() // the handshake's error is the one to report
		return nil, fmt.Errorf("tls: %w", err)
	}
	if tc.ConnectionState().NegotiatedProtocol != wire.ALPN {
		_ = raw.Close()
		return nil, errProtocol
	}
	return &session{tls: tc, raw: raw}, nil
}

func outerTLS(base *tls.Config, addr string) *tls.Config {
	c := base.Clone()
	c.NextProtos = []string{wire.ALPN}
	c.MinVersion = tls.VersionTLS13
	if c.ServerName == "" {
		c.ServerName, _, _ = net.SplitHostPort(addr) // a bad address has failed in the dial
	}
	return c
}

func (s *session) hello(ctx context.Context, p wire.Purpose, call wire.CallID, t Ticket) error {
	cs := s.tls.ConnectionState()
	h, err := wire.NewHello(&cs, p, call, t.Sealed, t.MACKey)
	if err != nil {
		return err
	}
	return s.while(ctx, func() error {
		_, err := s.tls.Write(wire.AppendHello(nil, h))
		return err
	})
}

// ready waits for the relay's word and gives up the outer TLS without closing it: its
// close_notify would land in the inner stream.
func (s *session) ready(ctx context.Context) (net.Conn, error) {
	if err := s.expect(ctx, wire.KindReady); err != nil {
		s.drop()
		return nil, err
	}
	return s.raw, nil
}

// expect reads one message of the wanted kind.
func (s *session) expect(ctx context.Context, want wire.Kind) error {
	return s.while(ctx, func() error {
		kind, body, err := wire.ReadMessage(s.tls)
		switch {
		case err != nil:
			return err
		case kind == wire.KindRefused:
			return &RefusedError{Code: wire.ParseRefused(body)}
		case kind != want:
			return errUnexpected
		}
		return nil
	})
}

// while runs one exchange under ctx and leaves the connection without a deadline.
func (s *session) while(ctx context.Context, f func() error) error {
	if d, ok := ctx.Deadline(); ok {
		_ = s.raw.SetDeadline(d) // a closed connection shows in f
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = s.raw.SetDeadline(time.Unix(1, 0))
		close(interrupted)
	})
	err := f()
	if !stop() {
		<-interrupted
		return errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		return err
	}
	return s.raw.SetDeadline(time.Time{})
}

func (s *session) drop() { _ = s.raw.Close() } // nothing to flush, nothing to report
