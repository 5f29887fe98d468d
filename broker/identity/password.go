package identity

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"
)

// Limits of passwords: long enough to stand without rules about characters, short enough
// that hashing one is bounded.
const (
	minPassword = 12
	maxPassword = 256
	hashLen     = 32
	saltLen     = 16
	// hashWait is how long a sign-in waits for its turn before the page says "busy".
	hashWait = 5 * time.Second
	// Bounds on stored parameters: a damaged row must not take the machine down.
	maxHashMemory = 1 << 20 // KiB
	maxHashTime   = 64
)

// HashParams is the cost of argon2id.
type HashParams struct {
	MemoryKiB uint32
	Time      uint32
	Threads   uint8
}

// DefaultHash returns the OWASP recommendation for argon2id: about 30 ms on one core.
func DefaultHash() HashParams { return HashParams{MemoryKiB: 19 * 1024, Time: 2, Threads: 1} }

// hasher bounds how many passwords are hashed at once: memory and cores stay available to
// the rest of the broker whatever arrives at the login page.
type hasher struct {
	params HashParams
	slots  chan struct{}
	// absent is checked for users without a password, so that they cost the same.
	absent string
}

func newHasher(p HashParams) *hasher {
	return &hasher{
		params: p,
		slots:  make(chan struct{}, max(2, runtime.NumCPU())),
		absent: encodeHash(p, make([]byte, saltLen), make([]byte, hashLen)),
	}
}

// hash returns the PHC form of a new password.
func (h *hasher) hash(ctx context.Context, password Secret) (string, error) {
	release, err := h.acquire(ctx)
	if err != nil {
		return "", err
	}
	defer release()
	salt := make([]byte, saltLen)
	rand.Read(salt)
	return encodeHash(h.params, salt, derive(h.params, salt, password)), nil
}

// verify compares a password with a PHC text. An empty text costs as much and never matches.
func (h *hasher) verify(ctx context.Context, password Secret, encoded string) (bool, error) {
	release, err := h.acquire(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	known := encoded != ""
	if !known {
		encoded = h.absent
	}
	p, salt, want, err := decodeHash(encoded)
	if err != nil {
		return false, err
	}
	same := subtle.ConstantTimeCompare(derive(p, salt, password), want) == 1
	return same && known, nil
}

func (h *hasher) acquire(ctx context.Context) (release func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, hashWait)
	defer cancel()
	select {
	case h.slots <- struct{}{}:
		return func() { <-h.slots }, nil
	case <-ctx.Done():
		return nil, ErrBusy
	}
}

func derive(p HashParams, salt []byte, password Secret) []byte {
	text := password.Reveal()
	if len(text) > maxPassword {
		text = "" // no stored password is empty
	}
	return argon2.IDKey([]byte(text), salt, p.Time, p.MemoryKiB, p.Threads, hashLen)
}

func encodeHash(p HashParams, salt, sum []byte) string {
	enc := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version,
		p.MemoryKiB, p.Time, p.Threads, enc.EncodeToString(salt), enc.EncodeToString(sum))
}

var errHash = errors.New("stored password hash is malformed")

func decodeHash(s string) (p HashParams, salt, sum []byte, err error) {
	parts := strings.Split(s, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return p, nil, nil, errHash
	}
	if n, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &p.MemoryKiB, &p.Time, &p.Threads); err != nil || n != 3 {
		return p, nil, nil, errHash
	}
	if p.MemoryKiB == 0 || p.MemoryKiB > maxHashMemory || p.Time == 0 || p.Time > maxHashTime || p.Threads == 0 {
		return p, nil, nil, errHash
	}
	salt, err1 := base64.RawStdEncoding.DecodeString(parts[4])
	sum, err2 := base64.RawStdEncoding.DecodeString(parts[5])
	if err1 != nil || err2 != nil || len(salt) < 8 || len(sum) != hashLen {
		return p, nil, nil, errHash
	}
	return p, salt, sum, nil
}

// checkNewPassword applies the rules: length, and not the person's own name. No rules about
// kinds of characters: they make passwords worse.
func checkNewPassword(password Secret, login string) error {
	text := password.Reveal()
	n := utf8.RuneCountInString(text)
	switch {
	case n < minPassword:
		return fmt.Errorf("%w: use at least %d characters; four or five unrelated words are good", ErrPassword, minPassword)
	case len(text) > maxPassword:
		return fmt.Errorf("%w: use at most %d bytes", ErrPassword, maxPassword)
	case strings.Count(text, text[:1]) == len(text):
		return fmt.Errorf("%w: it repeats one character", ErrPassword)
	case len(login) >= 4 && strings.Contains(strings.ToLower(text), strings.ToLower(login)):
		return fmt.Errorf("%w: it contains your login", ErrPassword)
	}
	return nil
}
