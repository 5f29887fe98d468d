package route

import (
	"errors"
	"fmt"
	"net/netip"
)

// ErrNoneFree is returned when every candidate overlaps something on this host.
var ErrNoneFree = errors.New("every address prefix of the list is in use on this host")

// blockBits is the length below which a route says "everything" rather than "this
// network": full-tunnel VPNs split the default route in halves. Our longer routes
// win over such ones.
const blockBits = 8

// Choose returns the first candidate that overlaps no address and no route of this
// host, those of the interface skip aside. To keep a prefix across restarts the
// caller puts the earlier choice first.
func (r *Router) Choose(candidates []netip.Prefix, skip string) (netip.Prefix, error) {
	used, err := r.host.InUse(skip)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("list prefixes in use: %w", err)
	}
	p, ok := FirstFree(candidates, used)
	if !ok {
		return netip.Prefix{}, ErrNoneFree
	}
	return p, nil
}

// FirstFree returns the first candidate that overlaps none of the used prefixes.
func FirstFree(candidates, used []netip.Prefix) (netip.Prefix, bool) {
	for _, c := range candidates {
		if c.IsValid() && !overlapsAny(c, used) {
			return c.Masked(), true
		}
	}
	return netip.Prefix{}, false
}

func overlapsAny(c netip.Prefix, used []netip.Prefix) bool {
	for _, u := range used {
		if u.Bits() >= blockBits && c.Overlaps(u) {
			return true
		}
	}
	return false
}
