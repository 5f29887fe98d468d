package keys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
)

const (
	secretLen = 64 // hash key and encryption key of a cookie codec, 32 bytes each
	relayLen  = 32 // an X25519 private key
)

// Key is one opened private key or secret. It prints as its purpose and serial only.
type Key struct {
	Purpose Purpose
	Owner   ids.BrokerID
	Serial  uint64
	Created time.Time

	signer crypto.Signer     // nil for plain secrets
	secret []byte            // nil for key pairs
	cert   *x509.Certificate // of CAKey and SigningKey
}

// Verifier is the public part of a key, of this broker or another one.
type Verifier struct {
	Owner  ids.BrokerID
	Serial uint64
	Public string // see Sealed.Public
}

// Signer returns the private key of a key pair, nil for a secret.
func (k *Key) Signer() crypto.Signer { return k.signer }

// Secret returns a copy of the bytes of a secret, nil for a key pair.
func (k *Key) Secret() []byte { return append([]byte(nil), k.secret...) }

// Certificate returns the CA's own certificate, or the CA's certificate for a signing key;
// nil for other keys.
func (k *Key) Certificate() *x509.Certificate { return k.cert }

// Seal returns the signer of proto/seal for an Ed25519 key, or ErrMissing.
func (k *Key) Seal() (*seal.Signer, error) {
	priv, ok := k.signer.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%w: %s is no Ed25519 key", ErrMissing, k.Purpose)
	}
	return seal.NewSigner(priv), nil
}

// ID names a key pair by its public key; a secret has none.
func (k *Key) ID() ids.KeyID {
	if k.signer == nil {
		return ids.KeyID{}
	}
	spki, err := x509.MarshalPKIXPublicKey(k.signer.Public())
	if err != nil {
		return ids.KeyID{} // cannot happen for the types that generate makes
	}
	return ids.KeyIDOf(spki)
}

// String shows no secret.
func (k *Key) String() string { return fmt.Sprintf("key %s %d", k.Purpose, k.Serial) }

// GoString shows no secret.
func (k *Key) GoString() string { return k.String() }

// LogValue shows no secret.
func (k *Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalJSON shows no secret.
func (k *Key) MarshalJSON() ([]byte, error) { return []byte(`"` + k.String() + `"`), nil }

// generate makes a sealed row with a fresh key for p.
func (r *Ring) generate(p Purpose, serial uint64) (Sealed, error) {
	row := Sealed{Purpose: p, Serial: serial, KEK: r.cfg.KEK.ID(), Created: r.cfg.Now()}
	if p.perBroker() {
		row.Owner = r.cfg.Broker
	}
	secret, public, err := r.material(p)
	if err != nil {
		return Sealed{}, err
	}
	row.Public = base64.StdEncoding.EncodeToString(public)
	row.Box = r.cfg.KEK.Seal(row.context(), secret)
	return row, nil
}

// material returns the private bytes (PKCS #8 for key pairs) and the public ones.
func (r *Ring) material(p Purpose) (secret, public []byte, err error) {
	switch p {
	case CookieSecret, TokenSecret:
		return random(secretLen), nil, nil
	case DataKey:
		return random(boxKeyLen), nil, nil
	case RelayKey:
		return random(relayLen), nil, nil
	case SigningKey:
		return r.signingMaterial()
	case CAKey:
		return r.caMaterial()
	case OIDCKey, ServerKey:
		priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, nil, err
		}
		return pair(priv)
	default:
		return nil, nil, fmt.Errorf("unknown purpose %q", p)
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// pair encodes a key pair.
func pair(priv crypto.Signer) (secret, public []byte, err error) {
	if secret, err = x509.MarshalPKCS8PrivateKey(priv); err != nil {
		return nil, nil, err
	}
	public, err = x509.MarshalPKIXPublicKey(priv.Public())
	return secret, public, err
}

// signingMaterial makes a signing key with a certificate of the CA, which must exist.
func (r *Ring) signingMaterial() (secret, public []byte, err error) {
	ca, err := r.CA()
	if err != nil {
		return nil, nil, err
	}
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if secret, err = x509.MarshalPKCS8PrivateKey(priv); err != nil {
		return nil, nil, err
	}
	public, err = ca.CertifySigner(pub, r.cfg.Broker)
	return secret, public, err
}

func (r *Ring) caMaterial() (secret, public []byte, err error) {
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if secret, err = x509.MarshalPKCS8PrivateKey(priv); err != nil {
		return nil, nil, err
	}
	public, err = selfSign(priv, r.cfg.Org, r.cfg.Now())
	return secret, public, err
}

// open unseals one row.
func (r *Ring) open(row Sealed) (*Key, error) {
	secret, err := r.cfg.KEK.Open(row.context(), row.Box)
	if err != nil {
		return nil, err
	}
	k := &Key{Purpose: row.Purpose, Owner: row.Owner, Serial: row.Serial, Created: row.Created}
	switch row.Purpose {
	case CookieSecret, TokenSecret, DataKey, RelayKey:
		k.secret = secret
		return k, nil
	}
	return k, k.parse(secret, row.Public)
}

// parse fills a key pair and its certificate, and checks that they belong together.
func (k *Key) parse(secret []byte, public string) error {
	priv, err := x509.ParsePKCS8PrivateKey(secret)
	if err != nil {
		return fmt.Errorf("%w: not a private key", ErrDamaged)
	}
	signer, ok := priv.(crypto.Signer)
	if !ok {
		return fmt.Errorf("%w: not a signing key", ErrDamaged)
	}
	k.signer = signer
	if k.Purpose != CAKey && k.Purpose != SigningKey {
		return nil
	}
	if k.cert, err = parsePublicCert(public); err != nil {
		return err
	}
	if pub, ok := k.cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(signer.Public()) {
		return fmt.Errorf("%w: the certificate is of another key", ErrDamaged)
	}
	return nil
}

func parsePublicCert(public string) (*x509.Certificate, error) {
	der, err := base64.StdEncoding.DecodeString(public)
	if err != nil {
		return nil, fmt.Errorf("%w: certificate: %w", ErrDamaged, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, errors.Join(ErrDamaged, err)
	}
	return cert, nil
}
