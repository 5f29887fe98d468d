package enroll

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
)

// The text form, all in lower case and without characters that break a double click:
//
//	pst_join_ slug _ secret(32) check(6)
//
// slug names the site for the eyes of people and decides nothing; secret is 160 random bits
// and check is taken over everything before it, both in base 32 without i, l, o, u.
const (
	prefix    = "pst_join_"
	secretLen = 32
	checkLen  = 6
	maxSlug   = 16
	// maxText bounds what is looked at: a token with line breaks of a mail around it.
	maxText = 512
	// lookupLen is how many bytes of the hash find the row.
	lookupLen = 8
)

// encode writes bytes in the alphabet of the text form.
func encode(b []byte) string {
	return base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding).EncodeToString(b)
}

// Hash is the SHA-256 of a token's text from prefix to secret: what the store keeps.
type Hash [sha256.Size]byte

// Lookup returns the part of the hash that finds the row. The whole hash is then compared in
// constant time, so that the time of an answer says nothing about a guess.
func (h Hash) Lookup() []byte { return h[:lookupLen] }

// equal compares in constant time.
func (h Hash) equal(o Hash) bool { return subtle.ConstantTimeCompare(h[:], o[:]) == 1 }

// Text is a join token as it is shown once and pasted. It prints as "pst_join_...".
type Text struct{ secret string }

// newText draws a token for a site or relay of this name.
func newText(name string) Text {
	raw := make([]byte, secretLen*5/8)
	rand.Read(raw)
	body := prefix + slug(name) + "_" + encode(raw)
	return Text{body + check(body)}
}

// ParseText reads a pasted token: white space, line breaks and quotes around and inside it,
// and the case of letters do not matter. The error says what is wrong with the paste and
// never repeats it.
func ParseText(pasted string) (Text, error) {
	if len(pasted) > maxText {
		return Text{}, malformed("it has %d characters, a token has fewer than 80", len(pasted))
	}
	s := strings.ToLower(strings.Map(dropNoise, pasted))
	rest, ok := strings.CutPrefix(s, prefix)
	if !ok {
		return Text{}, malformed("it does not begin with %s", prefix)
	}
	name, random, ok := strings.Cut(rest, "_")
	if !ok || name != slug(name) {
		return Text{}, malformed("the part after %s is damaged, copy the whole token", prefix)
	}
	switch n := len(random); {
	case n < secretLen+checkLen:
		return Text{}, malformed("the end is missing: %d of %d characters, copy the whole token", n, secretLen+checkLen)
	case n > secretLen+checkLen:
		return Text{}, malformed("there are %d characters behind its end", n-secretLen-checkLen)
	}
	body := s[:len(s)-checkLen]
	if check(body) != s[len(s)-checkLen:] {
		return Text{}, malformed("a character was changed, copy it again")
	}
	return Text{s}, nil
}

// Reveal returns the token itself, for the one time that it is shown or sent.
func (t Text) Reveal() string { return t.secret }

// hash returns what the store keeps of the token.
func (t Text) hash() Hash { return sha256.Sum256([]byte(t.secret[:len(t.secret)-checkLen])) }

// IsZero reports whether there is no token.
func (t Text) IsZero() bool { return t.secret == "" }

// String redacts.
func (t Text) String() string { return prefix + "..." }

// GoString redacts for %#v.
func (t Text) GoString() string { return t.String() }

// Format redacts for every verb.
func (t Text) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(t.String())) }

// LogValue redacts in logs.
func (t Text) LogValue() slog.Value { return slog.StringValue(t.String()) }

// MarshalJSON redacts.
func (t Text) MarshalJSON() ([]byte, error) { return json.Marshal(t.String()) }

// check returns the check characters of a token's body.
func check(body string) string {
	sum := sha256.Sum256([]byte("postern join token check " + body))
	return encode(sum[:5])[:checkLen]
}

// slug shortens a name to letters and digits.
func slug(name string) string {
	s := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, strings.ToLower(name))
	if s == "" {
		return "site"
	}
	return s[:min(len(s), maxSlug)]
}

// dropNoise removes what copying adds: white space, quotes, zero-width characters.
func dropNoise(r rune) rune {
	switch {
	case r <= ' ', r == 0x7f, r == 0xa0, r >= 0x2000 && r <= 0x200f, r >= 0x2028 && r <= 0x202f, r == 0x2060, r == 0xfeff:
		return -1
	case strings.ContainsRune("\"'`“”‘’<>", r):
		return -1
	default:
		return r
	}
}
