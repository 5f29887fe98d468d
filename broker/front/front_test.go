package front_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-zt/postern/broker/front"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/relay/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func certificate(t *testing.T) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// start runs a front whose owners answer with their own name.
func start(t *testing.T) string {
	t.Helper()
	return startOn(t, listen(t), nil)
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func startOn(t *testing.T, l net.Listener, refused func()) string {
	t.Helper()
	cert := certificate(t)
	say := func(word string) func(context.Context, *tls.Conn) {
		return func(_ context.Context, c *tls.Conn) { io.WriteString(c, word); c.Close() }
	}
	f, err := front.New(front.Config{
		Listener: l, Internal: func() (*tls.Certificate, error) { return cert, nil },
		Control: say("control"), Relay: say("relay"), Refused: refused, Log: slog.New(slog.DiscardHandler),
		Browser: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) }),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return l.Addr().String()
}

func TestDispatchByALPN(t *testing.T) {
	addr := start(t)
	for alpn, want := range map[string]struct {
		word  string
		asked bool
	}{control.ALPN: {"control", true}, wire.ALPN: {"relay", false}} {
		asked := false
		c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn},
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				asked = true
				return &tls.Certificate{}, nil
			}})
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(c)
		c.Close()
		if string(got) != want.word || asked != want.asked {
			t.Errorf("%s: %q, certificate asked for: %v", alpn, got, asked)
		}
	}
}

func TestBrowserIsNotAskedForACertificate(t *testing.T) {
	addr := start(t)
	for _, h2 := range []bool{true, false} {
		tr := &http.Transport{ForceAttemptHTTP2: h2, TLSClientConfig: &tls.Config{InsecureSkipVerify: true,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				t.Error("a browser was asked for a certificate")
				return &tls.Certificate{}, nil
			}}}
		resp, err := (&http.Client{Transport: tr}).Get("https://" + addr + "/")
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		tr.CloseIdleConnections()
		if want := map[bool]string{true: "HTTP/2.0", false: "HTTP/1.1"}[h2]; string(body) != want {
			t.Errorf("served as %q, want %q", body, want)
		}
	}
}

func TestNothingButTLS13(t *testing.T) {
	addr := start(t)
	for _, cfg := range []*tls.Config{
		{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12},
		{InsecureSkipVerify: true, NextProtos: []string{"smtp"}},
	} {
		if c, err := tls.Dial("tcp", addr, cfg); err == nil {
			c.Close()
			t.Errorf("handshake succeeded with %v", cfg.NextProtos)
		}
	}
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	got, _ := io.ReadAll(c)
	// A TLS alert is all that a stranger gets.
	if len(got) > 7 || len(got) > 0 && got[0] != 21 {
		t.Errorf("plain HTTP got %q", got)
	}
}

// from is a listener whose callers seem to come from where the test says.
type from struct {
	net.Listener
	addr atomic.Pointer[net.TCPAddr]
}

type fromConn struct {
	net.Conn
	addr net.Addr
}

func (c fromConn) RemoteAddr() net.Addr { return c.addr }

func (f *from) Accept() (net.Conn, error) {
	c, err := f.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return fromConn{c, f.addr.Load()}, nil
}

func (f *from) set(ip string) {
	f.addr.Store(&net.TCPAddr{IP: net.ParseIP(ip), Port: 4000})
}

// served reports whether the port shakes hands; the connection stays open until the end.
func served(t *testing.T, addr string) bool {
	t.Helper()
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	if err != nil {
		return false
	}
	t.Cleanup(func() { c.Close() })
	// Who is answered has no unfinished handshake any more.
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	_, err = c.Read(make([]byte, 1))
	return err == nil
}

func TestOneSourceDoesNotTakeAllPlaces(t *testing.T) {
	for _, c := range []struct{ name, silent, same, other string }{
		{"IPv4", "192.0.2.1", "192.0.2.1", "192.0.2.2"},
		{"IPv4 within IPv6", "192.0.2.1", "::ffff:192.0.2.1", "::ffff:192.0.2.2"},
		{"IPv6", "2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := &from{Listener: listen(t)}
			l.set(c.silent)
			var refused atomic.Int32
			addr := startOn(t, l, func() { refused.Add(1) })
			for range 40 { // a handshake that has ended keeps no place
				if !served(t, addr) {
					t.Fatal("handshakes one after the other were refused")
				}
			}
			var held []net.Conn
			for range 32 {
				held = append(held, silent(t, addr))
			}
			l.set(c.same)
			last := silent(t, addr)
			last.SetReadDeadline(time.Now().Add(20 * time.Second))
			if _, err := last.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the connection above the limit was not closed: %v", err)
			}
			if served(t, addr) || refused.Load() != 2 {
				t.Errorf("a source with 32 unfinished handshakes got another one; %d were counted", refused.Load())
			}
			l.set(c.other)
			if !served(t, addr) {
				t.Error("another source was shut out")
			}
			l.set(c.same)
			held[0].Close()
			for !served(t, addr) { // until the port has seen the end
				if t.Context().Err() != nil {
					t.Fatal("the place was not given back")
				}
			}
		})
	}
}

// silent connects and says nothing.
func silent(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
