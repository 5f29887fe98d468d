package keys

import "errors"

// Errors for errors.Is.
var (
	// ErrWrongKEK: the keys in the store were sealed with another key-encryption key.
	ErrWrongKEK = errors.New("the keys are sealed with another key-encryption key")
	// ErrDamaged: a sealed key does not open although the key-encryption key is right.
	ErrDamaged = errors.New("a sealed key is damaged")
	// ErrMissing: there is no key for the purpose; Create or Ensure makes one.
	ErrMissing = errors.New("no key for this purpose")
	// ErrBadRequest: a certificate request is malformed, too large, of a key type that is
	// not accepted, or without proof of possession.
	ErrBadRequest = errors.New("certificate request refused")
	// ErrBadCertificate: a peer's certificate is not one of this CA, or not for this use.
	ErrBadCertificate = errors.New("certificate refused")
	// ErrExpired: the certificate is ours and was valid, but not any more.
	ErrExpired = errors.New("certificate expired")
)
