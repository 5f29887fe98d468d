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
	"time"

	"golang.org/x/net/http2"
)

const (
	dialTimeout = 10 * time.Second
	// pingAfter and pingTimeout notice a dead control connection within 25 s.
	pingAfter   = 15 * time.Second
	pingTimeout = 10 * time.Second
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
// CloseIdleConnections on it after the certificate was renewed.
func NewClient(cfg ClientConfig) *http.Client {
	if cfg.Dialer == nil {
		cfg.Dialer = &net.Dialer{}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &http.Client{Transport: &http2.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
			return dial(ctx, cfg)
		},
		ReadIdleTimeout: pingAfter,
		PingTimeout:     pingTimeout,
	}}
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
