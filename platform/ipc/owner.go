package ipc

import (
	"fmt"
	"net/netip"
)

// Protocol is a transport protocol, with its IANA number.
type Protocol uint8

// The protocols whose sockets have an owner that can be asked for.
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

// Owner tells which user owns the socket of this machine that sends from local to
// remote. The error is [ErrNoOwner] when there is none, as for packets that are
// only forwarded; each error means that the traffic is nobody's and is refused.
//
// It may be called from many goroutines; each call opens its own netlink socket
// and takes some ten microseconds.
func Owner(proto Protocol, local, remote netip.AddrPort) (uint32, error) {
	local = netip.AddrPortFrom(local.Addr().Unmap().WithZone(""), local.Port())
	remote = netip.AddrPortFrom(remote.Addr().Unmap().WithZone(""), remote.Port())
	switch {
	case proto != TCP && proto != UDP:
		return 0, fmt.Errorf("owner of protocol %d: not supported", proto)
	case !local.IsValid() || !remote.IsValid() || local.Port() == 0 || remote.Port() == 0:
		return 0, fmt.Errorf("owner of %v to %v: incomplete address", local, remote)
	case local.Addr().Is4() != remote.Addr().Is4():
		return 0, fmt.Errorf("owner of %v to %v: two address families", local, remote)
	}
	return owner(proto, local, remote)
}
