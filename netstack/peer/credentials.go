package peer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"time"

	"github.com/postern-zt/postern/proto/ids"
)

// Credentials prove our own identity: they hold a link key and renew it, with a fresh
// key, at half of its life. The identity key is only asked to sign, so it may live in
// hardware.
type Credentials struct {
	identity    crypto.Signer
	endorsement []byte
	validity    time.Duration
	now         func() time.Time
	keyID       ids.KeyID

	mu      sync.Mutex // guards the fields below
	current *tls.Certificate
	// madeAt and renewAt bound the time in which current is shown: a clock that was set
	// back since has made a certificate that nobody accepts yet.
	madeAt, renewAt time.Time
}

// CredentialsConfig makes Credentials.
type CredentialsConfig struct {
	// Identity is the long-lived P-256 key.
	Identity crypto.Signer
	// Endorsement is shown with the identity; optional.
	Endorsement []byte
	// Validity of a link certificate; zero means MaxValidity.
	Validity time.Duration
	// Now is the clock, corrected by the learnt offset; nil means time.Now.
	Now func() time.Time
}

// NewCredentials checks the configuration and makes the first link certificate.
func NewCredentials(cfg CredentialsConfig) (*Credentials, error) {
	pub, ok := cfg.Identity.Public().(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, ErrKey
	}
	if len(cfg.Endorsement) > MaxEndorsement {
		return nil, errors.New("endorsement is too large")
	}
	if cfg.Validity <= 0 || cfg.Validity > MaxValidity {
		cfg.Validity = MaxValidity
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("encode identity key: %w", err)
	}
	c := &Credentials{identity: cfg.Identity, endorsement: cfg.Endorsement, validity: cfg.Validity, now: cfg.Now, keyID: ids.KeyIDOf(spki)}
	_, err = c.Certificate()
	return c, err
}

// KeyID names our identity key.
func (c *Credentials) KeyID() ids.KeyID { return c.keyID }

// Certificate returns the current [link, identity] chain with the link key.
func (c *Credentials) Certificate() (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if c.current != nil && now.Before(c.renewAt) && now.Add(Tolerance/2).After(c.madeAt) {
		return c.current, nil
	}
	cert, err := newCertificate(c.identity, c.endorsement, now, c.validity)
	if err != nil {
		return nil, err
	}
	c.current, c.madeAt, c.renewAt = cert, now, now.Add(c.validity/2)
	return cert, nil
}

// newCertificate makes a link key and the chain [link, identity].
func newCertificate(identity crypto.Signer, endorsement []byte, now time.Time, validity time.Duration) (*tls.Certificate, error) {
	idTemplate := identityTemplate(endorsement)
	idDER, err := x509.CreateCertificate(rand.Reader, idTemplate, idTemplate, identity.Public(), identity)
	if err != nil {
		return nil, fmt.Errorf("make identity certificate: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make link key: %w", err)
	}
	linkDER, err := x509.CreateCertificate(rand.Reader, linkTemplate(now, validity), idTemplate, key.Public(), identity)
	if err != nil {
		return nil, fmt.Errorf("make link certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{linkDER, idDER}, PrivateKey: key}, nil
}

// identityTemplate has fixed dates: an identity ends by being blocked, not by a date.
func identityTemplate(endorsement []byte) *x509.Certificate {
	t := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "postern identity"},
		NotBefore:             time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:              time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	if len(endorsement) > 0 {
		t.ExtraExtensions = []pkix.Extension{{Id: endorsementOID, Value: endorsement}}
	}
	return t
}

func linkTemplate(now time.Time, validity time.Duration) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:          big.NewInt(now.UnixNano()),
		Subject:               pkix.Name{CommonName: "postern link"},
		NotBefore:             now.Add(-Tolerance),
		NotAfter:              now.Add(validity),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}
