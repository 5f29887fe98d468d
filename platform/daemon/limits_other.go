//go:build !linux && !darwin

package daemon

import "errors"

// RaiseFileLimit reports [errors.ErrUnsupported]: this system has no such limit.
func RaiseFileLimit(uint64) (uint64, error) { return 0, errors.ErrUnsupported }
