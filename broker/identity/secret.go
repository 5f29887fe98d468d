package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"log/slog"
	"strings"
)

// Secret is a text that must not reach a log, an error or JSON. Reveal is the only way out.
type Secret struct{ text string }

// NewSecret wraps text.
func NewSecret(text string) Secret { return Secret{text} }

// Reveal returns the text, for the one place that needs it.
func (s Secret) Reveal() string { return s.text }

// IsZero reports whether there is no text.
func (s Secret) IsZero() bool { return s.text == "" }

const redacted = "[redacted]"

// String hides the text.
func (s Secret) String() string { return redacted }

// GoString hides the text from %#v.
func (s Secret) GoString() string { return redacted }

// LogValue hides the text from slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON hides the text from JSON.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// Code is a one-time code: it opens one page once.
type Code struct{ Secret }

// codeAlphabet is Crockford's base 32: no I, L, O, U, so codes survive being read aloud.
const codeAlphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// codeGroups of codeGroupLen characters of 5 bits: 100 bits, beyond guessing.
const (
	codeGroups   = 4
	codeGroupLen = 5
)

// newCode draws a code such as "7F3KQ-...-...-...".
func newCode() Code {
	b := make([]byte, codeGroups*codeGroupLen)
	rand.Read(b)
	var out strings.Builder
	for i, v := range b {
		if i > 0 && i%codeGroupLen == 0 {
			out.WriteByte('-')
		}
		out.WriteByte(codeAlphabet[v%32])
	}
	return Code{NewSecret(out.String())}
}

// parseCode reads a code as people paste it: any case, with or without hyphens, with the #
// or the whole link in front, O for 0, I and L for 1.
func parseCode(s string) Code {
	if i := strings.LastIndexByte(s, '#'); i >= 0 {
		s = s[i+1:]
	}
	clean := strings.NewReplacer("-", "", " ", "", "O", "0", "I", "1", "L", "1").Replace(strings.ToUpper(strings.TrimSpace(s)))
	if len(clean) != codeGroups*codeGroupLen {
		return Code{}
	}
	var out strings.Builder
	for i := range len(clean) {
		if i > 0 && i%codeGroupLen == 0 {
			out.WriteByte('-')
		}
		out.WriteByte(clean[i])
	}
	return Code{NewSecret(out.String())}
}

// newToken draws a random text for ids, states, nonces and refresh tokens: 256 bits.
func newToken() string {
	b := make([]byte, 32)
	rand.Read(b)
	return base64.RawURLEncoding.EncodeToString(b)
}

// hashKey is how bearer texts are stored. They are random and long, so a plain hash is
// enough; passwords use argon2id.
func hashKey(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}
