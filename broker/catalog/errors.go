package catalog

import (
	"errors"
	"fmt"
)

// Errors that callers branch on with errors.Is.
var (
	// ErrNotFound: no site, app or proposal with this key.
	ErrNotFound = errors.New("not found in the catalog")
	// ErrConflict: the thing was changed since it was read, or is still referred to.
	ErrConflict = errors.New("changed in the meantime or still in use")
	// ErrExists: the name is taken.
	ErrExists = errors.New("name already taken")
	// ErrInvalid: a value breaks a rule; FieldError says which.
	ErrInvalid = errors.New("invalid value")
	// ErrUnsupported: the value is planned but not served by this release.
	ErrUnsupported = errors.New("not yet supported")
)

// FieldError names one field that breaks a rule. Several of them come joined.
type FieldError struct {
	Field   string
	Problem string
	// Kind is ErrInvalid or ErrUnsupported.
	Kind error
}

// Error returns "field: problem".
func (e *FieldError) Error() string { return e.Field + ": " + e.Problem }

// Unwrap returns the kind, so that errors.Is finds it.
func (e *FieldError) Unwrap() error { return e.Kind }

func invalid(field, format string, args ...any) error {
	return &FieldError{Field: field, Problem: fmt.Sprintf(format, args...), Kind: ErrInvalid}
}

func unsupported(field, format string, args ...any) error {
	return &FieldError{Field: field, Problem: fmt.Sprintf(format, args...), Kind: ErrUnsupported}
}
