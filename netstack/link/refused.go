package link

import (
	"errors"
	"syscall"
)

// windowsRefused is WSAECONNREFUSED; on Windows syscall.ECONNREFUSED is another number.
const windowsRefused = syscall.Errno(10061)

// refused reports a port that answered "nobody here".
func refused(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, windowsRefused)
}
