package enroll

import (
	"errors"
	"fmt"
)

// Errors that callers branch on with errors.Is. Those of redeeming have a reason code.
var (
	// ErrMalformed: the text is no whole token; the error says how the paste went wrong.
	ErrMalformed = errors.New("malformed join token")
	// ErrUnknown: no token of this kind has this secret.
	ErrUnknown = errors.New("unknown join token")
	// ErrUsed: the one-time token served another machine.
	ErrUsed = errors.New("join token already used")
	// ErrExpired: the token is too old.
	ErrExpired = errors.New("join token expired")
	// ErrRevoked: an admin revoked the token.
	ErrRevoked = errors.New("join token revoked")

	// ErrInvalid: the wish for a token breaks a rule.
	ErrInvalid = errors.New("invalid value")
	// ErrNotFound: no token or use with this key.
	ErrNotFound = errors.New("join token not found")
)

// Reason returns the code of a refused redemption, or "" for another error. An outsider
// learns no more than this.
func Reason(err error) string {
	switch {
	case errors.Is(err, ErrMalformed):
		return "token_malformed"
	case errors.Is(err, ErrUnknown):
		return "token_unknown"
	case errors.Is(err, ErrUsed):
		return "token_used"
	case errors.Is(err, ErrExpired):
		return "token_expired"
	case errors.Is(err, ErrRevoked):
		return "token_revoked"
	default:
		return ""
	}
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
}
