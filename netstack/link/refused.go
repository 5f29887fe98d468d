package link

import (
	"errors"
	"syscall"
)

// refused reports a port that answered "nobody here".
func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
