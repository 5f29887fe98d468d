package directory

import "errors"

var (
	// ErrNotFound: no user or group with this key.
	ErrNotFound = errors.New("not found in the directory")
	// ErrExists: the key or local login is taken.
	ErrExists = errors.New("already in the directory")
	// ErrAmbiguous: several users or groups match, name one by its id.
	ErrAmbiguous = errors.New("several entries match, use the id")
	// ErrInvalid: a value breaks a rule of the directory.
	ErrInvalid = errors.New("invalid value")
	// ErrLastOwner: the change would leave nobody who can administer the broker.
	ErrLastOwner = errors.New("the last owner cannot be disabled or demoted")
)
