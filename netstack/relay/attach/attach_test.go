package attach_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-zt/postern/netstack/relay"
	"github.com/postern-zt/postern/netstack/relay/attach"
	"github.com/postern-zt/postern/netstack/relay/relaytest"
	"github.com/postern-zt/postern/netstack/relay/wire"
	"github.com/postern-zt/postern/proto/ticket"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve attaches a connector whose calls are handed to onCall; the test's end stops it.
func serve(t testing.TB, f *relaytest.Fixture, c ticket.Handle, onCall attach.Call) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = attach.Serve(ctx, f.Attach(), func(context.Context) (attach.Ticket, error) { return f.Connector(c, nil), nil }, onCall)
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
}

// echo returns what it reads and half-closes at the end.
func echo(_ context.Context, _ ticket.Handle, raw net.Conn) {
	defer raw.Close()
	_, _ = io.Copy(raw, raw)
	_ = raw.(*net.TCPConn).CloseWrite()
}

func withTimeout(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func dial(t testing.TB, f *relaytest.Fixture, tk attach.Ticket) net.Conn {
	t.Helper()
	c, err := attach.DialTCP(withTimeout(t), f.Attach(), tk)
	if err != nil {
		t.Fatalf("DialTCP: %v", err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestTCPCarriesBytesBothWaysWithHalfClose(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	c := ticket.NewHandle()
	serve(t, f, c, echo)
	tk := f.Client(c, nil)
	conn := dial(t, f, tk)
	sent := make([]byte, 32<<20)
	rand.Read(sent)
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = conn.Write(sent)
		_ = conn.(*net.TCPConn).CloseWrite()
	})
	got, err := io.ReadAll(conn)
	wg.Wait()
	if err != nil || sha256.Sum256(got) != sha256.Sum256(sent) {
		t.Fatalf("echo of %d bytes gave %d bytes, %v", len(sent), len(got), err)
	}
	use := f.Relay.TakeUsage()
	if len(use) != 1 || use[0].Link != tk.Handle || use[0].Up != uint64(len(sent)) || use[0].Down != uint64(len(sent)) {
		t.Errorf("TakeUsage() = %+v, want %d bytes each way for %s", use, len(sent), tk.Handle)
	}
}

func TestTCPRefusesWhatIsNotTheHolders(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	c := ticket.NewHandle()
	serve(t, f, c, echo)
	other := relaytest.New(t, relay.Limits{})
	good := f.Client(c, nil)
	forged := other.Client(c, nil)
	stolen := good
	stolen.MACKey = ticket.NewMACKey()
	tampered := good
	tampered.Sealed = bytes.Clone(good.Sealed)
	tampered.Sealed[len(tampered.Sealed)-1] ^= 1
	foreign := f.Client(c, func(tk *ticket.Ticket) { tk.Relay = other.ID })
	expired := f.Client(c, func(tk *ticket.Ticket) {
		tk.NotBefore, tk.Expires = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	})
	asConnector := f.Connector(c, nil)
	cases := map[string]struct {
		tk   attach.Ticket
		code wire.Code
	}{
		"forged":       {forged, wire.CodeTicket},
		"stolen":       {stolen, wire.CodeTicket},
		"tampered":     {tampered, wire.CodeTicket},
		"foreign":      {foreign, wire.CodeTicket},
		"expired":      {expired, wire.CodeTicket},
		"wrong role":   {asConnector, wire.CodeTicket},
		"no connector": {f.Client(ticket.NewHandle(), nil), wire.CodeNoConnector},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := attach.DialTCP(withTimeout(t), f.Attach(), tc.tk)
			if !errors.Is(err, &attach.RefusedError{Code: tc.code}) {
				t.Errorf("DialTCP = %v, want refusal %s", err, tc.code)
			}
		})
	}
	dial(t, f, good)
}

func TestTCPRefusesUnknownBrokerKey(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	other := relaytest.New(t, relay.Limits{})
	f2 := *f
	f2.Signer = other.Signer
	tk := f2.Client(ticket.NewHandle(), nil)
	_, err := attach.DialTCP(withTimeout(t), f.Attach(), tk)
	if !errors.Is(err, &attach.RefusedError{Code: wire.CodeTicket}) {
		t.Errorf("DialTCP = %v, want refusal", err)
	}
	if n := f.Relay.Drops()["bad_signature"]; n != 1 {
		t.Errorf("bad_signature = %d, want 1", n)
	}
}

func TestCutAndRevokeEndTCPAtOnce(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	c := ticket.NewHandle()
	ended := make(chan error, 2)
	serve(t, f, c, func(_ context.Context, _ ticket.Handle, raw net.Conn) {
		defer raw.Close()
		_, err := io.Copy(raw, raw)
		ended <- err
	})
	tk, stays := f.Client(c, nil), f.Client(c, nil)
	conn, other := dial(t, f, tk), dial(t, f, stays)
	roundTrip(t, conn)
	roundTrip(t, other)
	f.Relay.Revoke(relay.Revocation{Handles: []ticket.Handle{tk.Handle}, At: time.Now()})
	if _, err := conn.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("read after revocation = %v, want a reset", err)
	}
	if err := <-ended; err == nil {
		t.Errorf("connector saw an orderly end, want a reset")
	}
	_, err := attach.DialTCP(withTimeout(t), f.Attach(), tk)
	if !errors.Is(err, &attach.RefusedError{Code: wire.CodeRevoked}) {
		t.Errorf("DialTCP with a revoked ticket = %v, want refusal", err)
	}
	roundTrip(t, other)
	newer := f.Client(c, func(n *ticket.Ticket) { n.Handle, n.NotBefore = tk.Handle, time.Now().Add(2*time.Second) })
	roundTrip(t, dial(t, f, newer))
}

func roundTrip(t testing.TB, c net.Conn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	b := []byte("hello")
	if _, err := c.Write(b); err != nil {
		t.Fatalf("write: %v", err)
	}
	got := make([]byte, len(b))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, b) {
		t.Fatalf("echo = %q, %v", got, err)
	}
}

func TestConnectorAttachesAgainAfterRelayRestart(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	c := ticket.NewHandle()
	serve(t, f, c, echo)
	tk := f.Client(c, nil)
	conn := dial(t, f, tk)
	roundTrip(t, conn)
	f.Stop()
	if _, err := io.ReadAll(conn); err == nil {
		t.Log("relay stop ended the stream orderly")
	}
	f.Start()
	// The relay waits for the connector, so the first call after a restart may succeed.
	roundTrip(t, dialRetry(t, f, tk))
}

func dialRetry(t testing.TB, f *relaytest.Fixture, tk attach.Ticket) net.Conn {
	t.Helper()
	ctx := withTimeout(t)
	for {
		c, err := attach.DialTCP(ctx, f.Attach(), tk)
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
			return c
		}
		if ctx.Err() != nil {
			t.Fatalf("DialTCP: %v", err)
		}
	}
}

func TestFlowsPerLinkAreLimited(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	c := ticket.NewHandle()
	serve(t, f, c, echo)
	tk := f.Client(c, func(tk *ticket.Ticket) { tk.Flows = 2 })
	dial(t, f, tk)
	dial(t, f, tk)
	_, err := attach.DialTCP(withTimeout(t), f.Attach(), tk)
	if !errors.Is(err, &attach.RefusedError{Code: wire.CodeLimit}) {
		t.Errorf("third DialTCP = %v, want limit", err)
	}
}

func TestRenewNeedsALinkAndTheSameConnector(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	c := ticket.NewHandle()
	serve(t, f, c, echo)
	tk := f.Client(c, nil)
	conn := dial(t, f, tk)
	same := func(n *ticket.Ticket) { n.Handle = tk.Handle }
	if err := attach.Renew(withTimeout(t), f.Attach(), f.Client(c, same)); err != nil {
		t.Errorf("Renew: %v", err)
	}
	if err := attach.Renew(withTimeout(t), f.Attach(), f.Client(ticket.NewHandle(), same)); err == nil {
		t.Error("Renew towards another connector succeeded")
	}
	if err := attach.Renew(withTimeout(t), f.Attach(), f.Client(c, nil)); err == nil {
		t.Error("Renew of an unknown link succeeded")
	}
	roundTrip(t, conn)
}
