//go:build unix && !linux

package udpio

import (
	"errors"

	"golang.org/x/sys/unix"
)

func isSizeError(err error) bool { return errors.Is(err, unix.EMSGSIZE) }
