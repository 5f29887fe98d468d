package tls_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/carrier/tls"
	"github.com/postern-zt/postern/netstack/peer"
	"github.com/postern-zt/postern/test/netlab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newCredentials(t *testing.T) *peer.Credentials {
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

// join makes both ends of a carrier over s; expect is what the client wants to see.
func join(t *testing.T, s *netlab.Stream, device, connector *peer.Credentials, expect func(peer.Identity) error) (client, server *tls.Carrier, err error) {
	t.Helper()
	cc, err := peer.ClientConfig(peer.Config{Credentials: device, Expect: expect})
	if err != nil {
		t.Fatal(err)
	}
	sc, err := peer.ServerConfig(peer.Config{Credentials: connector, Expect: peer.Anyone})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server, _ = tls.Server(context.Background(), s.B, tls.Config{TLS: sc})
	}()
	client, err = tls.Client(t.Context(), s.A, tls.Config{TLS: cc, Path: "lab"})
	if err != nil {
		s.Reset()
	}
	<-done
	return client, server, err
}

func pairOf(t *testing.T) (client, server *tls.Carrier, s *netlab.Stream) {
	t.Helper()
	s = netlab.NewStream(netlab.StreamConfig{})
	device, connector := newCredentials(t), newCredentials(t)
	client, server, err := join(t, s, device, connector, peer.Exactly(connector.KeyID()))
	if err != nil {
		t.Fatal(err)
	}
	if client.Peer().KeyID != connector.KeyID() || server.Peer().KeyID != device.KeyID() {
		t.Fatal("the carrier names the wrong peer")
	}
	t.Cleanup(func() {
		_ = client.Close()
		_ = server.Close()
	})
	return client, server, s
}

func TestStreamBothWays(t *testing.T) {
	client, server, _ := pairOf(t)
	up, err := client.OpenStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 3<<20)
	_, _ = rand.Read(want)
	go func() {
		_, _ = up.Write(want)
		_ = up.CloseWrite()
	}()
	down, err := server.AcceptStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(down)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	_, _ = down.Write([]byte("answer"))
	_ = down.Close()
	if got, err := io.ReadAll(up); err != nil || string(got) != "answer" {
		t.Errorf("answer = %q, %v", got, err)
	}
	if client.Kind() != carrier.TLS || client.Path() != "lab" {
		t.Errorf("kind %s, path %s", client.Kind(), client.Path())
	}
}

func TestForeignPeerIsRefused(t *testing.T) {
	other := newCredentials(t)
	s := netlab.NewStream(netlab.StreamConfig{})
	_, server, err := join(t, s, newCredentials(t), newCredentials(t), peer.Exactly(other.KeyID()))
	if !errors.Is(err, peer.ErrUnexpected) {
		t.Errorf("Client = %v, want an unexpected peer", err)
	}
	if server != nil {
		_ = server.Close()
	}
}

func TestSilentPeerTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := netlab.NewStream(netlab.StreamConfig{})
		s.Cut()
		start := time.Now()
		if _, _, err := join(t, s, newCredentials(t), newCredentials(t), peer.Anyone); err == nil {
			t.Error("handshake with nobody succeeded")
		}
		if d := time.Since(start); d > 16*time.Second {
			t.Errorf("took %s", d)
		}
	})
}

func TestDatagrams(t *testing.T) {
	client, server, _ := pairOf(t)
	for _, n := range []int{0, 1, client.MaxDatagram()} {
		want := bytes.Repeat([]byte{9}, n)
		if err := client.SendDatagram(want); err != nil {
			t.Fatal(err)
		}
		got, err := server.ReceiveDatagram(t.Context())
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: got %d, %v", n, len(got), err)
		}
		_ = server.SendDatagram(got)
		if back, err := client.ReceiveDatagram(t.Context()); err != nil || len(back) != n {
			t.Errorf("%d bytes back: got %d, %v", n, len(back), err)
		}
	}
	if err := client.SendDatagram(make([]byte, client.MaxDatagram()+1)); !errors.Is(err, carrier.ErrDatagramTooLarge) {
		t.Errorf("too large: %v", err)
	}
}

// On a path that does not move, datagrams are dropped, oldest first, and nobody waits.
func TestDatagramsDropTheOldest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, s := pairOf(t)
		s.Cut()
		start := time.Now()
		for i := range 20000 {
			if err := client.SendDatagram([]byte{byte(i >> 8), byte(i)}); err != nil {
				t.Fatal(err)
			}
		}
		if time.Since(start) != 0 {
			t.Error("SendDatagram waited")
		}
		s.Heal()
		last := -1
		for last != 19999 {
			b, err := server.ReceiveDatagram(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			i := int(b[0])<<8 | int(b[1])
			if i <= last {
				t.Fatalf("%d after %d", i, last)
			}
			last = i
		}
	})
}

func TestDeathIsSeen(t *testing.T) {
	client, server, s := pairOf(t)
	st, err := client.OpenStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.Reset()
	<-client.Done()
	<-server.Done()
	if client.Err() == nil {
		t.Error("a dead carrier has no error")
	}
	if _, err := st.Read(make([]byte, 1)); err == nil {
		t.Error("a stream of a dead carrier reads")
	}
	if _, err := client.OpenStream(t.Context()); err == nil {
		t.Error("a dead carrier opens streams")
	}
}

func TestCloseIsFinal(t *testing.T) {
	client, _, _ := pairOf(t)
	_ = client.Close()
	_ = client.Close()
	if !errors.Is(client.Err(), net.ErrClosed) {
		t.Errorf("Err = %v, want net.ErrClosed", client.Err())
	}
	if _, err := client.AcceptStream(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("AcceptStream = %v", err)
	}
	if _, err := client.ReceiveDatagram(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("ReceiveDatagram = %v", err)
	}
}

// Abort and OpenStream never wait for a path that does not move; Close ends it all.
func TestNothingWaitsForASilentPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _, s := pairOf(t)
		st, err := client.OpenStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.Cut()
		wrote := make(chan error, 1)
		go func() {
			_, err := st.Write(make([]byte, 64<<20))
			wrote <- err
		}()
		synctest.Wait()
		start := time.Now()
		st.Abort()
		other, err := client.OpenStream(t.Context())
		if err != nil {
			t.Fatalf("OpenStream = %v", err)
		}
		_ = other.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := other.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Write behind one that is stuck = %v", err)
		}
		_ = client.Close()
		if err := <-wrote; err == nil {
			t.Error("a write into nothing succeeded")
		}
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("took %s", d)
		}
	})
}

func TestRoundTripTimeIsMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := netlab.NewStream(netlab.StreamConfig{Latency: 20 * time.Millisecond})
		connector := newCredentials(t)
		client, server, err := join(t, s, newCredentials(t), connector, peer.Exactly(connector.KeyID()))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		defer server.Close()
		<-time.After(time.Second) // fake time
		if rtt := client.RTT(); rtt < 40*time.Millisecond || rtt > 50*time.Millisecond {
			t.Errorf("RTT = %s, want 40 ms", rtt)
		}
	})
}
