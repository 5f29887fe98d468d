package grant

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
	"github.com/postern-zt/postern/proto/tlv"
)

// Target is one place that a connector may dial for an app: published ports
// First..Last of a network go to Host, the first of them to port Base, the next to
// Base+1 and so on. Host is an address or a name that the connector resolves itself.
type Target struct {
	Ports Ports
	Host  string
	Base  uint16
}

// Port returns the target port for a published port inside the range.
func (t Target) Port(published uint16) uint16 { return t.Base + (published - t.Ports.First) }

// App is one app in an assignment.
type App struct {
	ID      ids.AppID
	Name    string
	Targets []Target
	// Gateway says that the broker itself may be the peer (decisions rule 11).
	Gateway bool
}

// Assignment is everything that a connector may ever dial, signed: a grant for an app or
// a port that is not in it opens nothing. A higher version replaces a lower one and a
// lower one is refused.
//
// Fields (proto/tlv): 1! constraints version  2! connector id  3! site id  4! version
// 5! app *  6! network *, where an app is 1! id  2 name  3! target *  4! gateway, a target
// is network(1) first(2) last(2) base(2) host, and a network is address(4 or 16) bits(1).
type Assignment struct {
	Connector ids.ConnectorID
	Site      ids.SiteID
	Version   uint64
	Apps      []App
	// Networks is where names of targets may resolve to; a target given as an address
	// stands for itself. Empty means: no name resolves anywhere.
	Networks []netip.Prefix
}

// Permits reports whether the connector may dial addr for target t: t's own literal
// address, or for a name an address inside Networks. Loopback, link-local and multicast
// addresses are never reached through a name.
func (a *Assignment) Permits(t Target, addr netip.Addr) bool {
	addr = addr.Unmap()
	if lit, err := netip.ParseAddr(t.Host); err == nil {
		return lit.Unmap() == addr
	}
	if !addr.IsValid() || addr.IsLoopback() || addr.IsLinkLocalUnicast() || addr.IsMulticast() || addr.IsUnspecified() {
		return false
	}
	for _, p := range a.Networks {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// Find returns the app with the given id.
func (a *Assignment) Find(id ids.AppID) (App, bool) {
	for _, app := range a.Apps {
		if app.ID == id {
			return app, true
		}
	}
	return App{}, false
}

// For returns the targets of the app for one published port, in order of preference.
func (a App) For(n Network, port uint16) []Target {
	var out []Target
	for _, t := range a.Targets {
		if t.Ports.Contains(n, port) {
			out = append(out, t)
		}
	}
	return out
}

// SealAssignment signs an assignment.
func SealAssignment(s *seal.Signer, a *Assignment) []byte {
	var w tlv.Writer
	w.PutUint(1, true, ConstraintsVersion)
	w.PutString(2, true, string(a.Connector))
	w.PutString(3, true, string(a.Site))
	w.PutUint(4, true, a.Version)
	for _, app := range a.Apps {
		w.Put(5, true, app.encode())
	}
	for _, p := range a.Networks {
		w.Put(6, true, append(p.Addr().AsSlice(), byte(p.Bits())))
	}
	return s.Seal(seal.Assignment, w.Bytes())
}

func (a App) encode() []byte {
	var w tlv.Writer
	w.PutString(1, true, string(a.ID))
	w.PutString(2, false, a.Name)
	for _, t := range a.Targets {
		w.Put(3, true, t.encode())
	}
	if a.Gateway {
		w.PutUint(4, true, 1)
	}
	return w.Bytes()
}

func (t Target) encode() []byte {
	b := encodePorts(t.Ports)
	b = binary.BigEndian.AppendUint16(b, t.Base)
	return append(b, t.Host...)
}

// OpenAssignment verifies and parses a sealed assignment.
func OpenAssignment(keys seal.Keys, envelope []byte) (*Assignment, error) {
	payload, err := keys.Open(seal.Assignment, envelope)
	if err != nil {
		return nil, fmt.Errorf("assignment: %w", err)
	}
	d, err := newDecoder(payload)
	if err != nil {
		return nil, fmt.Errorf("assignment: %w", err)
	}
	a := &Assignment{}
	for d.next() {
		switch d.f.Number {
		case 1:
			d.version()
		case 2:
			a.Connector = textID[ids.ConnectorID](d)
		case 3:
			a.Site = textID[ids.SiteID](d)
		case 4:
			a.Version = d.uint()
		case 5:
			a.Apps = append(a.Apps, d.app())
		case 6:
			a.Networks = append(a.Networks, d.prefix())
		default:
			d.unknown()
		}
	}
	if d.err != nil {
		return nil, fmt.Errorf("assignment: %w", d.err)
	}
	if a.Connector == "" || a.Site == "" {
		return nil, fmt.Errorf("assignment: %w: incomplete", tlv.ErrBadValue)
	}
	return a, nil
}

func (d *decoder) app() App {
	var a App
	n, err := newNested(d.f.Value)
	if err != nil {
		d.fail(err)
		return a
	}
	for n.next() {
		switch n.f.Number {
		case 1:
			a.ID = textID[ids.AppID](n)
		case 2:
			a.Name = n.text()
		case 3:
			a.Targets = append(a.Targets, n.target())
		case 4:
			a.Gateway = n.uint() == 1
		default:
			n.unknown()
		}
	}
	if n.err == nil && a.ID == "" {
		n.fail(fmt.Errorf("%w: app without id", tlv.ErrBadValue))
	}
	if n.err != nil {
		d.fail(n.err)
	}
	return a
}

func (d *decoder) prefix() netip.Prefix {
	v := d.f.Value
	if len(v) == 0 {
		d.fail(fmt.Errorf("%w: empty network", tlv.ErrBadValue))
		return netip.Prefix{}
	}
	addr, ok := netip.AddrFromSlice(v[:len(v)-1])
	p := netip.PrefixFrom(addr, int(v[len(v)-1]))
	if !ok || !p.IsValid() || p != p.Masked() {
		d.fail(fmt.Errorf("%w: malformed network", tlv.ErrBadValue))
	}
	return p
}

func (d *decoder) target() Target {
	v := d.f.Value
	if len(v) < 8 || len(v) > 7+253 {
		d.fail(fmt.Errorf("%w: malformed target", tlv.ErrBadValue))
		return Target{}
	}
	t := Target{
		Ports: Ports{Network: Network(v[0]), First: binary.BigEndian.Uint16(v[1:]), Last: binary.BigEndian.Uint16(v[3:])},
		Base:  binary.BigEndian.Uint16(v[5:]),
		Host:  string(v[7:]),
	}
	if err := t.check(); err != nil {
		d.fail(err)
	}
	return t
}

func (t Target) check() error {
	if err := t.Ports.check(); err != nil {
		return err
	}
	if t.Base == 0 || int(t.Base)+int(t.Ports.Last-t.Ports.First) > 65535 {
		return fmt.Errorf("%w: target ports leave 1-65535", tlv.ErrBadValue)
	}
	if strings.ContainsAny(t.Host, " \t\r\n/\\@") {
		return fmt.Errorf("%w: target host", tlv.ErrBadValue)
	}
	return nil
}
