package backup

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"

	"golang.org/x/crypto/argon2"
)

const (
	// minPassphrase is short enough for six words and long enough to make guessing at 64 MiB
	// for each try hopeless.
	minPassphrase = 12
	keyLen        = 32
	saltLen       = 16
	// argon2id as RFC 9106 recommends for 64 MiB: three passes, four lanes.
	argonTime    = 3
	argonMemory  = 64 << 10
	argonThreads = 4
	// maxArgonMemory and maxArgonTime bound what a file may ask of us.
	maxArgonMemory = 1 << 20
	maxArgonTime   = 16
	keyFilePrefix  = "postern-backup-key-1 "
)

// Secret opens and closes backups: a passphrase or a key file. It never prints.
type Secret struct {
	passphrase []byte
	key        []byte
}

// Passphrase returns the secret of a passphrase of at least 12 bytes.
func Passphrase(p []byte) (Secret, error) {
	if len(p) < minPassphrase {
		return Secret{}, fmt.Errorf("%w: at least %d characters", ErrWeak, minPassphrase)
	}
	return Secret{passphrase: append([]byte(nil), p...)}, nil
}

// NewKeyFile returns the content of a fresh key file.
func NewKeyFile() []byte {
	key := make([]byte, keyLen)
	rand.Read(key)
	return []byte(keyFilePrefix + base64.StdEncoding.EncodeToString(key) + "\n")
}

// KeyFile reads the key file at path, which others must not be able to read.
func KeyFile(path string) (Secret, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Secret{}, fmt.Errorf("backup key: %w", err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return Secret{}, fmt.Errorf("backup key: others can read %s (mode %04o): run chmod 600 on it", path, info.Mode().Perm())
	}
	if info.Size() > 1024 {
		return Secret{}, fmt.Errorf("backup key: %s is not a key file", path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return Secret{}, fmt.Errorf("backup key: %w", err)
	}
	body, ok := strings.CutPrefix(strings.TrimSpace(string(text)), strings.TrimSpace(keyFilePrefix))
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(body))
	if !ok || err != nil || len(key) != keyLen {
		return Secret{}, fmt.Errorf("backup key: %s is not a key file", path)
	}
	return Secret{key: key}, nil
}

// String hides the secret.
func (s Secret) String() string { return "[backup secret]" }

// GoString hides the secret.
func (s Secret) GoString() string { return s.String() }

// LogValue hides the secret.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalJSON hides the secret.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + s.String() + `"`), nil }

// header is the clear part of the file.
type header struct {
	KDF     string `json:"kdf"`
	Salt    []byte `json:"salt"`
	Time    uint32 `json:"time,omitempty"`
	Memory  uint32 `json:"memory_kib,omitempty"`
	Threads uint8  `json:"threads,omitempty"`
}

const (
	kdfArgon   = "argon2id"
	kdfKeyFile = "key-file"
)

// newHeader returns the header for a new file under s.
func (s Secret) newHeader() header {
	h := header{KDF: kdfKeyFile, Salt: make([]byte, saltLen)}
	rand.Read(h.Salt)
	if s.key == nil {
		h.KDF, h.Time, h.Memory, h.Threads = kdfArgon, argonTime, argonMemory, argonThreads
	}
	return h
}

// check refuses parameters that would make us work without bound or that say nothing.
func (h header) check() error {
	if len(h.Salt) != saltLen {
		return fmt.Errorf("%w: salt", ErrNotBackup)
	}
	switch h.KDF {
	case kdfKeyFile:
		return nil
	case kdfArgon:
		if h.Time == 0 || h.Time > maxArgonTime || h.Memory < 8*uint32(max(h.Threads, 1)) || h.Memory > maxArgonMemory || h.Threads == 0 {
			return fmt.Errorf("%w: parameters", ErrNotBackup)
		}
		return nil
	default:
		return fmt.Errorf("%w: key derivation %q", ErrNotBackup, h.KDF)
	}
}

// fileKey derives the key of one file from s, its header and the header's bytes.
func (s Secret) fileKey(h header, raw []byte) ([]byte, error) {
	var master []byte
	switch {
	case h.KDF == kdfArgon && s.passphrase != nil:
		master = argon2.IDKey(s.passphrase, h.Salt, h.Time, h.Memory, h.Threads, keyLen)
	case h.KDF == kdfKeyFile && s.key != nil:
		master = s.key
	default:
		return nil, fmt.Errorf("%w: this backup needs a %s", ErrWrongKey, map[string]string{kdfArgon: "passphrase", kdfKeyFile: "key file"}[h.KDF])
	}
	return hkdf.Key(sha256.New, master, h.Salt, "postern backup/1\x00"+string(raw), keyLen)
}
