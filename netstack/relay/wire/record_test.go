package wire_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/postern-zt/postern/netstack/relay/wire"
)

func certificate(t testing.TB) tls.Certificate {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}
}

// TestRawBytesBehindTheLastRecordStay pipelines raw bytes right behind a TLS record: the
// reader of the record must leave them in the connection, every time.
func TestRawBytesBehindTheLastRecordStay(t *testing.T) {
	cert := certificate(t)
	for range 200 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		sent := make(chan error, 1)
		go func() { sent <- sendThenRaw(l.Addr().String()) }()
		got, raw, err := readThenRaw(l, cert)
		if err != nil || got != "ticket" || raw != "raw bytes, pipelined" {
			t.Fatalf("read %q then %q, %v", got, raw, err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
	}
}

func sendThenRaw(addr string) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	tc := tls.Client(wire.NewRecordConn(c), &tls.Config{InsecureSkipVerify: true})
	if _, err := tc.Write([]byte("ticket")); err != nil {
		return err
	}
	if _, err := c.Write([]byte("raw bytes, pipelined")); err != nil {
		return err
	}
	return c.(*net.TCPConn).CloseWrite()
}

func readThenRaw(l net.Listener, cert tls.Certificate) (string, string, error) {
	rl := wire.RecordListener{Listener: l}
	c, err := rl.Accept()
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	tc := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true})
	b := make([]byte, 6)
	if _, err := io.ReadFull(tc, b); err != nil {
		return "", "", err
	}
	raw, err := io.ReadAll(c.(*wire.RecordConn).Raw())
	return string(b), string(raw), err
}

func TestPassThroughReadsFreely(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go func() { _, _ = b.Write([]byte(strings.Repeat("x", 100))) }()
	c := wire.NewRecordConn(a)
	c.PassThrough()
	if n, err := c.Read(make([]byte, 200)); n != 100 || err != nil {
		t.Errorf("Read = %d, %v", n, err)
	}
}
