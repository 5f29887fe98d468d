package catalog

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/postern-zt/postern/proto/grant"
)

// Limits on one app; an assignment of a site must fit into one signed message.
const (
	maxPorts      = 64
	maxTargets    = 64
	maxPlacements = 16
	maxExtraNames = 16
	maxTags       = 32
	maxTextLen    = 128
	maxNameLen    = 253
	maxLabelLen   = 63
)

// Reserved is an endpoint that no app may point at: the broker or a relay. Host is a name or
// an address, port 0 means all ports.
type Reserved struct {
	Host string
	Port uint16
}

// Rules is what the rest of the installation demands of an app.
type Rules struct {
	// Suffixes are the declared name suffixes; extra names lie below one of them.
	Suffixes []string
	// Reserved are the addresses of broker and relays.
	Reserved []Reserved
}

// Validate returns all rules that the completed app breaks, joined, each a FieldError.
func (a *App) Validate(rules Rules) error {
	return errors.Join(
		a.checkKind(), checkLabel("name", a.Name), a.checkExtraNames(rules),
		a.checkEnums(), a.checkPorts(), a.checkPlacements(rules), a.checkTexts(), a.checkOutage(),
	)
}

func (a *App) checkKind() error {
	switch a.Kind {
	case KindApp:
		return nil
	case KindNetwork, KindLearning:
		return unsupported("kind", "%q is not yet supported, publish single apps", a.Kind)
	default:
		return invalid("kind", "%q is unknown", a.Kind)
	}
}

func (a *App) checkEnums() error {
	var errs []error
	if len(a.Protocol.Networks()) == 0 {
		errs = append(errs, invalid("protocol", "%q is none of tcp, udp, both", a.Protocol))
	}
	if !slices.Contains([]Class{Public, Internal, Confidential, Restricted}, a.Class) {
		errs = append(errs, invalid("class", "%q is none of public, internal, confidential, restricted", a.Class))
	}
	if !slices.Contains([]Visibility{Everyone, Allowed, Hidden}, a.Visibility) {
		errs = append(errs, invalid("visibility", "%q is none of everyone, allowed, hidden", a.Visibility))
	}
	return errors.Join(errs...)
}

func (a *App) checkExtraNames(rules Rules) error {
	if len(a.ExtraNames) > maxExtraNames {
		return invalid("extra_names", "%d names, at most %d", len(a.ExtraNames), maxExtraNames)
	}
	var errs []error
	for _, name := range a.ExtraNames {
		if err := checkName("extra_names", name); err != nil {
			errs = append(errs, err)
		} else if !slices.ContainsFunc(rules.Suffixes, func(s string) bool { return strings.HasSuffix(name, "."+s) }) {
			errs = append(errs, invalid("extra_names", "%q does not end in a declared suffix (%s)", name, strings.Join(rules.Suffixes, ", ")))
		}
	}
	return errors.Join(errs...)
}

func (a *App) checkPorts() error {
	if len(a.Ports) > maxPorts {
		return invalid("ports", "%d ranges, at most %d", len(a.Ports), maxPorts)
	}
	if len(a.Ports) == 0 && !a.Retired {
		return invalid("ports", "no port: name one, or a target with one")
	}
	for _, r := range a.Ports {
		if r.First == 0 || r.Last < r.First {
			return invalid("ports", "%s is not a range between 1 and 65535", r)
		}
	}
	return nil
}

func (a *App) checkPlacements(rules Rules) error {
	if len(a.Placements) > maxPlacements {
		return invalid("placements", "%d sites, at most %d", len(a.Placements), maxPlacements)
	}
	if len(a.Placements) == 0 && !a.Retired {
		return invalid("placements", "no site and target: nothing could answer")
	}
	var errs []error
	for i, p := range a.Placements {
		field := fmt.Sprintf("placements[%d]", i)
		if p.Site == "" {
			errs = append(errs, invalid(field+".site", "missing"))
		}
		if slices.ContainsFunc(a.Placements[:i], func(o Placement) bool { return o.Site == p.Site }) {
			errs = append(errs, invalid(field+".site", "the site stands twice, list its targets together"))
		}
		errs = append(errs, a.checkTargets(field, p.Targets, rules))
	}
	return errors.Join(errs...)
}

func (a *App) checkTargets(field string, targets []Target, rules Rules) error {
	if len(targets) == 0 || len(targets) > maxTargets {
		return invalid(field+".targets", "%d targets, want 1 to %d", len(targets), maxTargets)
	}
	var errs []error
	for i, t := range targets {
		errs = append(errs, a.checkTarget(fmt.Sprintf("%s.targets[%d]", field, i), t, rules))
	}
	return errors.Join(errs...)
}

func (a *App) checkTarget(field string, t Target, rules Rules) error {
	if err := checkHost(field, t.Host); err != nil {
		return err
	}
	if t.Port == 0 || t.Published.First == 0 || t.Published.Last < t.Published.First {
		return invalid(field, "%s: ports must lie between 1 and 65535", t)
	}
	if int(t.Port)+t.Published.size()-1 > 65535 {
		return invalid(field, "%s: the target ports leave 1-65535", t)
	}
	if !slices.ContainsFunc(a.Ports, func(r PortRange) bool { return r.Contains(t.Published) }) {
		return invalid(field, "%s: port %s is not published by the app", t, t.Published)
	}
	for _, r := range rules.Reserved {
		if r.covers(t) {
			return invalid(field, "%s is an address of the broker or a relay", t)
		}
	}
	return nil
}

func (r Reserved) covers(t Target) bool {
	host := lowerName(r.Host)
	if addr, err := netip.ParseAddr(host); err == nil {
		host = addr.Unmap().String()
	}
	if host != t.Host {
		return false
	}
	return r.Port == 0 || t.ports().Contains(PortRange{First: r.Port, Last: r.Port})
}

// checkHost accepts a name, or an address that one host can have.
func checkHost(field, host string) error {
	if strings.Contains(host, "*") {
		return unsupported(field, "%q: wildcard targets are not yet supported, name each host", host)
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return checkName(field, host)
	}
	if addr.IsUnspecified() || addr.IsMulticast() || addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return invalid(field, "%s is not the address of one host", host)
	}
	if addr.Zone() != "" {
		return invalid(field, "%s: an address with a zone means something on one machine only", host)
	}
	return nil
}

func (a *App) checkTexts() error {
	var errs []error
	if !printable(a.Owner.Text) {
		errs = append(errs, invalid("owner", "at most %d printable characters", maxTextLen))
	}
	if len(a.Tags) > maxTags {
		errs = append(errs, invalid("tags", "%d tags, at most %d", len(a.Tags), maxTags))
	}
	for _, tag := range a.Tags {
		if tag == "" || !printable(tag) || strings.ContainsAny(tag, " ,") {
			errs = append(errs, invalid("tags", "%q is not one short word", tag))
		}
	}
	return errors.Join(errs...)
}

func (a *App) checkOutage() error {
	switch {
	case a.Outage.Mode > grant.OutageHold:
		return invalid("outage.mode", "%d is unknown", a.Outage.Mode)
	case a.Outage.Grace < 0:
		return invalid("outage.grace", "negative")
	case a.Outage.Mode == 0 && a.Outage.Grace != 0:
		return invalid("outage.mode", "missing beside a grace")
	case a.Outage.Mode == grant.OutageCut && a.Outage.Grace != 0:
		return invalid("outage.grace", "cut has no grace")
	}
	return nil
}

// checkName accepts a full DNS name in lower case with letters, digits, hyphens and, for
// hosts of old installations, underscores.
func checkName(field, name string) error {
	if strings.Contains(name, "*") {
		return unsupported(field, "%q: wildcard names are not yet supported", name)
	}
	if name == "" || len(name) > maxNameLen {
		return invalid(field, "%q is not a name: 1 to %d characters", name, maxNameLen)
	}
	for label := range strings.SplitSeq(name, ".") {
		if err := checkChars(field, label, true); err != nil {
			return err
		}
	}
	return nil
}

// checkLabel accepts one DNS label.
func checkLabel(field, label string) error {
	if strings.Contains(label, "*") {
		return unsupported(field, "%q: wildcard names are not yet supported", label)
	}
	if strings.Contains(label, ".") {
		return invalid(field, "%q has a dot: give the first label only, the suffix is added", label)
	}
	return checkChars(field, label, false)
}

func checkChars(field, label string, underscore bool) error {
	if label == "" || len(label) > maxLabelLen {
		return invalid(field, "%q has a part of %d characters, want 1 to %d", label, len(label), maxLabelLen)
	}
	if label[0] == '-' || label[len(label)-1] == '-' {
		return invalid(field, "%q begins or ends with a hyphen", label)
	}
	for _, c := range label {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', underscore && c == '_':
		default:
			return invalid(field, "%q: %q is not allowed in a name (a-z, 0-9, hyphen)", label, c)
		}
	}
	return nil
}

// printable accepts a short text without control characters; empty is one.
func printable(s string) bool {
	return len(s) <= maxTextLen && strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd }) < 0
}
