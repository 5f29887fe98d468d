package keys_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/postern-zt/postern/broker/keys"
	"github.com/postern-zt/postern/proto/ids"
)

// clock is a settable clock.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func testCA(t *testing.T, now func() time.Time) *keys.CA {
	t.Helper()
	ca, err := sqliteRing(t, now).CA()
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func parse(t *testing.T, der []byte, err error) *x509.Certificate {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestDeviceCertificate(t *testing.T) {
	c := &clock{at: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
	ca, key, id := testCA(t, c.now), p256(t), ids.New[ids.DeviceID]()
	der, err := ca.IssueDevice(key.Public(), id, keys.LeafLifetime)
	cert := parse(t, der, err)
	if got := cert.URIs[0].String(); got != "spiffe://"+string(org)+"/device/"+string(id) {
		t.Errorf("name = %s", got)
	}
	if got := c.at.Sub(cert.NotBefore); got != 5*time.Minute {
		t.Errorf("backdated by %v, want 5m", got)
	}
	wantKey, err := keys.KeyIDOf(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	sub, err := ca.Verify(cert, 0)
	if err != nil || sub.Kind != keys.Device || sub.ID != string(id) || sub.Key != wantKey {
		t.Errorf("Verify = %+v, %v", sub, err)
	}
}

func TestExpiredCertificateRenewsFor90Days(t *testing.T) {
	c := &clock{at: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
	ca := testCA(t, c.now)
	der, err := ca.IssueConnector(p256(t).Public(), ids.New[ids.ConnectorID](), keys.LeafLifetime)
	cert := parse(t, der, err)
	c.at = cert.NotAfter.Add(time.Second)
	if _, err := ca.Verify(cert, 0); !errors.Is(err, keys.ErrExpired) {
		t.Errorf("Verify of an expired certificate = %v, want ErrExpired", err)
	}
	if _, err := ca.Verify(cert, keys.RenewalGrace); err != nil {
		t.Errorf("Verify for renewal = %v", err)
	}
	c.at = cert.NotAfter.Add(keys.RenewalGrace + time.Second)
	if _, err := ca.Verify(cert, keys.RenewalGrace); !errors.Is(err, keys.ErrExpired) {
		t.Errorf("Verify after 90 days = %v, want ErrExpired", err)
	}
	c.at = cert.NotBefore.Add(-time.Second)
	if _, err := ca.Verify(cert, keys.RenewalGrace); !errors.Is(err, keys.ErrBadCertificate) {
		t.Errorf("Verify before its start = %v, want ErrBadCertificate", err)
	}
}

func TestVerifyRefusesForeignAndServerCertificates(t *testing.T) {
	ca, other := testCA(t, nil), testCA(t, nil)
	foreign, err := other.IssueDevice(p256(t).Public(), ids.New[ids.DeviceID](), time.Hour)
	if _, err := ca.Verify(parse(t, foreign, err), keys.RenewalGrace); !errors.Is(err, keys.ErrBadCertificate) {
		t.Errorf("foreign certificate = %v, want ErrBadCertificate", err)
	}
	server, err := ca.IssueServer(p256(t).Public(), ids.New[ids.BrokerID](), []string{"zt.example"}, nil, time.Hour)
	if _, err := ca.Verify(parse(t, server, err), 0); !errors.Is(err, keys.ErrBadCertificate) {
		t.Errorf("server certificate as client = %v, want ErrBadCertificate", err)
	}
	bad, err := ca.IssueDevice(p256(t).Public(), "dev_short", time.Hour)
	if _, err := ca.Verify(parse(t, bad, err), 0); !errors.Is(err, keys.ErrBadCertificate) {
		t.Errorf("malformed id = %v, want ErrBadCertificate", err)
	}
}

func TestIssueRefusesOtherKeyTypes(t *testing.T) {
	ca := testCA(t, nil)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, pub := range map[string]crypto.PublicKey{"P-384": p384.Public(), "Ed25519": ed, "nil": nil} {
		if _, err := ca.IssueDevice(pub, ids.New[ids.DeviceID](), time.Hour); !errors.Is(err, keys.ErrBadRequest) {
			t.Errorf("IssueDevice(%s) = %v, want ErrBadRequest", name, err)
		}
	}
}

func TestServerCertificateServesTLS13(t *testing.T) {
	ca, key := testCA(t, nil), p256(t)
	der, err := ca.IssueServer(key.Public(), ids.New[ids.BrokerID](), []string{"zt.example"}, []netip.Addr{netip.MustParseAddr("10.1.2.3")}, time.Hour)
	cert := parse(t, der, err)
	if err := cert.VerifyHostname("10.1.2.3"); err != nil {
		t.Error(err)
	}
	a, b := net.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- tls.Server(a, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}).HandshakeContext(t.Context())
	}()
	if err := tls.Client(b, &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: ca.Roots(), ServerName: "zt.example"}).HandshakeContext(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestRelayCertificateIsClientAndServer(t *testing.T) {
	ca, id := testCA(t, nil), ids.New[ids.RelayID]()
	der, err := ca.IssueRelay(p256(t).Public(), id, []string{"relay.example"}, nil, time.Hour)
	sub, err := ca.Verify(parse(t, der, err), 0)
	if err != nil || sub.Kind != keys.Relay || sub.ID != string(id) {
		t.Errorf("Verify = %+v, %v", sub, err)
	}
}

func csr(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "x"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestParseCSR(t *testing.T) {
	key := p256(t)
	good := csr(t, key)
	pub, err := keys.ParseCSR(good)
	if err != nil || !pub.Equal(key.Public()) {
		t.Fatalf("ParseCSR = %v, %v", pub, err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	unproven := append([]byte(nil), good...)
	unproven[len(unproven)-1] ^= 1
	for name, der := range map[string][]byte{
		"empty": nil, "truncated": good[:len(good)-3], "not proven": unproven, "Ed25519": csr(t, ed), "too large": make([]byte, 9<<10),
	} {
		if _, err := keys.ParseCSR(der); !errors.Is(err, keys.ErrBadRequest) {
			t.Errorf("ParseCSR(%s) = %v, want ErrBadRequest", name, err)
		}
	}
}

func FuzzParseCSR(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(csr(f, key))
	f.Add([]byte{0x30, 0x03, 0x02, 0x01, 0x00})
	f.Fuzz(func(t *testing.T, der []byte) {
		pub, err := keys.ParseCSR(der)
		if (pub == nil) == (err == nil) {
			t.Errorf("ParseCSR = %v, %v", pub, err)
		}
	})
}
