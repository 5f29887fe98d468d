package peer

import (
	"crypto/tls"
	"errors"
	"fmt"
	"time"
)

// ALPN is the protocol of the end-to-end TLS on every carrier.
const ALPN = "postern-link/1"

// Config describes our side of a handshake.
type Config struct {
	// Credentials prove who we are.
	Credentials *Credentials
	// Expect accepts or refuses the peer's identity during the handshake (Exactly,
	// Anyone, or an own check). Nil is an error, not "anyone".
	Expect func(Identity) error
	// ALPN is the protocol both sides must speak; empty means ALPN.
	ALPN string
	// Now is the clock, corrected by the learnt offset; nil means time.Now.
	Now func() time.Time
}

// ServerConfig returns the TLS 1.3 configuration of the accepting side.
func ServerConfig(cfg Config) (*tls.Config, error) {
	t, err := base(cfg)
	if err != nil {
		return nil, err
	}
	creds := cfg.Credentials
	t.ClientAuth = tls.RequireAnyClientCert
	t.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return creds.Certificate() }
	return t, nil
}

// ClientConfig returns the TLS 1.3 configuration of the dialling side.
func ClientConfig(cfg Config) (*tls.Config, error) {
	t, err := base(cfg)
	if err != nil {
		return nil, err
	}
	creds := cfg.Credentials
	// There is no name and no CA: VerifyConnection does the whole verification.
	t.InsecureSkipVerify = true
	t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return creds.Certificate() }
	return t, nil
}

// base holds what both sides share. Session tickets are off: a resumed session would
// skip the certificates, and a link is opened rarely.
func base(cfg Config) (*tls.Config, error) {
	if cfg.Credentials == nil || cfg.Expect == nil {
		return nil, errors.New("peer configuration needs credentials and an expectation")
	}
	if cfg.ALPN == "" {
		cfg.ALPN = ALPN
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{cfg.ALPN},
		SessionTicketsDisabled: true,
		Time:                   cfg.Now,
		VerifyConnection:       func(cs tls.ConnectionState) error { return verify(cs, cfg) },
	}, nil
}

// verify runs on both sides before the handshake completes. The protocol is compared
// here because a peer that offers none is not refused by crypto/tls.
func verify(cs tls.ConnectionState, cfg Config) error {
	if cs.NegotiatedProtocol != cfg.ALPN {
		return fmt.Errorf("%w: %q", ErrProtocol, cs.NegotiatedProtocol)
	}
	id, err := verifyChain(cs.PeerCertificates, cfg.Now())
	if err != nil {
		return err
	}
	return cfg.Expect(id)
}
