package peer_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-zt/postern/netstack/peer"
	"github.com/postern-zt/postern/proto/ids"
)

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func credentials(t *testing.T, cfg peer.CredentialsConfig) *peer.Credentials {
	t.Helper()
	if cfg.Identity == nil {
		cfg.Identity = newKey(t)
	}
	c, err := peer.NewCredentials(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// shake runs a handshake over an in-memory pipe and returns both sides' errors and the
// identity that the server saw.
func shake(t *testing.T, server, client *tls.Config) (seen peer.Identity, serverErr, clientErr error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	s, c := tls.Server(a, server), tls.Client(b, client)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if serverErr = s.HandshakeContext(context.Background()); serverErr != nil {
			_ = a.Close()
			return
		}
		_, _ = s.Write([]byte("x"))
	}()
	if clientErr = c.HandshakeContext(t.Context()); clientErr == nil {
		_, clientErr = c.Read(make([]byte, 1))
	}
	_ = b.Close()
	<-done
	if serverErr == nil {
		seen, serverErr = peer.FromState(s.ConnectionState(), time.Now())
	}
	return seen, serverErr, clientErr
}

func mustServer(t *testing.T, cfg peer.Config) *tls.Config {
	t.Helper()
	c, err := peer.ServerConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustClient(t *testing.T, cfg peer.Config) *tls.Config {
	t.Helper()
	c, err := peer.ClientConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestHandshake(t *testing.T) {
	dev := credentials(t, peer.CredentialsConfig{Endorsement: []byte("endorsed")})
	con := credentials(t, peer.CredentialsConfig{})
	seen, serverErr, clientErr := shake(t,
		mustServer(t, peer.Config{Credentials: con, Expect: peer.Anyone}),
		mustClient(t, peer.Config{Credentials: dev, Expect: peer.Exactly(con.KeyID())}))
	if serverErr != nil || clientErr != nil {
		t.Fatalf("handshake: %v, %v", serverErr, clientErr)
	}
	if seen.KeyID != dev.KeyID() || string(seen.Endorsement) != "endorsed" {
		t.Errorf("server saw %v %q, want %v", seen, seen.Endorsement, dev.KeyID())
	}
}

func TestExpectationRefuses(t *testing.T) {
	dev, con, other := credentials(t, peer.CredentialsConfig{}), credentials(t, peer.CredentialsConfig{}), credentials(t, peer.CredentialsConfig{})
	server := mustServer(t, peer.Config{Credentials: con, Expect: peer.Exactly(other.KeyID())})
	client := mustClient(t, peer.Config{Credentials: dev, Expect: peer.Exactly(con.KeyID())})
	if _, serverErr, clientErr := shake(t, server, client); !errors.Is(serverErr, peer.ErrUnexpected) || clientErr == nil {
		t.Errorf("server wants another: %v, %v", serverErr, clientErr)
	}
	server = mustServer(t, peer.Config{Credentials: con, Expect: peer.Anyone})
	for _, want := range []ids.KeyID{other.KeyID(), {}} {
		client = mustClient(t, peer.Config{Credentials: dev, Expect: peer.Exactly(want)})
		if _, _, clientErr := shake(t, server, client); !errors.Is(clientErr, peer.ErrUnexpected) {
			t.Errorf("client wants %v: %v", want, clientErr)
		}
	}
	if _, err := peer.ServerConfig(peer.Config{Credentials: con}); err == nil {
		t.Error("a configuration without an expectation was accepted")
	}
}

// forged is a client that shows whatever chain the attack wants.
func forged(chain tls.Certificate, alpn ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, NextProtos: alpn,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &chain, nil },
	}
}

// make is one certificate signed by parent's key.
func makeCert(t *testing.T, pub crypto.PublicKey, parent *x509.Certificate, signer crypto.Signer, ca bool, from, to time.Time) []byte {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "attack"}, NotBefore: from, NotAfter: to,
		IsCA: ca, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	if parent == nil {
		parent = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, signer)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestForgedChains(t *testing.T) {
	now := time.Now()
	day := now.Add(time.Hour)
	id, evil, link := newKey(t), newKey(t), newKey(t)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parse := func(der []byte) *x509.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	identity := makeCert(t, id.Public(), nil, id, true, now, day)
	evilIdentity := makeCert(t, evil.Public(), nil, evil, true, now, day)
	rsaIdentity := makeCert(t, rsaKey.Public(), nil, rsaKey, true, now, day)
	bigIdentity := makeCert(t, p384.Public(), nil, p384, true, now, day)
	notSelf := makeCert(t, id.Public(), parse(evilIdentity), evil, true, now, day)
	good := makeCert(t, link.Public(), parse(identity), id, false, now, day)
	tests := map[string]struct {
		chain [][]byte
		key   crypto.Signer
		want  error
	}{
		"control":                  {[][]byte{good, identity}, link, nil},
		"link signed by another":   {[][]byte{makeCert(t, link.Public(), parse(evilIdentity), evil, false, now, day), identity}, link, peer.ErrSignature},
		"identity alone":           {[][]byte{identity}, id, peer.ErrChain},
		"three certificates":       {[][]byte{good, identity, evilIdentity}, link, peer.ErrChain},
		"identity twice":           {[][]byte{identity, identity}, id, peer.ErrChain},
		"link is a CA":             {[][]byte{makeCert(t, link.Public(), parse(identity), id, true, now, day), identity}, link, peer.ErrChain},
		"identity not self-signed": {[][]byte{good, notSelf}, link, peer.ErrSignature},
		"expired":                  {[][]byte{makeCert(t, link.Public(), parse(identity), id, false, now.Add(-time.Hour), now.Add(-6*time.Minute)), identity}, link, peer.ErrExpired},
		"expired, in tolerance":    {[][]byte{makeCert(t, link.Public(), parse(identity), id, false, now.Add(-time.Hour), now.Add(-4*time.Minute)), identity}, link, nil},
		"not yet valid":            {[][]byte{makeCert(t, link.Public(), parse(identity), id, false, now.Add(6*time.Minute), day), identity}, link, peer.ErrExpired},
		"valid for two days":       {[][]byte{makeCert(t, link.Public(), parse(identity), id, false, now, now.Add(48*time.Hour)), identity}, link, peer.ErrExpired},
		"RSA identity":             {[][]byte{makeCert(t, link.Public(), parse(rsaIdentity), rsaKey, false, now, day), rsaIdentity}, link, peer.ErrKey},
		"RSA link":                 {[][]byte{makeCert(t, rsaKey.Public(), parse(identity), id, false, now, day), identity}, rsaKey, peer.ErrKey},
		"P-384 identity":           {[][]byte{makeCert(t, link.Public(), parse(bigIdentity), p384, false, now, day), bigIdentity}, link, peer.ErrKey},
	}
	server := mustServer(t, peer.Config{Credentials: credentials(t, peer.CredentialsConfig{}), Expect: peer.Anyone})
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err, _ := shake(t, server, forged(tls.Certificate{Certificate: tt.chain, PrivateKey: tt.key}, peer.ALPN))
			if !errors.Is(err, tt.want) || tt.want == nil && err != nil {
				t.Errorf("server: %v, want %v", err, tt.want)
			}
		})
	}
}

func TestProtocolMustMatch(t *testing.T) {
	dev := credentials(t, peer.CredentialsConfig{})
	cert, err := dev.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	server := mustServer(t, peer.Config{Credentials: credentials(t, peer.CredentialsConfig{}), Expect: peer.Anyone})
	for _, alpn := range [][]string{nil, {"h2"}} {
		if _, err, _ := shake(t, server, forged(*cert, alpn...)); err == nil {
			t.Errorf("ALPN %q was accepted", alpn)
		}
	}
	old := forged(*cert, peer.ALPN)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, err, _ := shake(t, server, old); err == nil {
		t.Error("TLS 1.2 was accepted")
	}
	anonymous := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{peer.ALPN}}
	if _, err, _ := shake(t, server, anonymous); err == nil {
		t.Error("a client without a certificate was accepted")
	}
}

func TestIdentityKeyMustBeP256(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := peer.NewCredentials(peer.CredentialsConfig{Identity: rsaKey}); !errors.Is(err, peer.ErrKey) {
		t.Errorf("RSA identity: %v", err)
	}
}

func TestLinkCertificateIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := credentials(t, peer.CredentialsConfig{})
		first, err := c.Certificate()
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(11 * time.Hour) // fake time
		if again, _ := c.Certificate(); again != first {
			t.Error("renewed before half of its life")
		}
		<-time.After(2 * time.Hour)
		again, err := c.Certificate()
		if err != nil || again == first {
			t.Errorf("not renewed after half of its life: %v", err)
		}
	})
}

// TestClockSetBackRenews: a certificate made by a clock that was ahead is good for nobody
// until its time comes, so it is not kept.
func TestClockSetBackRenews(t *testing.T) {
	ahead := time.Hour
	c := credentials(t, peer.CredentialsConfig{Now: func() time.Time { return time.Now().Add(ahead) }})
	first, err := c.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	ahead -= time.Second
	if again, _ := c.Certificate(); again != first {
		t.Error("renewed for a second")
	}
	ahead = 0
	again, err := c.Certificate()
	if err != nil || again == first {
		t.Errorf("kept from the future: %v", err)
	}
}
