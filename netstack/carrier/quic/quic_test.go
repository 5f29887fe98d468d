package quic_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/carrier/quic"
	"github.com/postern-zt/postern/netstack/peer"
	"github.com/postern-zt/postern/netstack/relay"
	"github.com/postern-zt/postern/netstack/relay/attach"
	"github.com/postern-zt/postern/netstack/relay/relaytest"
	"github.com/postern-zt/postern/proto/ticket"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func credentials(t testing.TB) *peer.Credentials {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c, err := peer.NewCredentials(peer.CredentialsConfig{Identity: key})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// world is a relay with one connector attached over UDP, and a client's identity.
type world struct {
	f         *relaytest.Fixture
	c         ticket.Handle
	connector *peer.Credentials
	client    *peer.Credentials
	binding   *attach.Binding
}

func newWorld(t testing.TB, onCarrier func(context.Context, carrier.Carrier)) *world {
	t.Helper()
	w := &world{f: relaytest.New(t, relay.Limits{}), c: ticket.NewHandle(), connector: credentials(t), client: credentials(t)}
	b, err := attach.BindUDP(withTimeout(t), w.f.Attach(), relaytest.Socket(t), attach.Fixed(w.f.Connector(w.c, nil)))
	if err != nil {
		t.Fatalf("BindUDP: %v", err)
	}
	w.binding = b
	conf, err := peer.ServerConfig(peer.Config{Credentials: w.connector, Expect: peer.Exactly(w.client.KeyID())})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = quic.Serve(ctx, b, quic.Config{TLS: conf}, func(ctx context.Context, _ ticket.Handle, c *quic.Carrier) { onCarrier(ctx, c) })
	})
	t.Cleanup(func() { cancel(); _ = b.Close(); wg.Wait() })
	return w
}

func (w *world) config(t testing.TB, creds *peer.Credentials, expect func(peer.Identity) error) quic.Config {
	t.Helper()
	conf, err := peer.ClientConfig(peer.Config{Credentials: creds, Expect: expect})
	if err != nil {
		t.Fatal(err)
	}
	return quic.Config{TLS: conf}
}

func (w *world) dial(t testing.TB, tk attach.Ticket) *quic.Carrier {
	t.Helper()
	c, err := quic.DialRelay(withTimeout(t), w.f.Attach(), relaytest.Socket(t), attach.Fixed(tk),
		w.config(t, w.client, peer.Exactly(w.connector.KeyID())))
	if err != nil {
		t.Fatalf("DialRelay: %v", err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func withTimeout(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// echoStreams answers every stream with what it reads, and every datagram.
func echoStreams(ctx context.Context, c carrier.Carrier) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for {
			b, err := c.ReceiveDatagram(ctx)
			if err != nil {
				return
			}
			_ = c.SendDatagram(b)
		}
	})
	for {
		s, err := c.AcceptStream(ctx)
		if err != nil {
			return
		}
		wg.Go(func() {
			_, _ = io.Copy(s, s)
			_ = s.CloseWrite()
		})
	}
}

func open(t testing.TB, c carrier.Carrier) carrier.Stream {
	t.Helper()
	s, err := c.OpenStream(withTimeout(t))
	if err != nil {
		t.Fatalf("OpenStream: %v", err)
	}
	return s
}

// transfer sends data through an echoing stream and compares what comes back.
func transfer(s carrier.Stream, data []byte) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		_, _ = s.Write(data)
		_ = s.CloseWrite()
	})
	got, err := io.ReadAll(s)
	if err != nil {
		return err
	}
	if sha256.Sum256(got) != sha256.Sum256(data) {
		return fmt.Errorf("echo of %d bytes gave %d others", len(data), len(got))
	}
	return nil
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func TestHundredMegabytesThroughTheRelay(t *testing.T) {
	w := newWorld(t, echoStreams)
	c := w.dial(t, w.f.Client(w.c, nil))
	if err := transfer(open(t, c), random(100<<20)); err != nil {
		t.Fatal(err)
	}
	if c.Peer().KeyID != w.connector.KeyID() || c.Kind() != carrier.QUIC || c.RTT() == 0 {
		t.Errorf("Peer %s, Kind %s, RTT %s", c.Peer(), c.Kind(), c.RTT())
	}
	t.Logf("drops %v, binding dropped %d", w.f.Relay.Drops(), w.binding.Dropped())
}

func TestHundredStreamsAtOnce(t *testing.T) {
	w := newWorld(t, echoStreams)
	c := w.dial(t, w.f.Client(w.c, nil))
	var wg sync.WaitGroup
	errs := make(chan error, 100)
	for range 100 {
		s := open(t, c)
		wg.Go(func() { errs <- transfer(s, random(256<<10)) })
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
}

func TestManyLinksShareTheConnectorsSocket(t *testing.T) {
	w := newWorld(t, echoStreams)
	var wg sync.WaitGroup
	for range 8 {
		c := w.dial(t, w.f.Client(w.c, nil))
		wg.Go(func() {
			s, err := c.OpenStream(t.Context())
			if err == nil {
				err = transfer(s, random(1<<20))
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestDatagrams(t *testing.T) {
	w := newWorld(t, echoStreams)
	c := w.dial(t, w.f.Client(w.c, nil))
	most := c.MaxDatagram()
	if most < 1100 || most > 1452 {
		t.Fatalf("MaxDatagram() = %d", most)
	}
	want := random(most)
	if err := c.SendDatagram(want); err != nil {
		t.Fatal(err)
	}
	got, err := c.ReceiveDatagram(withTimeout(t))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("echo of %d bytes gave %d bytes, %v", len(want), len(got), err)
	}
	if err := c.SendDatagram(random(9000)); !errors.Is(err, carrier.ErrDatagramTooLarge) {
		t.Errorf("SendDatagram(9000 bytes) = %v", err)
	}
}

func TestStreamEndsAreTold(t *testing.T) {
	streams := make(chan carrier.Stream, 1)
	w := newWorld(t, func(ctx context.Context, c carrier.Carrier) {
		for {
			s, err := c.AcceptStream(ctx)
			if err != nil {
				return
			}
			streams <- s
		}
	})
	c := w.dial(t, w.f.Client(w.c, nil))
	s := open(t, c)
	if _, err := s.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	theirs := <-streams
	s.Abort()
	if _, err := io.ReadAll(theirs); err == nil {
		t.Error("an aborted stream looks finished to the peer")
	}
	s2 := open(t, c)
	_, _ = s2.Write([]byte("x"))
	theirs = <-streams
	if err := s2.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(theirs); err != nil || string(got) != "x" {
		t.Errorf("read %q, %v", got, err)
	}
	if _, err := theirs.Write([]byte("y")); err != nil {
		t.Errorf("write after the peer's half close: %v", err)
	}
	_ = c.Close()
	<-c.Done()
	if c.Err() == nil || c.Close() != nil {
		t.Errorf("Err() = %v after Close", c.Err())
	}
}

func TestWrongIdentityIsRefusedOnBothSides(t *testing.T) {
	w := newWorld(t, echoStreams)
	stranger := credentials(t)
	try := func(cfg quic.Config) error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		c, err := quic.DialRelay(ctx, w.f.Attach(), relaytest.Socket(t), attach.Fixed(w.f.Client(w.c, nil)), cfg)
		if err != nil {
			return err
		}
		defer c.Close()
		// The client learns of the refusal of its certificate with the first answer.
		s, err := c.OpenStream(ctx)
		if err == nil {
			err = transfer(s, []byte("x"))
		}
		return err
	}
	if err := try(w.config(t, w.client, peer.Exactly(stranger.KeyID()))); err == nil {
		t.Error("client took another connector for its own")
	}
	if err := try(w.config(t, stranger, peer.Exactly(w.connector.KeyID()))); err == nil {
		t.Error("connector took another device for the expected one")
	}
	if err := try(w.config(t, w.client, peer.Exactly(w.connector.KeyID()))); err != nil {
		t.Errorf("the right ones: %v", err)
	}
}

func TestSecondCarrierOnTheSameLink(t *testing.T) {
	w := newWorld(t, echoStreams)
	tk := w.f.Client(w.c, nil)
	for range 3 {
		c := w.dial(t, tk)
		if err := transfer(open(t, c), random(1<<20)); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
}

func TestCarrierSurvivesRelayRestartAndRebind(t *testing.T) {
	w := newWorld(t, echoStreams)
	c := w.dial(t, w.f.Client(w.c, nil))
	s := open(t, c)
	done := make(chan error, 1)
	data := random(64 << 20)
	go func() { done <- transfer(s, data) }()
	w.f.Stop()
	w.f.Start()
	if err := <-done; err != nil {
		t.Fatalf("transfer over a relay restart: %v", err)
	}
	c.Rebind()
	if err := transfer(open(t, c), random(1<<20)); err != nil {
		t.Errorf("transfer after Rebind: %v", err)
	}
}

func TestCutEndsTheCarrier(t *testing.T) {
	w := newWorld(t, echoStreams)
	tk := w.f.Client(w.c, nil)
	cfg := w.config(t, w.client, peer.Exactly(w.connector.KeyID()))
	cfg.KeepAlive, cfg.MaxIdle = 200*time.Millisecond, time.Second
	c, err := quic.DialRelay(withTimeout(t), w.f.Attach(), relaytest.Socket(t), attach.Fixed(tk), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := transfer(open(t, c), random(1000)); err != nil {
		t.Fatal(err)
	}
	w.f.Relay.Revoke(relay.Revocation{Handles: []ticket.Handle{tk.Handle}, At: time.Now()})
	select {
	case <-c.Done():
	case <-withTimeout(t).Done():
		t.Fatal("carrier outlived its link")
	}
}

func TestDirectPathNeedsNoRelay(t *testing.T) {
	client, connector := credentials(t), credentials(t)
	near, far := relaytest.Socket(t), relaytest.Socket(t)
	addr := func(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }
	nearAddr, farAddr := addr(near), addr(far)
	theirs, err := quic.NewDirect(far, nearAddr)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := quic.NewDirect(near, farAddr)
	if err != nil {
		t.Fatal(err)
	}
	conf, err := peer.ServerConfig(peer.Config{Credentials: connector, Expect: peer.Exactly(client.KeyID())})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		_ = quic.ServePath(ctx, theirs, quic.Config{TLS: conf}, func(ctx context.Context, c *quic.Carrier) { echoStreams(ctx, c) })
	})
	clientConf, err := peer.ClientConfig(peer.Config{Credentials: client, Expect: peer.Exactly(connector.KeyID())})
	if err != nil {
		t.Fatal(err)
	}
	c, err := quic.Dial(withTimeout(t), ours, quic.Config{TLS: clientConf})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := transfer(open(t, c), random(8<<20)); err != nil {
		t.Error(err)
	}
}
