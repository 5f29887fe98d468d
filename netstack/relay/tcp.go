package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/postern-zt/postern/netstack/relay/wire"
	"github.com/postern-zt/postern/netstack/splice"
	"github.com/postern-zt/postern/proto/ticket"
)

const (
	// greetTimeout bounds the wait for the first message after the outer handshake.
	greetTimeout = 10 * time.Second
	// writeTimeout bounds each message that the relay writes.
	writeTimeout = 5 * time.Second
)

// RefusedError is what ServeConn returns for a connection that it did not serve.
type RefusedError struct{ Reason Reason }

// Error names the reason.
func (e *RefusedError) Error() string { return "relay: refused: " + e.Reason.String() }

// ServeConn serves one connection on which the outer TLS handshake, with ALPN
// wire.ALPN, is done; under it must lie a *wire.RecordConn on a connection with half
// close (*net.TCPConn for speed). It returns when the connection has ended and always
// closes it. The caller runs it in a goroutine of its own.
func (r *Relay) ServeConn(ctx context.Context, tc *tls.Conn) error {
	s, err := newSession(tc)
	if err != nil {
		_ = tc.NetConn().Close() // not ours; its own error says why
		r.drops.count(DropProtocol)
		return err
	}
	defer s.close()
	stop := context.AfterFunc(ctx, s.close)
	defer stop()
	reason := r.serve(ctx, s)
	if reason == OK {
		return nil
	}
	r.drops.count(reason)
	s.refuse(reason)
	return &RefusedError{Reason: reason}
}

// serve takes one of the places for strangers until the connection is past its greeting
// and waiting.
func (r *Relay) serve(ctx context.Context, s *session) Reason {
	select {
	case r.greetings <- struct{}{}:
	default:
		return DropLimit
	}
	done := false
	leave := func() {
		if !done {
			done = true
			<-r.greetings
		}
	}
	defer leave()
	hello, t, reason := r.greet(s)
	if reason != OK {
		return reason
	}
	switch {
	case hello.Purpose == wire.PurposeCall && t.Role == ticket.RoleClient:
		return r.serveCall(ctx, s, t, leave)
	case hello.Purpose == wire.PurposeRenew && t.Role == ticket.RoleClient:
		return r.serveRenew(s, t)
	case hello.Purpose == wire.PurposeControl && t.Role == ticket.RoleConnector:
		leave()
		return r.serveControl(ctx, s, t)
	case hello.Purpose == wire.PurposeAnswer && t.Role == ticket.RoleConnector:
		leave()
		return r.serveAnswer(s, hello.Call, t)
	default:
		return DropBadTicket // a role that may not do this
	}
}

// greet reads the hello and proves ticket and holder.
func (r *Relay) greet(s *session) (wire.Hello, ticket.Ticket, Reason) {
	_ = s.raw.SetDeadline(time.Now().Add(greetTimeout)) // a dead connection shows in the read
	kind, body, err := wire.ReadMessage(s.tls)
	if err != nil {
		return wire.Hello{}, ticket.Ticket{}, DropGreeting
	}
	hello, err := wire.ParseHello(body)
	if err != nil || kind != wire.KindHello {
		return wire.Hello{}, ticket.Ticket{}, DropMalformed
	}
	t, reason := r.accept(hello.Ticket)
	if reason != OK {
		return wire.Hello{}, ticket.Ticket{}, reason
	}
	cs := s.tls.ConnectionState()
	if !hello.Proves(&cs, t.MACKey) {
		return wire.Hello{}, ticket.Ticket{}, DropProof
	}
	return hello, t, OK
}

// session is one connection with the outer TLS still in use.
type session struct {
	tls *tls.Conn
	raw splice.Conn
}

var (
	errALPN   = errors.New("relay: connection with another protocol")
	errRecord = errors.New("relay: connection does not lie on a RecordConn")
	errHalf   = errors.New("relay: connection cannot close one direction")
)

func newSession(tc *tls.Conn) (*session, error) {
	if cs := tc.ConnectionState(); cs.NegotiatedProtocol != wire.ALPN || cs.Version != tls.VersionTLS13 {
		return nil, errALPN
	}
	rc, ok := tc.NetConn().(*wire.RecordConn)
	if !ok {
		return nil, errRecord
	}
	raw, ok := rc.Raw().(splice.Conn)
	if !ok {
		return nil, errHalf
	}
	return &session{tls: tc, raw: raw}, nil
}

func (s *session) send(kind wire.Kind, body ...byte) error {
	return s.write(wire.AppendMessage(nil, kind, body))
}

func (s *session) write(msg []byte) error {
	if err := s.raw.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	if _, err := s.tls.Write(msg); err != nil {
		return fmt.Errorf("write to holder: %w", err)
	}
	return nil
}

// refuse tells the holder why, as far as it may know; a connection that is gone or was
// turned into raw bytes is closed and takes no message.
func (s *session) refuse(reason Reason) {
	if reason != DropGreeting {
		_ = s.send(wire.KindRefused, byte(reason.code())) // it is closed next either way
	}
}

// goRaw gives up the outer TLS; ready was the last record.
func (s *session) goRaw() (splice.Conn, error) {
	if err := s.send(wire.KindReady); err != nil {
		return nil, err
	}
	return s.raw, s.raw.SetDeadline(time.Time{})
}

func (s *session) close() { _ = s.raw.Close() } // after it nothing is worth reporting

// reset closes with RST, for connections that are cut.
func (s *session) reset() {
	if l, ok := s.raw.(interface{ SetLinger(int) error }); ok {
		_ = l.SetLinger(0)
	}
	s.close()
}

var _ splice.Conn = (*net.TCPConn)(nil)
