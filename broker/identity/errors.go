package identity

import (
	"errors"
	"fmt"
)

// Reason says why an identity was not accepted. The texts are wire and metric values.
type Reason string

// Reasons. ReasonUnverified is what people see for each failed password sign-in, whatever
// the cause.
const (
	ReasonUnverified       Reason = "identity_unverified"
	ReasonStale            Reason = "identity_stale"
	ReasonRevoked          Reason = "identity_revoked"
	ReasonUserDisabled     Reason = "user_disabled"
	ReasonGroupsIncomplete Reason = "groups_incomplete"
	ReasonThrottled        Reason = "throttled"
	ReasonTokenMalformed   Reason = "token_malformed"
	ReasonTokenAlgorithm   Reason = "token_algorithm"
	ReasonTokenSignature   Reason = "token_signature"
	ReasonTokenIssuer      Reason = "token_issuer"
	ReasonTokenAudience    Reason = "token_audience"
	ReasonTokenExpired     Reason = "token_expired"
	ReasonTokenNotYet      Reason = "token_not_yet_valid"
	ReasonTokenNonce       Reason = "token_nonce"
	ReasonTokenKey         Reason = "token_key"
	ReasonTokenSubject     Reason = "token_subject"
	ReasonIdPUnreachable   Reason = "idp_unreachable"
	ReasonIdPRefused       Reason = "idp_refused"
)

// Error is a refusal with its reason.
type Error struct {
	Reason Reason
	Err    error // detail for the log; may be nil
}

// Error names the reason and the detail.
func (e *Error) Error() string {
	if e.Err == nil {
		return string(e.Reason)
	}
	return fmt.Sprintf("%s: %v", e.Reason, e.Err)
}

// Unwrap returns the detail.
func (e *Error) Unwrap() error { return e.Err }

// ReasonOf returns the reason inside err, or ReasonUnverified for any other error, so that
// an unknown failure never reads as success. It returns "" for nil.
func ReasonOf(err error) Reason {
	if err == nil {
		return ""
	}
	var refused *Error
	if errors.As(err, &refused) {
		return refused.Reason
	}
	return ReasonUnverified
}

func refuse(r Reason, err error) error { return &Error{Reason: r, Err: err} }

var (
	// ErrNotFound: the record or issuer does not exist, or has expired.
	ErrNotFound = errors.New("no such identity record")
	// ErrExists: a record with this key exists.
	ErrExists = errors.New("identity record exists")
	// ErrCode: a one-time code is wrong, used or expired.
	ErrCode = errors.New("the code is wrong, was used already, or has expired")
	// ErrPassword: the new password breaks a rule.
	ErrPassword = errors.New("the password is not accepted")
	// ErrBusy: all password checks are in use; try again.
	ErrBusy = errors.New("too many sign-ins at once")
	// ErrIssuer: the settings of an external issuer do not work.
	ErrIssuer = errors.New("the issuer cannot be used")
)
