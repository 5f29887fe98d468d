//go:build unix

package daemon

import (
	"os"

	"golang.org/x/sys/unix"
)

func stopSignals() []os.Signal { return []os.Signal{os.Interrupt, unix.SIGTERM} }
