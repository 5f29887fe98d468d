package posture

import (
	"strings"
	"time"
)

// life is a release and the last day with security updates that need no
// subscription of their own. Dates of a month without a day are its last day.
type life struct {
	version string // "12" also means 12.5, unless a longer one matches
	until   string
}

// lives is the table of releases by the ID of os-release. Debian counts until the
// end of its long-term support, which every installation gets. Last checked
// 2026-11; a release that is missing is unknown, so an old client never calls a
// new release unsupported.
func lives() map[string][]life {
	rhel := []life{{"7", "2024-06-30"}, {"8", "2029-05-31"}, {"9", "2032-05-31"}, {"10", "2035-05-31"}}
	return map[string][]life{
		"debian": {{"9", "2022-06-30"}, {"10", "2024-06-30"}, {"11", "2026-08-31"}, {"12", "2028-06-30"}, {"13", "2030-06-30"}},
		"ubuntu": {
			{"16.04", "2021-04-30"}, {"18.04", "2023-05-31"}, {"20.04", "2025-05-31"}, {"22.04", "2027-06-30"}, {"23.04", "2024-01-25"},
			{"23.10", "2024-07-11"}, {"24.04", "2029-05-31"}, {"24.10", "2025-07-10"}, {"25.04", "2026-01-31"}, {"25.10", "2026-07-31"},
			{"26.04", "2031-05-31"}, {"26.10", "2027-07-31"},
		},
		"rhel":      rhel,
		"rocky":     {{"8", "2029-05-31"}, {"9", "2032-05-31"}, {"10", "2035-05-31"}},
		"almalinux": {{"8", "2029-05-31"}, {"9", "2032-05-31"}, {"10", "2035-05-31"}},
		"ol":        {{"7", "2024-12-31"}, {"8", "2029-07-31"}, {"9", "2032-06-30"}, {"10", "2035-06-30"}},
		"centos":    {{"7", "2024-06-30"}, {"8", "2024-05-31"}, {"9", "2027-05-31"}, {"10", "2030-01-01"}},
		"amzn":      {{"2", "2026-06-30"}, {"2023", "2029-06-30"}},
		"fedora": {
			{"38", "2024-05-21"}, {"39", "2024-11-26"}, {"40", "2025-05-13"}, {"41", "2025-12-15"}, {"42", "2026-05-28"},
			{"43", "2026-12-31"}, {"44", "2027-06-30"},
		},
		"sles": {
			{"12", "2024-10-31"}, {"15.4", "2023-12-31"}, {"15.5", "2024-12-31"}, {"15.6", "2025-12-31"}, {"15.7", "2031-07-31"}, {"16.0", "2027-11-30"},
		},
		"opensuse-leap": {{"15.4", "2023-12-07"}, {"15.5", "2024-12-31"}, {"15.6", "2026-04-30"}, {"16.0", "2027-10-31"}},
	}
}

// rolling tells whether a system has no versions that could end.
func rolling(id string) bool {
	switch id {
	case "arch", "opensuse-tumbleweed", "void", "nixos-unstable":
		return true
	default:
		return false
	}
}

// endOfSupport gives the last day with updates of a release.
func endOfSupport(rel release) (end time.Time, isRolling, known bool) {
	if rolling(rel.id) {
		return time.Time{}, true, true
	}
	best := life{}
	for _, l := range lives()[rel.id] {
		if (rel.version == l.version || strings.HasPrefix(rel.version, l.version+".")) && len(l.version) > len(best.version) {
			best = l
		}
	}
	if best.version == "" {
		return time.Time{}, false, false
	}
	end, err := time.Parse(time.DateOnly, best.until)
	return end, false, err == nil
}
