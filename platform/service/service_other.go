//go:build !linux

package service

import (
	"errors"
	"fmt"
)

// New reports [errors.ErrUnsupported]: on this system the installer registers the
// service.
func New() (*Manager, error) {
	return nil, fmt.Errorf("service: %w", errors.ErrUnsupported)
}
