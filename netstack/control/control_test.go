package control_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/proto/ids"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// authority is a CA that issues what the test asks for.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, key: newKey(t)}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.cert = a.sign(tmpl, tmpl, a.key.Public())
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (a *authority) sign(tmpl, parent *x509.Certificate, pub any) *x509.Certificate {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

func (a *authority) leaf(path string, usage ...x509.ExtKeyUsage) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-5 * time.Minute), NotAfter: time.Now().Add(time.Hour),
		URIs: []*url.URL{{Scheme: "spiffe", Host: "org", Path: path}}, ExtKeyUsage: usage, BasicConstraintsValid: true,
	}
}

func (a *authority) pin() ids.KeyID { return ids.KeyIDOf(a.cert.RawSubjectPublicKeyInfo) }

// serve runs a broker that answers with the key id of its caller.
func (a *authority) serve(path string) string {
	key := newKey(a.t)
	cert := a.sign(a.leaf(path, x509.ExtKeyUsageServerAuth), a.cert, key.Public())
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{control.ALPN}, ClientAuth: tls.RequestClientCert,
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw, a.cert.Raw}, PrivateKey: key}},
	})
	if err != nil {
		a.t.Fatal(err)
	}
	srv := control.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c := control.PeerOf(r); c != nil {
			io.WriteString(w, ids.KeyIDOf(c.RawSubjectPublicKeyInfo).String())
		}
	}))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { acceptAll(ctx, l, srv) })
	a.t.Cleanup(func() { cancel(); l.Close(); wg.Wait() })
	return l.Addr().String()
}

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

func get(t *testing.T, b control.Broker, key *ecdsa.PrivateKey, now func() time.Time) (string, error) {
	t.Helper()
	c := control.NewClient(control.ClientConfig{Broker: b, Now: now, Certificate: func() (*tls.Certificate, error) {
		return control.SelfSigned(key, time.Now())
	}})
	defer c.CloseIdleConnections()
	resp, err := c.Get(b.BaseURL() + "/")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

func TestClientProvesItsKey(t *testing.T) {
	a, key := newAuthority(t), newKey(t)
	addr := a.serve("/broker/brk_1")
	spki, _ := x509.MarshalPKIXPublicKey(key.Public())
	got, err := get(t, control.Broker{Address: addr, Pin: a.pin()}, key, nil)
	if err != nil || got != ids.KeyIDOf(spki).String() {
		t.Fatalf("the broker saw %q, %v", got, err)
	}
}

func TestClientRefuses(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	cases := map[string]struct {
		path string
		pin  ids.KeyID
		now  func() time.Time
		want error
	}{
		"another CA":                {"/broker/brk_1", other.pin(), nil, control.ErrPin},
		"no pin":                    {"/broker/brk_1", ids.KeyID{}, nil, control.ErrPin},
		"a relay, not a broker":     {"/relay/rly_1", a.pin(), nil, control.ErrPin},
		"our clock an hour behind":  {"/broker/brk_1", a.pin(), func() time.Time { return time.Now().Add(-time.Hour + time.Minute) }, control.ErrClock},
		"our clock two hours ahead": {"/broker/brk_1", a.pin(), func() time.Time { return time.Now().Add(2 * time.Hour) }, control.ErrClock},
	}
	for name, c := range cases {
		b := control.Broker{Address: a.serve(c.path), Pin: c.pin}
		if _, err := get(t, b, newKey(t), c.now); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	behind := func() time.Time { return time.Now().Add(-4 * time.Minute) }
	if _, err := get(t, control.Broker{Address: a.serve("/broker/brk_1"), Pin: a.pin()}, newKey(t), behind); err != nil {
		t.Errorf("a clock 4 minutes behind: %v", err)
	}
}

func TestParseURL(t *testing.T) {
	pin := ids.KeyIDOf([]byte("ca"))
	for in, want := range map[string]string{
		"https://broker.example/#pin=" + pin.String():   "broker.example:443",
		" https://[fd00::1]:8443/#pin=" + pin.String():  "[fd00::1]:8443",
		"https://10.0.0.1:8443#pin=" + pin.String():     "10.0.0.1:8443",
		"http://10.0.0.1:8443/#pin=" + pin.String():     "",
		"https://10.0.0.1:8443/":                        "",
		"https://10.0.0.1:8443/#pin=abcd":               "",
		"https://user:pw@10.0.0.1/#pin=" + pin.String(): "",
		"": "",
	} {
		b, err := control.ParseURL(in)
		if b.Address != want || (err == nil) != (want != "") || err != nil && !errors.Is(err, control.ErrURL) {
			t.Errorf("ParseURL(%q) = %+v, %v", in, b, err)
		}
		if again, err2 := control.ParseURL(b.String()); err == nil && (err2 != nil || again != b) {
			t.Errorf("%q does not survive: %v", b.String(), err2)
		}
	}
}

func TestSignerKey(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	pub, _, _ := ed25519.GenerateKey(rand.Reader)
	good := a.sign(a.leaf("/signer/brk_1"), a.cert, pub)
	if got, err := control.SignerKey(good.Raw, a.cert, time.Now()); err != nil || !got.Equal(pub) {
		t.Fatalf("SignerKey = %v", err)
	}
	for name, der := range map[string][]byte{
		"another CA":      other.sign(other.leaf("/signer/brk_1"), other.cert, pub).Raw,
		"a TLS identity":  a.sign(a.leaf("/signer/brk_1", x509.ExtKeyUsageClientAuth), a.cert, pub).Raw,
		"a device":        a.sign(a.leaf("/device/dev_1"), a.cert, pub).Raw,
		"a key that isnt": a.sign(a.leaf("/signer/brk_1"), a.cert, newKey(t).Public()).Raw,
		"garbage":         {1, 2, 3},
	} {
		if _, err := control.SignerKey(der, a.cert, time.Now()); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := control.ParseCA(a.cert.Raw, other.pin()); !errors.Is(err, control.ErrPin) {
		t.Errorf("ParseCA with another pin: %v", err)
	}
}
