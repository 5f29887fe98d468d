package broker

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
)

const (
	certBlock = "CERTIFICATE"
	// maxAuditKeys bounds the signing keys in a file; one broker has one or two.
	maxAuditKeys = 1024
)

// ErrAuditKeys says that a file of audit keys cannot be used.
var ErrAuditKeys = errors.New("not the audit keys of a broker")

func encodeAuditKeys(ca []byte, signers [][]byte) []byte {
	var out bytes.Buffer
	for _, der := range append([][]byte{ca}, signers...) {
		_ = pem.Encode(&out, &pem.Block{Type: certBlock, Bytes: der}) // a buffer takes everything
	}
	return out.Bytes()
}

// VerifyAuditFile checks an exported audit away from the broker, with the certificates that
// AuditKeys gave. pin is the one in the broker's URL; zero takes the CA of the file, whose
// pin is returned for comparison. expect holds what else is known: heads that others
// remember, and the keys of connectors.
func VerifyAuditFile(r io.Reader, keysPEM []byte, pin ids.KeyID, expect audit.Trust) (audit.Report, ids.KeyID, error) {
	trusted, pin, err := parseAuditKeys(keysPEM, pin)
	if err != nil {
		return audit.Report{}, pin, err
	}
	expect.Keys = trusted
	report, err := audit.VerifyFile(r, expect)
	return report, pin, err
}

// auditTrust adds to expect the signing keys of the brokers, and the identity keys of the
// connectors as they are registered.
func (b *Broker) auditTrust(ctx context.Context, expect audit.Trust) (audit.Trust, error) {
	list, err := b.registry.Connectors(ctx, "")
	if err != nil {
		return audit.Trust{}, err
	}
	expect.Keys, expect.Registered = b.brokerKeys(), make(map[ids.ConnectorID]ids.KeyID, len(list))
	for _, c := range list {
		expect.Registered[c.ID] = c.Identity.Key
	}
	return expect, nil
}

func parseAuditKeys(data []byte, pin ids.KeyID) (seal.Keys, ids.KeyID, error) {
	certs, err := parseCerts(data)
	if err != nil {
		return seal.Keys{}, pin, err
	}
	if pin.IsZero() {
		pin = ids.KeyIDOf(certs[0].RawSubjectPublicKeyInfo)
	}
	ca, err := control.ParseCA(certs[0].Raw, pin)
	if err != nil {
		return seal.Keys{}, pin, fmt.Errorf("%w: %w", ErrAuditKeys, err)
	}
	var pubs []ed25519.PublicKey
	for _, c := range certs[1:] {
		pub, err := control.SignerKey(c.Raw, ca, validSince(c, ca))
		if err != nil {
			return seal.Keys{}, pin, fmt.Errorf("%w: %w", ErrAuditKeys, err)
		}
		pubs = append(pubs, pub)
	}
	return seal.NewKeys(pubs...), pin, nil
}

// validSince is the first moment at which both certificates held. An archive is verified
// long after its keys ended.
func validSince(a, b *x509.Certificate) time.Time {
	if a.NotBefore.After(b.NotBefore) {
		return a.NotBefore
	}
	return b.NotBefore
}

func parseCerts(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != certBlock || len(certs) > maxAuditKeys {
			return nil, fmt.Errorf("%w: want certificates only", ErrAuditKeys)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrAuditKeys, err)
		}
		certs = append(certs, c)
	}
	if len(certs) < 2 {
		return nil, fmt.Errorf("%w: want the CA and at least one signing key, as `postern-broker audit keys` prints them", ErrAuditKeys)
	}
	return certs, nil
}
