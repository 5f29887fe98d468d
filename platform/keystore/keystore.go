// Package keystore makes and keeps the identity key of a device or connector
// where it lives: made on this machine, never copied away.
//
// The client and the connector use it. The only store today is a file that its
// owner alone can read; [Key] tells whether hardware holds the key, so that trust
// never takes a file for more than it is. The package exports no private bytes.
//
// Keys are safe for concurrent use. Several processes may call [Open] on one
// directory at the same time: all get the same key.
package keystore

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
)

// fileName is the key file inside the directory given to Open.
const fileName = "identity.key"

// maxKeyFile bounds what is read: a P-256 key in PEM has about 240 bytes.
const maxKeyFile = 4 << 10

const pemType = "PRIVATE KEY"

// Errors a caller branches on.
var (
	// ErrExposed says that others than the owner can read or replace the key; it
	// must be treated as stolen, and this package does not use it.
	ErrExposed = errors.New("identity key is accessible to others")
	// ErrDamaged says that the key file holds no usable key.
	ErrDamaged = errors.New("identity key is damaged")
)

// Key is an identity key: it signs, and its private part stays where it is.
type Key interface {
	crypto.Signer
	// Hardware tells whether the private part is held by hardware that does not
	// give it out.
	Hardware() bool
}

var _ Key = (*fileKey)(nil)

// Open returns the identity key kept in dir and makes one, ECDSA P-256, at the
// first call. dir must exist.
func Open(dir string) (Key, error) {
	path := filepath.Join(dir, fileName)
	key, err := load(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if err := create(path); err != nil {
		return nil, fmt.Errorf("make identity key: %w", err)
	}
	return load(path)
}

// Remove deletes the identity key kept in dir. Without a key it does nothing.
func Remove(dir string) error {
	if err := os.Remove(filepath.Join(dir, fileName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove identity key: %w", err)
	}
	return nil
}

// fileKey is a key read from a file. Its fields stay unexported and every way of
// printing it is closed.
type fileKey struct{ key *ecdsa.PrivateKey }

// Public gives the public key, an *ecdsa.PublicKey.
func (k *fileKey) Public() crypto.PublicKey { return k.key.Public() }

// Sign signs a digest, see [crypto.Signer].
func (k *fileKey) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.key.Sign(rand, digest, opts)
}

// Hardware is false: a file can be copied by whoever becomes its owner.
func (k *fileKey) Hardware() bool { return false }

const redacted = "[identity key]"

// String hides the key.
func (k *fileKey) String() string { return redacted }

// GoString hides the key.
func (k *fileKey) GoString() string { return redacted }

// Format hides the key from every verb.
func (k *fileKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue hides the key.
func (k *fileKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON hides the key.
func (k *fileKey) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

func load(path string) (Key, error) {
	f, err := openNoFollow(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := checkPrivate(f); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, fmt.Errorf("read identity key: %w", err)
	}
	return parse(data)
}

func parse(data []byte) (Key, error) {
	if len(data) > maxKeyFile {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrDamaged, maxKeyFile)
	}
	block, rest := pem.Decode(data)
	if block == nil || block.Type != pemType || len(rest) != 0 {
		return nil, fmt.Errorf("%w: not one PEM block %q", ErrDamaged, pemType)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		// The cause is left out: it may quote the bytes of the key.
		return nil, fmt.Errorf("%w: not PKCS #8", ErrDamaged)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%w: not an ECDSA P-256 key", ErrDamaged)
	}
	return &fileKey{key: key}, nil
}

// create makes a key and puts it in place whole, unless another process was
// faster; then that one's key stays.
func create(path string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+fileName+".*.tmp") // made with 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	err = pem.Encode(tmp, &pem.Block{Type: pemType, Bytes: der})
	if err == nil {
		err = tmp.Sync()
	}
	if err := errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return publish(tmp.Name(), path)
}
