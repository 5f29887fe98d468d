package keys

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
)

// maxCSR bounds a certificate request; one with a P-256 key has about 300 bytes.
const maxCSR = 8 << 10

// ParseCSR reads a certificate request in DER, checks that the sender holds the private key,
// and returns the public key, which must be P-256. Nothing else in the request counts: names
// and extensions are the CA's business.
func ParseCSR(der []byte) (*ecdsa.PublicKey, error) {
	if len(der) > maxCSR {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrBadRequest, len(der), maxCSR)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("%w: malformed", ErrBadRequest)
	}
	pub, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%w: key type %s, want ECDSA P-256", ErrBadRequest, csr.PublicKeyAlgorithm)
	}
	if err := acceptP256(pub); err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: no proof that the sender holds the key", ErrBadRequest)
	}
	return pub, nil
}

func acceptP256(pub *ecdsa.PublicKey) error {
	if pub.Curve != elliptic.P256() {
		return fmt.Errorf("%w: curve %s, want P-256", ErrBadRequest, pub.Curve.Params().Name)
	}
	return nil
}

// KeyIDOf returns the KeyID of a public key, as grants and assignments name it.
func KeyIDOf(pub *ecdsa.PublicKey) (ids.KeyID, error) {
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return ids.KeyID{}, fmt.Errorf("key id: %w", err)
	}
	return ids.KeyIDOf(spki), nil
}

// Subject is whom a verified certificate names.
type Subject struct {
	Kind     Kind
	ID       string // parse it with ids.Parse of the kind
	Key      ids.KeyID
	NotAfter time.Time
}

// Verify checks that cert is a TLS client certificate of this CA and returns its subject.
// grace is how long after its end it is still accepted: 0 everywhere but at renewal
// (RenewalGrace). Whether the subject is blocked is the caller's question.
func (c *CA) Verify(cert *x509.Certificate, grace time.Duration) (Subject, error) {
	at := c.now()
	if at.After(cert.NotAfter.Add(grace)) {
		return Subject{}, fmt.Errorf("%w on %s", ErrExpired, cert.NotAfter.UTC().Format(time.DateTime))
	}
	if at.After(cert.NotAfter) {
		at = cert.NotAfter
	}
	if !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageClientAuth) { // x509 takes none for all
		return Subject{}, fmt.Errorf("%w: not a client certificate", ErrBadCertificate)
	}
	return c.verifyAt(cert, at, x509.ExtKeyUsageClientAuth)
}

func (c *CA) verifyAt(cert *x509.Certificate, at time.Time, usage x509.ExtKeyUsage) (Subject, error) {
	_, err := cert.Verify(x509.VerifyOptions{Roots: c.roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage}})
	if err != nil {
		return Subject{}, fmt.Errorf("%w: %w", ErrBadCertificate, err)
	}
	return subjectOf(cert, c.org)
}

// VerifySigner checks that der certifies an Ed25519 signing key of a broker of org under the
// CA roots, and returns the key. Clients do the same with their own code and the pin.
func (c *CA) VerifySigner(der []byte) (ed25519.PublicKey, ids.BrokerID, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, "", fmt.Errorf("%w: malformed", ErrBadCertificate)
	}
	sub, err := c.verifyAt(cert, c.now(), x509.ExtKeyUsageAny)
	if err != nil {
		return nil, "", err
	}
	pub, ok := cert.PublicKey.(ed25519.PublicKey)
	if sub.Kind != Signer || !ok || len(cert.ExtKeyUsage) != 0 {
		return nil, "", fmt.Errorf("%w: not a signing key", ErrBadCertificate)
	}
	id, err := ids.Parse[ids.BrokerID](sub.ID)
	return pub, id, err
}

// subjectOf reads the one SPIFFE id of a verified certificate.
func subjectOf(cert *x509.Certificate, org ids.OrgID) (Subject, error) {
	if len(cert.URIs) != 1 {
		return Subject{}, fmt.Errorf("%w: %d names, want 1", ErrBadCertificate, len(cert.URIs))
	}
	kind, id, err := parseSPIFFE(cert.URIs[0], org)
	if err != nil {
		return Subject{}, err
	}
	return Subject{Kind: kind, ID: id, Key: ids.KeyIDOf(cert.RawSubjectPublicKeyInfo), NotAfter: cert.NotAfter}, nil
}

// parseSPIFFE reads spiffe://<org>/<kind>/<id>.
func parseSPIFFE(u *url.URL, org ids.OrgID) (Kind, string, error) {
	kind, id, ok := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	if !ok || u.Scheme != "spiffe" || u.Host != string(org) || strings.Contains(id, "/") {
		return "", "", fmt.Errorf("%w: foreign name %q", ErrBadCertificate, u)
	}
	if err := checkID(Kind(kind), id); err != nil {
		return "", "", fmt.Errorf("%w: %w", ErrBadCertificate, err)
	}
	return Kind(kind), id, nil
}

func checkID(kind Kind, id string) (err error) {
	switch kind {
	case Device:
		_, err = ids.Parse[ids.DeviceID](id)
	case Connector:
		_, err = ids.Parse[ids.ConnectorID](id)
	case Relay:
		_, err = ids.Parse[ids.RelayID](id)
	case Broker, Signer:
		_, err = ids.Parse[ids.BrokerID](id)
	default:
		err = fmt.Errorf("unknown kind %q", kind)
	}
	return err
}

// SignerKeys returns the verification keys of all brokers, each checked against the CA, and
// their certificates in the same order.
func (r *Ring) SignerKeys() (seal.Keys, [][]byte, error) {
	ca, err := r.CA()
	if err != nil {
		return seal.Keys{}, nil, err
	}
	r.mu.RLock()
	list := append([]Verifier(nil), r.pub[SigningKey]...)
	r.mu.RUnlock()
	var pubs []ed25519.PublicKey
	var certs [][]byte
	for _, v := range list {
		der, err := base64.StdEncoding.DecodeString(v.Public)
		if err != nil {
			return seal.Keys{}, nil, fmt.Errorf("signing key of %s: %w", v.Owner, ErrDamaged)
		}
		pub, _, err := ca.VerifySigner(der)
		if err != nil {
			return seal.Keys{}, nil, fmt.Errorf("signing key of %s: %w", v.Owner, err)
		}
		pubs, certs = append(pubs, pub), append(certs, der)
	}
	return seal.NewKeys(pubs...), certs, nil
}
