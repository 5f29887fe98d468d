package udpio

import (
	"errors"

	"golang.org/x/sys/windows"
)

func isSizeError(err error) bool { return errors.Is(err, windows.WSAEMSGSIZE) }
