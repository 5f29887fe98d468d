package catalog

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// PortRange is a range of ports, both ends included; a single port is a range of one.
type PortRange struct {
	First uint16 `json:"first"`
	Last  uint16 `json:"last"`
}

// String returns "80" or "8000-8010".
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// Contains reports whether all of o lies in r.
func (r PortRange) Contains(o PortRange) bool { return o.First >= r.First && o.Last <= r.Last }

// size returns how many ports the range has.
func (r PortRange) size() int { return int(r.Last) - int(r.First) + 1 }

// ParsePorts reads "80", "8000-8010" or a list of them with commas.
func ParsePorts(s string) ([]PortRange, error) {
	var out []PortRange
	for part := range strings.SplitSeq(s, ",") {
		r, err := parseRange(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return mergePorts(out), nil
}

func parseRange(s string) (PortRange, error) {
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	a, err := parsePort(first)
	if err != nil {
		return PortRange{}, err
	}
	b, err := parsePort(last)
	if err != nil {
		return PortRange{}, err
	}
	if b < a {
		return PortRange{}, invalid("ports", "the range %s ends before it begins", s)
	}
	return PortRange{First: a, Last: b}, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, invalid("ports", "%q is not a port between 1 and 65535", s)
	}
	return uint16(n), nil
}

// mergePorts sorts ranges and joins those that overlap or touch.
func mergePorts(in []PortRange) []PortRange {
	slices.SortFunc(in, func(a, b PortRange) int { return int(a.First) - int(b.First) })
	var out []PortRange
	for _, r := range in {
		if n := len(out); n > 0 && int(r.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, r.Last)
			continue
		}
		out = append(out, r)
	}
	return out
}

// Target is where a connector dials: the first port of Published goes to Port, the next to
// Port+1 and so on. Host is a name, which the connector resolves, or an address.
type Target struct {
	Host string `json:"host"`
	Port uint16 `json:"port"`
	// Published is empty until Complete when the text form named one port only.
	Published PortRange `json:"published"`
}

// ParseTarget reads "HOST:PORT", "HOST:FIRST-LAST", or one of them after "PUBLISHED=":
// "80=10.0.0.5:8080", "8000-8010=db.lan:9000-9010". IPv6 addresses stand in brackets.
func ParseTarget(s string) (Target, error) {
	if strings.Contains(s, "://") {
		return Target{}, notURL(s)
	}
	published, rest, given := strings.Cut(strings.TrimSpace(s), "=")
	if !given {
		rest = published
	}
	host, ports, err := splitTarget(rest)
	if err != nil {
		return Target{}, err
	}
	t := Target{Host: lowerName(host), Port: ports.First}
	if !given {
		if ports.size() > 1 {
			t.Published = ports
		}
		return t, nil
	}
	if t.Published, err = parseRange(published); err != nil {
		return Target{}, err
	}
	if t.Published.size() != ports.size() {
		return Target{}, invalid("target", "%s: %d published ports for %d target ports", s, t.Published.size(), ports.size())
	}
	return t, nil
}

func splitTarget(s string) (string, PortRange, error) {
	if addr, bits, ok := strings.Cut(s, "/"); ok {
		if _, err := netip.ParseAddr(addr); err == nil && bits != "" {
			return "", PortRange{}, unsupported("target", "%q is a network; publishing networks is not yet supported, name host:port", s)
		}
		return "", PortRange{}, notURL(s)
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", PortRange{}, invalid("target", "%q is not host:port (an IPv6 address stands in brackets)", s)
	}
	ports, err := parseRange(port)
	if err != nil {
		return "", PortRange{}, fmt.Errorf("target %q: %w", s, err)
	}
	return host, ports, nil
}

// notURL answers those who paste what their browser shows.
func notURL(s string) error {
	return invalid("target", "%q: write host:port without http:// and without a path, such as 10.0.0.5:80", s)
}

// complete chooses the published ports of a target that does not name them.
func (t *Target) complete(app []PortRange) {
	t.Host = lowerName(t.Host)
	if addr, err := netip.ParseAddr(t.Host); err == nil {
		t.Host = addr.Unmap().String()
	}
	if t.Published != (PortRange{}) {
		return
	}
	t.Published = PortRange{First: t.Port, Last: t.Port}
	if len(app) == 1 && app[0].size() == 1 {
		t.Published = app[0]
	}
}

// ports returns the range that is dialled.
func (t Target) ports() PortRange {
	return PortRange{First: t.Port, Last: t.Port + uint16(t.Published.size()-1)}
}

// String returns the form that ParseTarget reads.
func (t Target) String() string {
	dial := net.JoinHostPort(t.Host, t.ports().String())
	if t.Published == (PortRange{}) || t.Published == t.ports() {
		return dial
	}
	return t.Published.String() + "=" + dial
}

// ParseTargetProtocol reads a target that may end in "/tcp", "/udp" or "/tcp+udp"; without
// one it is TCP.
func ParseTargetProtocol(s string) (Target, Protocol, error) {
	text, protocol := strings.TrimSpace(s), TCP
	for suffix, p := range map[string]Protocol{"/udp": UDP, "/tcp+udp": Both, "/tcp": TCP} {
		if rest, ok := strings.CutSuffix(text, suffix); ok {
			text, protocol = rest, p
			break
		}
	}
	t, err := ParseTarget(text)
	return t, protocol, err
}
