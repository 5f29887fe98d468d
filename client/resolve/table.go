package resolve

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// Entry is one published name.
type Entry struct {
	// Name is fully qualified, with or without the last dot, in any case.
	Name string
	// Addrs are its addresses on this device; a zero Addr is left out.
	Addrs Addrs
}

// Table holds the published names. It is immutable.
type Table struct {
	suffixes []string              // canonical: lower case with the last dot
	prefixes []netip.Prefix        // addresses that are ours, for PTR
	names    map[string]Addrs      // canonical name
	parents  map[string]struct{}   // names that exist only because something is below them
	reverse  map[netip.Addr]string // address to the first name that has it
}

// NewTable builds a table. Each name must lie under one of the suffixes; a name
// outside is an error, because we would answer for somebody else.
func NewTable(suffixes []string, prefixes []netip.Prefix, entries []Entry) (*Table, error) {
	t := &Table{
		prefixes: prefixes,
		names:    make(map[string]Addrs, len(entries)),
		parents:  make(map[string]struct{}),
		reverse:  make(map[netip.Addr]string, 2*len(entries)),
	}
	for _, s := range suffixes {
		if _, ok := dns.IsDomainName(s); !ok || s == "" || s == "." {
			return nil, fmt.Errorf("suffix %q is not a domain name", s)
		}
		t.suffixes = append(t.suffixes, dns.CanonicalName(s))
	}
	for _, e := range entries {
		if err := t.add(e); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func (t *Table) add(e Entry) error {
	name := dns.CanonicalName(e.Name)
	if _, ok := dns.IsDomainName(name); !ok || e.Name == "" {
		return fmt.Errorf("name %q is not a domain name", e.Name)
	}
	suffix, ok := t.suffix(name)
	if !ok {
		return fmt.Errorf("name %q lies under no declared suffix", e.Name)
	}
	t.names[name] = e.Addrs
	for _, a := range []netip.Addr{e.Addrs.V4, e.Addrs.V6} {
		if _, taken := t.reverse[a]; a.IsValid() && !taken {
			t.reverse[a] = name
		}
	}
	for up := parent(name); len(up) > len(suffix); up = parent(up) {
		t.parents[up] = struct{}{}
	}
	return nil
}

func parent(name string) string {
	_, up, _ := strings.Cut(name, ".")
	return up
}

// suffix returns the longest declared suffix above name.
func (t *Table) suffix(name string) (string, bool) {
	best := ""
	for _, s := range t.suffixes {
		if dns.IsSubDomain(s, name) && len(s) > len(best) {
			best = s
		}
	}
	return best, best != ""
}

// exists says that something lies at or below the canonical name.
func (t *Table) exists(name string) bool {
	if _, ok := t.names[name]; ok {
		return true
	}
	if _, ok := t.parents[name]; ok {
		return true
	}
	suffix, _ := t.suffix(name)
	return name == suffix
}

// Lookup returns the addresses of a published name.
func (t *Table) Lookup(name string) (Addrs, bool) {
	a, ok := t.names[dns.CanonicalName(name)]
	return a, ok
}

// NameOf returns the published name that has this address.
func (t *Table) NameOf(a netip.Addr) (string, bool) {
	name, ok := t.reverse[a.Unmap()]
	return strings.TrimSuffix(name, "."), ok
}

// owns says that the address lies in one of our prefixes.
func (t *Table) owns(a netip.Addr) bool {
	for _, p := range t.prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
