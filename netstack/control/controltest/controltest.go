// Package controltest is a broker's CA and a control server on loopback, for the tests of
// everything that talks to a broker. The services behind the server are the test's own.
// Only tests import it. An Authority is safe for concurrent use.
package controltest

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/netstack/control"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
)

// Authority is a broker's CA.
type Authority struct {
	CA *x509.Certificate

	t   testing.TB
	key *ecdsa.PrivateKey
}

// New makes a CA that is valid for an hour around now.
func New(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{t: t, key: Key(t)}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.CA = a.sign(tmpl, tmpl, a.key.Public())
	return a
}

// Key makes an identity key.
func Key(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return k
}

// Pin is the fingerprint of the CA key.
func (a *Authority) Pin() ids.KeyID { return ids.KeyIDOf(a.CA.RawSubjectPublicKeyInfo) }

// Broker is where a server of this CA is.
func (a *Authority) Broker(addr string) control.Broker {
	return control.Broker{Address: addr, Pin: a.Pin()}
}

// Issue signs a certificate for spiffe://org/PATH from five minutes ago to an hour ahead.
func (a *Authority) Issue(path string, pub any, usage ...x509.ExtKeyUsage) *x509.Certificate {
	a.t.Helper()
	return a.IssueFor(path, pub, time.Now().Add(-5*time.Minute), time.Now().Add(time.Hour), usage...)
}

// IssueFor is Issue with another period.
func (a *Authority) IssueFor(path string, pub any, from, to time.Time, usage ...x509.ExtKeyUsage) *x509.Certificate {
	a.t.Helper()
	return a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: from, NotAfter: to,
		URIs: []*url.URL{{Scheme: "spiffe", Host: "org", Path: path}}, ExtKeyUsage: usage, BasicConstraintsValid: true,
	}, a.CA, pub)
}

// Chain answers a certificate request as a broker does: leaf and CA.
func (a *Authority) Chain(path string, csrDER []byte) [][]byte {
	a.t.Helper()
	csr, err := x509.ParseCertificateRequest(csrDER)
	must(a.t, err)
	leaf := a.Issue(path, csr.PublicKey, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
	return [][]byte{leaf.Raw, a.CA.Raw}
}

// Signer makes a broker's signing key with its certificate.
func (a *Authority) Signer() (*seal.Signer, []byte) {
	a.t.Helper()
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	must(a.t, err)
	return seal.NewSigner(priv), a.Issue("/signer/brk_1", priv.Public()).Raw
}

func (a *Authority) sign(tmpl, parent *x509.Certificate, pub any) *x509.Certificate {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, a.key)
	must(a.t, err)
	c, err := x509.ParseCertificate(der)
	must(a.t, err)
	return c
}

// Server is a running control server.
type Server struct {
	Addr string
	stop func()
}

// Serve runs handler as a broker's control plane on addr ("" takes a free port) until Stop
// or the end of the test.
func (a *Authority) Serve(addr string, handler http.Handler) *Server {
	a.t.Helper()
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	key := Key(a.t)
	cert := a.Issue("/broker/brk_1", key.Public(), x509.ExtKeyUsageServerAuth)
	l, err := tls.Listen("tcp", addr, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{control.ALPN}, ClientAuth: tls.RequestClientCert,
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw, a.CA.Raw}, PrivateKey: key}},
	})
	must(a.t, err)
	srv := control.NewServer(handler)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { acceptAll(ctx, l, srv) })
	s := &Server{Addr: l.Addr().String(), stop: sync.OnceFunc(func() { cancel(); l.Close(); wg.Wait() })}
	a.t.Cleanup(s.Stop)
	return s
}

// Stop ends the server and its connections. Safe twice.
func (s *Server) Stop() { s.stop() }

func acceptAll(ctx context.Context, l net.Listener, srv *control.Server) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			tc := c.(*tls.Conn)
			if tc.HandshakeContext(ctx) == nil {
				srv.ServeConn(ctx, tc)
			}
			tc.Close()
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Refusal is how a broker refuses a call with a reason.
func Refusal(code connect.Code, reason controlv1.Reason, text string) *connect.Error {
	return withReason(connect.NewError(code, errors.New(text)), reason)
}

// Heard is Refusal as the caller gets it from the wire.
func Heard(code connect.Code, reason controlv1.Reason, text string) *connect.Error {
	return withReason(connect.NewWireError(code, errors.New(text)), reason)
}

func withReason(err *connect.Error, reason controlv1.Reason) *connect.Error {
	d, bad := connect.NewErrorDetail(&controlv1.ErrorDetail{Reason: reason})
	if bad != nil {
		panic(bad)
	}
	err.AddDetail(d)
	return err
}
