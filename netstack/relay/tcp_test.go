package relay_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/postern-zt/postern/netstack/relay"
	"github.com/postern-zt/postern/netstack/relay/attach"
	"github.com/postern-zt/postern/netstack/relay/relaytest"
	"github.com/postern-zt/postern/netstack/relay/wire"
	"github.com/postern-zt/postern/proto/ticket"
)

func dialRaw(t testing.TB, f *relaytest.Fixture) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", f.TCPAddr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c.(*net.TCPConn)
}

// TestTCPPortGivesNothingButTLS: strangers of any protocol get no byte, or a TLS alert.
func TestTCPPortGivesNothingButTLS(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	for _, hello := range []string{"GET / HTTP/1.1\r\nHost: relay\r\n\r\n", "SSH-2.0-x\r\n", "\x00\x00\x00\x00\x00\x00\x00\x00\x00", "\n",
		"\x16\x03\x01\x00\x05hello", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"} {
		c := dialRaw(t, f)
		if _, err := c.Write([]byte(hello)); err != nil {
			t.Fatal(err)
		}
		_ = c.CloseWrite()
		got, _ := io.ReadAll(c) // a reset is as good as an end
		const alert, alertLen = 21, 7
		if len(got) != 0 && (got[0] != alert || len(got) != alertLen) {
			t.Errorf("%q was answered with %q", hello, got)
		}
	}
}

func TestTLSWithoutOurProtocolIsClosed(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	for _, conf := range []*tls.Config{
		{NextProtos: []string{"h2"}}, {}, {NextProtos: []string{wire.ALPN}, MaxVersion: tls.VersionTLS12},
	} {
		conf.InsecureSkipVerify = true
		tc := tls.Client(dialRaw(t, f), conf)
		if _, err := tc.Read(make([]byte, 1)); err == nil {
			t.Errorf("%v: the relay spoke", conf.NextProtos)
		}
	}
}

// hello opens the outer TLS and sends msg.
func hello(t testing.TB, f *relaytest.Fixture, msg func(*tls.ConnectionState) []byte) *tls.Conn {
	t.Helper()
	conf := f.Info().TLS.Clone()
	conf.NextProtos, conf.ServerName = []string{wire.ALPN}, "127.0.0.1"
	tc := tls.Client(wire.NewRecordConn(dialRaw(t, f)), conf)
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	cs := tc.ConnectionState()
	if _, err := tc.Write(msg(&cs)); err != nil {
		t.Fatal(err)
	}
	return tc
}

func refusal(t testing.TB, tc *tls.Conn) wire.Code {
	t.Helper()
	kind, body, err := wire.ReadMessage(tc)
	if err != nil || kind != wire.KindRefused {
		t.Fatalf("ReadMessage = %d, %v, want a refusal", kind, err)
	}
	return wire.ParseRefused(body)
}

// TestCopiedHelloOpensNothing replays a whole valid hello on another TLS connection.
func TestCopiedHelloOpensNothing(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	tk := f.Connector(ticket.NewHandle(), nil)
	var copied []byte
	first := hello(t, f, func(cs *tls.ConnectionState) []byte {
		h, err := wire.NewHello(cs, wire.PurposeControl, wire.CallID{}, tk.Sealed, tk.MACKey)
		if err != nil {
			t.Fatal(err)
		}
		copied = wire.AppendHello(nil, h)
		return copied
	})
	if kind, _, err := wire.ReadMessage(first); err != nil || kind != wire.KindAttached {
		t.Fatalf("the owner's hello: %d, %v", kind, err)
	}
	if code := refusal(t, hello(t, f, func(*tls.ConnectionState) []byte { return copied })); code != wire.CodeTicket {
		t.Errorf("the copied hello: %s", code)
	}
	if f.Relay.Load().Controls != 1 {
		t.Error("the owner's connection did not survive")
	}
}

func TestAnswerNeedsAPendingCallOfTheSameConnector(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	c := ticket.NewHandle()
	calls := make(chan wire.CallID, 1)
	ctl := control(t, f, c)
	go func() {
		_, body, err := wire.ReadMessage(ctl)
		if err != nil {
			return
		}
		_, id, _ := wire.ParseCall(body)
		calls <- id
	}()
	dialled := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		conn, err := attach.DialTCP(ctx, f.Attach(), f.Client(c, nil))
		if err == nil {
			_ = conn.Close()
		}
		dialled <- err
	}()
	id := <-calls
	if code := refusal(t, answer(t, f, f.Connector(ticket.NewHandle(), nil), id)); code != wire.CodeUnknownCall {
		t.Errorf("answer of another connector: %s", code)
	}
	if code := refusal(t, answer(t, f, f.Connector(c, nil), wire.CallID{1})); code != wire.CodeUnknownCall {
		t.Errorf("answer to a call that nobody made: %s", code)
	}
	good := answer(t, f, f.Connector(c, nil), id)
	if kind, _, err := wire.ReadMessage(good); err != nil || kind != wire.KindReady {
		t.Errorf("the right answer: %d, %v", kind, err)
	}
	if err := <-dialled; err != nil {
		t.Errorf("DialTCP = %v", err)
	}
	if code := refusal(t, answer(t, f, f.Connector(c, nil), id)); code != wire.CodeUnknownCall {
		t.Errorf("answering twice: %s", code)
	}
}

func control(t testing.TB, f *relaytest.Fixture, c ticket.Handle) *tls.Conn {
	t.Helper()
	tc := greet(t, f, wire.PurposeControl, f.Connector(c, nil), wire.CallID{})
	if kind, _, err := wire.ReadMessage(tc); err != nil || kind != wire.KindAttached {
		t.Fatalf("attach: %d, %v", kind, err)
	}
	return tc
}

func answer(t testing.TB, f *relaytest.Fixture, tk attach.Ticket, id wire.CallID) *tls.Conn {
	t.Helper()
	return greet(t, f, wire.PurposeAnswer, tk, id)
}

func greet(t testing.TB, f *relaytest.Fixture, p wire.Purpose, tk attach.Ticket, id wire.CallID) *tls.Conn {
	t.Helper()
	return hello(t, f, func(cs *tls.ConnectionState) []byte {
		h, err := wire.NewHello(cs, p, id, tk.Sealed, tk.MACKey)
		if err != nil {
			t.Fatal(err)
		}
		return wire.AppendHello(nil, h)
	})
}

func TestDeclinedCall(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	c := ticket.NewHandle()
	ctl := control(t, f, c)
	go func() {
		_, body, err := wire.ReadMessage(ctl)
		if err != nil {
			return
		}
		_, id, _ := wire.ParseCall(body)
		_, _ = ctl.Write(wire.AppendMessage(nil, wire.KindDecline, id[:]))
	}()
	_, err := attach.DialTCP(t.Context(), f.Attach(), f.Client(c, nil))
	if !errors.Is(err, &attach.RefusedError{Code: wire.CodeDeclined}) {
		t.Errorf("DialTCP = %v, want declined", err)
	}
}

func TestRolesOpenOnlyTheirPurposes(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	c := ticket.NewHandle()
	for _, tc := range []struct {
		p  wire.Purpose
		tk attach.Ticket
	}{
		{wire.PurposeCall, f.Connector(c, nil)}, {wire.PurposeRenew, f.Connector(c, nil)},
		{wire.PurposeControl, f.Client(c, nil)}, {wire.PurposeAnswer, f.Client(c, nil)}, {99, f.Client(c, nil)}, {0, f.Connector(c, nil)},
	} {
		if code := refusal(t, greet(t, f, tc.p, tc.tk, wire.CallID{})); code != wire.CodeTicket {
			t.Errorf("purpose %d as %s: %s", tc.p, tc.tk.Role, code)
		}
	}
}

func TestRevokedConnectorLosesItsControlConnection(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	c := ticket.NewHandle()
	ctl := control(t, f, c)
	f.Relay.Revoke(relay.Revocation{Handles: []ticket.Handle{c}, At: time.Now()})
	if _, _, err := wire.ReadMessage(ctl); err == nil {
		t.Error("control connection outlived the revocation")
	}
	if code := refusal(t, greet(t, f, wire.PurposeControl, f.Connector(c, nil), wire.CallID{})); code != wire.CodeRevoked {
		t.Errorf("attaching again: %s", code)
	}
}

func TestGreetingPlacesAreLimited(t *testing.T) {
	f := relaytest.New(t, relay.Limits{Greetings: 1})
	silent := dialRaw(t, f) // takes the only place and says nothing
	defer silent.Close()
	waitFor(t, func() bool {
		c := dialRaw(t, f)
		defer c.Close()
		_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		_, err := c.Read(make([]byte, 1))
		var timeout net.Error
		return err != nil && !(errors.As(err, &timeout) && timeout.Timeout()) && f.Relay.Drops()["limit"] > 0
	})
}

func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatal("condition not reached")
		}
	}
}
