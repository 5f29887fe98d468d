package keys

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

const (
	kekLen = boxKeyLen
	// kekPrefix starts the key file, so that a person who opens it knows what it is.
	kekPrefix = "postern-kek-1 "
	// maxKEKFile bounds what is read as a key file.
	maxKEKFile = 1024
)

// KEK is the key-encryption key. Its id may be shown, its bytes never.
type KEK struct {
	*Box
	raw [kekLen]byte
}

// NewKEK returns a fresh random key.
func NewKEK() *KEK {
	return kekOf([kekLen]byte(random(kekLen)))
}

func kekOf(raw [kekLen]byte) *KEK {
	return &KEK{Box: newBox(raw), raw: raw}
}

// LoadKEK reads the key from the file at path. The file must not be readable by others.
func LoadKEK(path string) (*KEK, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("key-encryption key: %w", err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("key-encryption key: others can read %s (mode %04o): run chmod 600 on it", path, info.Mode().Perm())
	}
	if info.Size() > maxKEKFile {
		return nil, fmt.Errorf("key-encryption key: %s is not a key file", path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("key-encryption key: %w", err)
	}
	k, err := ParseKEK(text)
	if err != nil {
		return nil, fmt.Errorf("key-encryption key: %s: %w", path, err)
	}
	return k, nil
}

// LoadOrCreateKEK is LoadKEK, and makes the file when there is none; created says so.
func LoadOrCreateKEK(path string) (k *KEK, created bool, err error) {
	k, err = LoadKEK(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, false, err
	}
	k = NewKEK()
	err = k.create(path)
	if errors.Is(err, fs.ErrExist) { // another process was faster
		k, err = LoadKEK(path)
		return k, false, err
	}
	if err != nil {
		return nil, false, fmt.Errorf("key-encryption key: %w", err)
	}
	return k, true, nil
}

// create writes the key file whole or not at all, and never over another one.
func (k *KEK) create(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".kek-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(k.encode())
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes a new name durable before anything is sealed with what it names.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // a directory cannot be synced there
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// ParseKEK reads what a key file holds.
func ParseKEK(text []byte) (*KEK, error) {
	body, ok := strings.CutPrefix(string(bytes.TrimSpace(text)), strings.TrimSpace(kekPrefix))
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(body))
	if !ok || err != nil || len(b) != kekLen {
		return nil, errors.New("not a postern key-encryption key")
	}
	return kekOf([kekLen]byte(b)), nil
}

func (k *KEK) encode() []byte {
	return []byte(kekPrefix + base64.StdEncoding.EncodeToString(k.raw[:]) + "\n")
}

// Export returns the content of the key file, for a backup that is itself encrypted.
func (k *KEK) Export() []byte { return k.encode() }
