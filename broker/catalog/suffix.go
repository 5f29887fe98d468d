package catalog

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// maxSuffixes bounds the declared suffixes: each is a rule in every client's resolver.
const maxSuffixes = 32

// CheckSuffixes validates the wanted suffixes of the organisation and returns them clean,
// in the given order, with warnings for those that are allowed but will hurt. The first is
// the one that app names get.
func CheckSuffixes(suffixes []string) (clean, warnings []string, err error) {
	var errs []error
	if len(suffixes) > maxSuffixes {
		return nil, nil, invalid("suffixes", "%d suffixes, at most %d", len(suffixes), maxSuffixes)
	}
	for _, s := range suffixes {
		s = strings.TrimPrefix(lowerName(s), ".")
		if err := checkSuffix(s); err != nil {
			errs = append(errs, err)
			continue
		}
		if slices.Contains(clean, s) {
			continue
		}
		clean = append(clean, s)
		warnings = append(warnings, suffixWarnings(s)...)
	}
	return clean, warnings, errors.Join(errs...)
}

func checkSuffix(s string) error {
	if _, err := netip.ParseAddr(s); err == nil {
		return invalid("suffixes", "%q is an address", s)
	}
	if s == "localhost" || strings.HasSuffix(s, ".localhost") || s == "arpa" || strings.HasSuffix(s, ".arpa") {
		return invalid("suffixes", "%q belongs to the resolver of each host", s)
	}
	return checkName("suffixes", s)
}

func suffixWarnings(s string) []string {
	var out []string
	if s == "local" || strings.HasSuffix(s, ".local") {
		out = append(out, fmt.Sprintf("%s: names under .local are looked up by multicast DNS on many systems and may not reach us", s))
	}
	if !strings.Contains(s, ".") {
		out = append(out, fmt.Sprintf("%s: a single label may become, or is, a public top-level domain; prefer a name such as corp.internal", s))
	}
	if public, icann := publicsuffix.PublicSuffix(s); public == s && (icann || strings.Contains(s, ".")) {
		out = append(out, fmt.Sprintf("%s: a public suffix; every name below it, also of strangers, would come to us", s))
	}
	return out
}
