//go:build !unix

package ipc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
)

// Listener is a local socket that knows who calls.
type Listener struct{ net.Listener }

// Listen reports [errors.ErrUnsupported]: without the kernel's word on the caller
// nobody is served.
func Listen(context.Context, string, fs.FileMode) (*Listener, error) {
	return nil, fmt.Errorf("local socket: %w", errors.ErrUnsupported)
}

func isNotRunning(err error) bool { return errors.Is(err, fs.ErrNotExist) }
