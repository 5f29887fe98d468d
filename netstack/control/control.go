// Package control is the transport of the control plane: HTTP/2 over TLS 1.3 under our
// own ALPN, the broker authenticated by the pin of its CA key, the caller by its identity
// key (decisions rules 3 and 4). Client, connector and relay use Client; the broker hands
// accepted connections to Server. The package moves requests; it knows none of them, and of
// refusals the reason alone (ReasonOf).
//
// A browser never negotiates the ALPN, so it is never asked for a client certificate.
package control

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/postern-zt/postern/proto/ids"
)

// ALPN names the control plane in the TLS handshake.
const ALPN = "postern-control/1"

// DefaultPort is where a broker listens when its URL names no port.
const DefaultPort = "443"

// Errors that callers branch on.
var (
	// ErrURL says that a broker URL cannot be used.
	ErrURL = errors.New("not a broker URL")
	// ErrPin says that the server does not show the pinned CA key.
	ErrPin = errors.New("the server is not the pinned broker")
	// ErrClock says that a certificate is not valid at this machine's time.
	ErrClock = errors.New("the clock of this machine does not match the broker's")
)

// Broker is where a broker is and what it must prove.
type Broker struct {
	// Address is host:port.
	Address string
	Pin     ids.KeyID
}

// ParseURL reads "https://host[:port]/#pin=HEX", as the broker prints it.
func ParseURL(s string) (Broker, error) {
	u, err := url.Parse(strings.TrimSpace(s))
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
		return Broker{}, fmt.Errorf("%w: want https://host:port/#pin=..., as the broker prints it", ErrURL)
	}
	text, ok := strings.CutPrefix(u.Fragment, "pin=")
	if !ok {
		return Broker{}, fmt.Errorf("%w: the part after # is missing; copy the whole line that the broker printed", ErrURL)
	}
	pin, err := ids.ParseKeyID(text)
	if err != nil {
		return Broker{}, fmt.Errorf("%w: the pin is not complete", ErrURL)
	}
	port := u.Port()
	if port == "" {
		port = DefaultPort
	}
	return Broker{Address: net.JoinHostPort(u.Hostname(), port), Pin: pin}, nil
}

// String returns the URL with its pin.
func (b Broker) String() string {
	return "https://" + b.Address + "/#pin=" + b.Pin.String()
}

// Kind is the role in a certificate's SPIFFE id: spiffe://ORG/KIND/ID.
type Kind string

// The kinds that a client of this package meets.
const (
	KindBroker Kind = "broker"
	KindRelay  Kind = "relay"
	KindSigner Kind = "signer"
)

// VerifyServer checks that a handshake ended at a server of the pinned CA, of the wanted
// kind; id may be empty for any. Names and addresses in the certificate do not count: a
// broker behind NAT is the same broker.
func VerifyServer(cs tls.ConnectionState, pin ids.KeyID, kind Kind, id string, now time.Time) error {
	if len(cs.PeerCertificates) < 2 {
		return fmt.Errorf("%w: it shows no CA", ErrPin)
	}
	leaf := cs.PeerCertificates[0]
	ca, err := pinned(cs.PeerCertificates[1:], pin)
	if err != nil {
		return err
	}
	if err := verifyLeaf(leaf, ca, x509.ExtKeyUsageServerAuth, now); err != nil {
		return err
	}
	return checkSubject(leaf, kind, id)
}

// pinned finds the certificate whose key is the pinned one.
func pinned(chain []*x509.Certificate, pin ids.KeyID) (*x509.Certificate, error) {
	for _, c := range chain {
		if !pin.IsZero() && ids.KeyIDOf(c.RawSubjectPublicKeyInfo) == pin && c.IsCA {
			return c, nil
		}
	}
	return nil, fmt.Errorf("%w: its CA key is another one", ErrPin)
}

func verifyLeaf(leaf, ca *x509.Certificate, usage x509.ExtKeyUsage, now time.Time) error {
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return fmt.Errorf("%w: it is %s here, the certificate is valid from %s to %s; set the clock", ErrClock,
			now.UTC().Format(time.DateTime), leaf.NotBefore.UTC().Format(time.DateTime), leaf.NotAfter.UTC().Format(time.DateTime))
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPin, err)
	}
	return nil
}

// checkSubject compares the SPIFFE id with what the caller wants to talk to.
func checkSubject(cert *x509.Certificate, kind Kind, id string) error {
	if len(cert.URIs) != 1 || cert.URIs[0].Scheme != "spiffe" {
		return fmt.Errorf("%w: its certificate has no name", ErrPin)
	}
	gotKind, gotID, _ := strings.Cut(strings.TrimPrefix(cert.URIs[0].Path, "/"), "/")
	if Kind(gotKind) != kind || id != "" && gotID != id {
		return fmt.Errorf("%w: it is %s %s", ErrPin, gotKind, gotID)
	}
	return nil
}

// SignerKey verifies the certificate of a broker's signing key against the pinned CA.
func SignerKey(der []byte, ca *x509.Certificate, now time.Time) (ed25519.PublicKey, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	if err := verifyLeaf(cert, ca, x509.ExtKeyUsageAny, now); err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	if err := checkSubject(cert, KindSigner, ""); err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	pub, ok := cert.PublicKey.(ed25519.PublicKey)
	if !ok || len(cert.ExtKeyUsage) != 0 {
		return nil, fmt.Errorf("signing key: %w: it is no signing key", ErrPin)
	}
	return pub, nil
}

// ParseCA reads a CA certificate and checks it against the pin.
func ParseCA(der []byte, pin ids.KeyID) (*x509.Certificate, error) {
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	return pinned([]*x509.Certificate{ca}, pin)
}
