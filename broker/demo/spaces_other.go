//go:build !linux

package demo

import (
	"context"
	"errors"
)

// spacesSupported reports whether this system has network namespaces.
func spacesSupported() bool { return false }

func newSpaces(context.Context) (network, error) { return nil, errors.ErrUnsupported }
