package resolve

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Places inside a prefix. The first block is ours; apps follow in the order of
// their index, so an address never depends on which other apps exist.
const (
	offsetDevice = 1
	offsetDNS    = 53
	offsetApps   = 256
)

// maxBitsV4 leaves room for a few thousand apps beside our own block.
const maxBitsV4 = 20

// maxBitsV6 is one subnet; an index always fits its host part.
const maxBitsV6 = 64

// ErrIndex is returned for an app index that does not fit the prefix.
var ErrIndex = errors.New("app index does not fit the address prefix")

// Plan maps the index of an app to its addresses on this device. It is a pure
// function of the two prefixes, so it gives the same addresses after a restart.
type Plan struct {
	v4, v6 netip.Prefix
}

// NewPlan checks the prefixes. v6 must be a unique local prefix (fd00::/8); it may
// be the zero Prefix on a host without IPv6.
func NewPlan(v4, v6 netip.Prefix) (Plan, error) {
	if !v4.IsValid() || !v4.Addr().Is4() || v4.Bits() > maxBitsV4 || v4.Bits() == 0 {
		return Plan{}, fmt.Errorf("IPv4 prefix %v: want one of at most %d bits", v4, maxBitsV4)
	}
	if v6.IsValid() && (!isULA(v6.Addr()) || v6.Bits() > maxBitsV6 || v6.Bits() < 8) {
		return Plan{}, fmt.Errorf("IPv6 prefix %v: want a unique local one of at most %d bits", v6, maxBitsV6)
	}
	p := Plan{v4: v4.Masked()}
	if v6.IsValid() {
		p.v6 = netip.PrefixFrom(v6.Masked().Addr(), maxBitsV6)
	}
	return p, nil
}

func isULA(a netip.Addr) bool { return a.Is6() && a.As16()[0] == 0xfd }

// Addrs is a pair of addresses. V6 is the zero Addr in a plan without IPv6.
type Addrs struct {
	V4, V6 netip.Addr
}

// Device returns the addresses of the tunnel interface.
func (p Plan) Device() Addrs { return p.at(offsetDevice) }

// DNS returns the addresses on which our resolver is reached.
func (p Plan) DNS() Addrs { return p.at(offsetDNS) }

// App returns the addresses of the app with this index.
func (p Plan) App(index uint32) (Addrs, error) {
	if !p.v4.IsValid() {
		return Addrs{}, errors.New("address plan is empty")
	}
	offset := uint64(offsetApps) + uint64(index)
	last := uint64(1)<<(32-p.v4.Bits()) - 1 // the broadcast address
	if offset >= last {
		return Addrs{}, fmt.Errorf("%w: %d in %v", ErrIndex, index, p.v4)
	}
	return p.at(offset), nil
}

// Prefixes returns what the plan covers, without invalid ones.
func (p Plan) Prefixes() []netip.Prefix {
	var out []netip.Prefix
	for _, prefix := range []netip.Prefix{p.v4, p.v6} {
		if prefix.IsValid() {
			out = append(out, prefix)
		}
	}
	return out
}

func (p Plan) at(offset uint64) Addrs {
	a := Addrs{V4: addV4(p.v4.Addr(), uint32(offset))}
	if p.v6.IsValid() {
		a.V6 = addV6(p.v6.Addr(), offset)
	}
	return a
}

func addV4(a netip.Addr, offset uint32) netip.Addr {
	b := a.As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+offset)
	return netip.AddrFrom4(b)
}

func addV6(a netip.Addr, offset uint64) netip.Addr {
	b := a.As16() // the prefix is a /64: the host part alone can change
	binary.BigEndian.PutUint64(b[8:], offset)
	return netip.AddrFrom16(b)
}
