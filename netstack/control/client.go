package control

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

const (
	dialTimeout = 10 * time.Second
	// pingAfter and pingTimeout notice a dead control connection within 25 s.
	pingAfter   = 15 * time.Second
	pingTimeout = 10 * time.Second
	// unusedTimeout ends connections that no request uses any more.
	unusedTimeout = 90 * time.Second
)

// Dialer opens TCP connections; *net.Dialer and a proxy dialer are ones.
type Dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// ClientConfig describes one caller of a broker.
type ClientConfig struct {
	Broker Broker
	// Certificate returns what proves our identity key at this moment: a certificate of
	// the broker's CA, or SelfSigned before there is one.
	Certificate func() (*tls.Certificate, error)
	// Dialer is a plain *net.Dialer when nil.
	Dialer Dialer
	// Now is time.Now when nil.
	Now func() time.Time
}

// NewClient returns an HTTP client whose every connection is pinned to the broker. Call
// CloseIdleConnections on it after the certificate was renewed: no later request uses a
// connection of before, also not one that is busy at that moment.
func NewClient(cfg ClientConfig) *http.Client {
	if cfg.Dialer == nil {
		cfg.Dialer = &net.Dialer{}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	t := &transport{cfg: cfg}
	t.now = t.fresh()
	return &http.Client{Transport: t}
}

// maxBefore bounds the earlier connections that may still be busy.
const maxBefore = 8

// transport makes new connections for new requests after CloseIdleConnections. A connection
// proves the certificate with which it was opened, and HTTP/2 keeps using it as long as one
// request follows the other.
type transport struct {
	cfg ClientConfig

	mu     sync.Mutex // guards the fields below
	now    *http2.Transport
	before []*http2.Transport // with requests that began earlier
}

func (t *transport) fresh() *http2.Transport {
	return &http2.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
			return dial(ctx, t.cfg)
		},
		ReadIdleTimeout: pingAfter,
		PingTimeout:     pingTimeout,
		IdleConnTimeout: unusedTimeout,
	}
}

// RoundTrip sends a request on a connection of now.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	t.mu.Lock()
	now := t.now
	t.mu.Unlock()
	return now.RoundTrip(r)
}

// CloseIdleConnections closes what is idle, and what is busy once it is idle.
func (t *transport) CloseIdleConnections() {
	t.mu.Lock()
	t.before = append(t.before, t.now)
	t.before = t.before[max(0, len(t.before)-maxBefore):]
	t.now = t.fresh()
	before := slices.Clone(t.before)
	t.mu.Unlock()
	for _, old := range before {
		old.CloseIdleConnections()
	}
}

// BaseURL is what a Connect client is constructed with.
func (b Broker) BaseURL() string { return "https://" + b.Address }

func dial(ctx context.Context, cfg ClientConfig) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := cfg.Dialer.DialContext(ctx, "tcp", cfg.Broker.Address)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, clientTLS(cfg))
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

func clientTLS(cfg ClientConfig) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{ALPN},
		// The chain is checked against the pin, not against the system's authorities.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if cs.NegotiatedProtocol != ALPN {
				return fmt.Errorf("%w: it does not speak %s", ErrPin, ALPN)
			}
			return VerifyServer(cs, cfg.Broker.Pin, KindBroker, "", cfg.Now())
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if cfg.Certificate == nil {
				return &tls.Certificate{}, nil
			}
			return cfg.Certificate()
		},
	}
}

// SelfSigned returns a certificate that proves possession of an identity key before the
// broker has issued one. The broker looks at the key only.
func SelfSigned(key crypto.Signer, now time.Time) (*tls.Certificate, error) {
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "identity key"},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("self-signed certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// Request returns a certificate request that proves possession of key.
func Request(key crypto.Signer) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
}
