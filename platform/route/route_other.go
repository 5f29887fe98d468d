//go:build !linux

package route

import (
	"errors"
	"fmt"
)

func newHost() (Host, error) {
	return nil, fmt.Errorf("routes on this system: %w", errors.ErrUnsupported)
}
