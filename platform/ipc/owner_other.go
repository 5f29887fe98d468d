//go:build !linux

package ipc

import (
	"errors"
	"net/netip"
)

func owner(Protocol, netip.AddrPort, netip.AddrPort) (uint32, error) {
	return 0, errors.ErrUnsupported
}
