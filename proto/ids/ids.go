// Package ids holds the typed identifiers that cross role boundaries: in the wire
// formats, in the store, in logs and in the console. An id is an opaque string with a
// short prefix that names its kind ("usr_7f3k..."), so that a mixed-up argument fails to
// parse instead of selecting the wrong row. The package is pure; values are immutable.
package ids

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// randomLen is the length of the random part: 26 characters of 5 bits, 130 bits.
const randomLen = 26

// alphabet is Crockford's base 32 in lower case: no i, l, o, u, so ids survive being read aloud.
const alphabet = "0123456789abcdefghjkmnpqrstvwxyz"

// Typed ids. Convert from a string once, at the edge, with the Parse function of the kind.
type (
	UserID      string
	GroupID     string
	IssuerID    string
	DeviceID    string
	SessionID   string
	SiteID      string
	ConnectorID string
	RelayID     string
	AppID       string
	RuleID      string
	RevisionID  string
	GrantID     string
	TokenID     string
	BrokerID    string
	OrgID       string
)

// kind lists the types that New and Parse serve.
type kind interface {
	UserID | GroupID | IssuerID | DeviceID | SessionID | SiteID | ConnectorID | RelayID |
		AppID | RuleID | RevisionID | GrantID | TokenID | BrokerID | OrgID
}

// ErrMalformed marks a string that is not an id of the wanted kind.
var ErrMalformed = errors.New("malformed id")

// New returns a fresh random id of kind T.
func New[T kind]() T {
	return T(prefix[T]() + randomText(randomLen))
}

// Parse converts s to kind T, or fails when s has another prefix, length or alphabet.
func Parse[T kind](s string) (T, error) {
	p := prefix[T]()
	if len(s) != len(p)+randomLen || !strings.HasPrefix(s, p) {
		return "", fmt.Errorf("%w: want %s followed by %d characters", ErrMalformed, p, randomLen)
	}
	for _, c := range s[len(p):] {
		if !strings.ContainsRune(alphabet, c) {
			return "", fmt.Errorf("%w: unexpected character %q", ErrMalformed, c)
		}
	}
	return T(s), nil
}

func prefix[T kind]() string {
	var zero T
	switch any(zero).(type) {
	case UserID:
		return "usr_"
	case GroupID:
		return "grp_"
	case IssuerID:
		return "idp_"
	case DeviceID:
		return "dev_"
	case SessionID:
		return "ses_"
	case SiteID:
		return "sit_"
	case ConnectorID:
		return "con_"
	case RelayID:
		return "rly_"
	case AppID:
		return "app_"
	case RuleID:
		return "rul_"
	case RevisionID:
		return "rev_"
	case GrantID:
		return "gnt_"
	case TokenID:
		return "tok_"
	case BrokerID:
		return "brk_"
	default:
		return "org_"
	}
}

// randomText draws n characters of the alphabet; 256 is a multiple of 32, so no bias.
func randomText(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	for i := range b {
		b[i] = alphabet[b[i]%32]
	}
	return string(b)
}

// KeyID is the SHA-256 of a public key's SubjectPublicKeyInfo in DER: the name of an
// identity key in grants, assignments and certificates.
type KeyID [sha256.Size]byte

// KeyIDOf returns the KeyID of a DER-encoded SubjectPublicKeyInfo.
func KeyIDOf(spki []byte) KeyID { return sha256.Sum256(spki) }

// ParseKeyID reads the hexadecimal form that String writes.
func ParseKeyID(s string) (KeyID, error) {
	var k KeyID
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(k) {
		return KeyID{}, fmt.Errorf("%w: a key id is %d hexadecimal characters", ErrMalformed, 2*len(k))
	}
	copy(k[:], b)
	return k, nil
}

// String returns the key id in lower-case hexadecimal.
func (k KeyID) String() string { return hex.EncodeToString(k[:]) }

// IsZero reports whether k names no key.
func (k KeyID) IsZero() bool { return k == KeyID{} }
