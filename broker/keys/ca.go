package keys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"time"

	"github.com/postern-zt/postern/proto/ids"
)

const (
	caLifetime = 10 * 365 * 24 * time.Hour
	// backdate lets a peer whose clock is behind accept a fresh certificate (rule 10).
	backdate = 5 * time.Minute
	// LeafLifetime is the usual life of certificates of devices, connectors and relays (rule 3).
	LeafLifetime = 7 * 24 * time.Hour
	// RenewalGrace is how long after its end a certificate still renews itself (rule 3).
	RenewalGrace = 90 * 24 * time.Hour
)

// Kind is the kind of subject of a certificate: a path element of its SPIFFE id.
type Kind string

// The kinds of subjects.
const (
	Device    Kind = "device"
	Connector Kind = "connector"
	Relay     Kind = "relay"
	Broker    Kind = "broker"
	// Signer certifies a broker's key for grants and statements; it is no TLS identity.
	Signer Kind = "signer"
)

// CA issues certificates with the newest CA key and verifies those of all CA keys.
type CA struct {
	org   ids.OrgID
	key   *Key
	roots *x509.CertPool
	now   func() time.Time
}

// CA returns the certificate authority, or ErrMissing before its key was created.
func (r *Ring) CA() (*CA, error) {
	key, err := r.Newest(CAKey)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	for _, k := range r.All(CAKey) {
		roots.AddCert(k.Certificate())
	}
	return &CA{org: r.cfg.Org, key: key, roots: roots, now: r.cfg.Now}, nil
}

// Pin is the fingerprint of the CA key that stands in URLs.
func (c *CA) Pin() ids.KeyID { return c.key.ID() }

// Certificate returns the CA's own certificate.
func (c *CA) Certificate() *x509.Certificate { return c.key.Certificate() }

// Roots returns the pool of all CA certificates, for tls.Config.
func (c *CA) Roots() *x509.CertPool { return c.roots.Clone() }

// Org is the trust domain.
func (c *CA) Org() ids.OrgID { return c.org }

// IssueDevice returns the DER of a client certificate for a device's identity key.
func (c *CA) IssueDevice(pub crypto.PublicKey, id ids.DeviceID, lifetime time.Duration) ([]byte, error) {
	return c.issue(pub, c.leaf(Device, string(id), lifetime, x509.ExtKeyUsageClientAuth))
}

// IssueConnector returns the DER of a client certificate for a connector's identity key.
func (c *CA) IssueConnector(pub crypto.PublicKey, id ids.ConnectorID, lifetime time.Duration) ([]byte, error) {
	return c.issue(pub, c.leaf(Connector, string(id), lifetime, x509.ExtKeyUsageClientAuth))
}

// IssueRelay returns the DER of a certificate for a relay: client of the broker, and server
// under the names and addresses at which clients reach it.
func (c *CA) IssueRelay(pub crypto.PublicKey, id ids.RelayID, names []string, addrs []netip.Addr, lifetime time.Duration) ([]byte, error) {
	t := c.leaf(Relay, string(id), lifetime, x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth)
	return c.issue(pub, reachable(t, names, addrs))
}

// IssueServer returns the DER of a server certificate for a broker's public port.
func (c *CA) IssueServer(pub crypto.PublicKey, id ids.BrokerID, names []string, addrs []netip.Addr, lifetime time.Duration) ([]byte, error) {
	t := c.leaf(Broker, string(id), lifetime, x509.ExtKeyUsageServerAuth)
	return c.issue(pub, reachable(t, names, addrs))
}

// CertifySigner returns the DER of the certificate that vouches for a broker's Ed25519
// signing key. It lives as long as the CA: what ends it is a new key.
func (c *CA) CertifySigner(pub ed25519.PublicKey, id ids.BrokerID) ([]byte, error) {
	t := c.leaf(Signer, string(id), c.Certificate().NotAfter.Sub(c.now()))
	return c.issue(pub, t)
}

// leaf is the template that all certificates share.
func (c *CA) leaf(kind Kind, id string, lifetime time.Duration, usage ...x509.ExtKeyUsage) *x509.Certificate {
	now := c.now()
	return &x509.Certificate{
		SerialNumber:          serialNumber(),
		Subject:               pkix.Name{CommonName: id},
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: string(c.org), Path: "/" + string(kind) + "/" + id}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(lifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           usage,
		BasicConstraintsValid: true,
	}
}

func reachable(t *x509.Certificate, names []string, addrs []netip.Addr) *x509.Certificate {
	t.DNSNames = names
	for _, a := range addrs {
		t.IPAddresses = append(t.IPAddresses, net.IP(a.Unmap().AsSlice()))
	}
	return t
}

func (c *CA) issue(pub crypto.PublicKey, t *x509.Certificate) ([]byte, error) {
	if err := acceptKey(pub, t); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, t, c.Certificate(), pub, c.key.Signer())
	if err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	return der, nil
}

// acceptKey allows Ed25519 for signers, P-256 for all else.
func acceptKey(pub crypto.PublicKey, t *x509.Certificate) error {
	switch k := pub.(type) {
	case ed25519.PublicKey:
		if len(t.ExtKeyUsage) == 0 {
			return nil
		}
	case *ecdsa.PublicKey:
		if len(t.ExtKeyUsage) > 0 {
			return acceptP256(k)
		}
	}
	return fmt.Errorf("%w: key type %T is not accepted here", ErrBadRequest, pub)
}

// serialNumber has 127 random bits: positive, and within the 20 bytes of RFC 5280.
func serialNumber() *big.Int {
	b := random(16)
	b[0] &= 0x7f
	b[15] |= 1
	return new(big.Int).SetBytes(b)
}

// selfSign returns the CA's own certificate.
func selfSign(priv *ecdsa.PrivateKey, org ids.OrgID, now time.Time) ([]byte, error) {
	t := &x509.Certificate{
		SerialNumber:          serialNumber(),
		Subject:               pkix.Name{CommonName: "Postern CA " + string(org)},
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: string(org)}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLifetime),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	return x509.CreateCertificate(rand.Reader, t, t, priv.Public(), priv)
}
