package backup

import "errors"

// Errors for errors.Is.
var (
	// ErrNotBackup: the file is no backup of a version that this program knows.
	ErrNotBackup = errors.New("not a postern backup")
	// ErrWrongKey: the passphrase or key file is not the one of this backup, or the
	// beginning of the file is damaged; the two look the same.
	ErrWrongKey = errors.New("wrong passphrase or key file")
	// ErrDamaged: the file was changed or cut.
	ErrDamaged = errors.New("the backup is damaged or incomplete")
	// ErrWeak: the passphrase is too short.
	ErrWeak = errors.New("the passphrase is too short")
)
