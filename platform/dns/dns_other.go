//go:build !linux

package dns

import (
	"context"
	"errors"
	"fmt"
)

func (h *Host) climb(context.Context, Config) (Status, error) {
	return Status{}, fmt.Errorf("resolver configuration on this system: %w", errors.ErrUnsupported)
}

// restore has nothing to do: nothing was ever set.
func (h *Host) restore(context.Context, string) error { return nil }

func (h *Host) inPlace(context.Context) bool { return false }
