//go:build !linux

package netmon

import (
	"context"
	"errors"
)

func watch(context.Context, string) (<-chan struct{}, func(), error) {
	return nil, nil, errors.ErrUnsupported
}

func current(string) (Network, error) { return Network{}, errors.ErrUnsupported }
