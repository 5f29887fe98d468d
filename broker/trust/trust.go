// Package trust turns what is known about a device into a trust level (0 to 3) and a trust
// score (0 to 100). Facts are three-valued: pass, fail, unknown. A fact expires into unknown,
// and unknown never counts as pass. broker/session feeds reports in with Observe;
// broker/policy asks Assess for the level and the score of a device at one moment.
//
// Damping sits between a report and what counts: a check that fails may keep counting as
// pass_in_grace until a known time, and a check that flaps must hold still before it counts
// as pass again.
//
// The package is pure: it reads no clock, does no I/O and starts nothing. Values are plain
// and may be used from several goroutines as long as nobody writes to them.
package trust

import "fmt"

// Level is the trust level of a device. The zero value is the lowest.
type Level uint8

// The four levels. People see the word.
const (
	LevelUnknown   Level = iota // not registered, or a basic check does not pass
	LevelKnown                  // registered, basic checks pass
	LevelManaged                // managed by the organisation, disk encrypted
	LevelCompliant              // up to date, protected, key held in hardware
)

// MaxLevel is the highest level there is.
const MaxLevel = LevelCompliant

// MaxScore is the highest trust score there is.
const MaxScore = 100

// String returns the word of the level; a level out of range reads as the lowest.
func (l Level) String() string {
	switch l {
	case LevelKnown:
		return "Known"
	case LevelManaged:
		return "Managed"
	case LevelCompliant:
		return "Compliant"
	default:
		return "Unknown"
	}
}

// ParseLevel reads the word of a level.
func ParseLevel(s string) (Level, error) {
	for l := LevelUnknown; l <= MaxLevel; l++ {
		if l.String() == s {
			return l, nil
		}
	}
	return LevelUnknown, fmt.Errorf("unknown trust level %q", s)
}

// State is what a check says. The zero value is StateUnknown.
type State uint8

// The states of a fact. Only StatePass and StatePassInGrace count as pass.
const (
	StateUnknown State = iota
	StatePass
	StatePassInGrace // failed or expired a short while ago; counts until a known time
	StateFail
)

// Passes reports whether the state counts as pass.
func (s State) Passes() bool { return s == StatePass || s == StatePassInGrace }

// String returns the word used in receipts and in the canonical input.
func (s State) String() string {
	switch s {
	case StatePass:
		return "pass"
	case StatePassInGrace:
		return "pass_in_grace"
	case StateFail:
		return "fail"
	default:
		return "unknown"
	}
}

// MarshalText writes the word of the state.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the word of a state. Any other word is StateUnknown and an error.
func (s *State) UnmarshalText(b []byte) error {
	for _, k := range []State{StateUnknown, StatePass, StatePassInGrace, StateFail} {
		if k.String() == string(b) {
			*s = k
			return nil
		}
	}
	*s = StateUnknown
	return fmt.Errorf("unknown fact state %q", b)
}

// FactName names one posture signal.
type FactName string

// The facts the product knows. A name outside this list is stored and shown but no level,
// score or rule uses it.
const (
	OSVersion     FactName = "os_version"      // data: "debian 12.7"; pass while the version is supported
	OSSupported   FactName = "os_supported"    // the vendor still ships security updates
	Firewall      FactName = "firewall"        // a host firewall filters inbound traffic
	ClientVersion FactName = "client_version"  // data: the client's version; pass while it is accepted
	PatchLevel    FactName = "patch_level"     // no security update has been pending for long
	DiskEncrypted FactName = "disk_encrypted"  // every fixed volume is encrypted
	ScreenLock    FactName = "screen_lock"     // the screen locks when idle
	MDMEnrolled   FactName = "mdm_enrolled"    // the organisation's management says so, not the device
	Antivirus     FactName = "antivirus"       // running, signatures fresh
	NotJailbroken FactName = "not_jailbroken"  // the system's own protections are in force
	KeyInHardware FactName = "key_in_hardware" // attested by the broker, not claimed by the device
)

// FactNames lists the known facts in a fixed order: the order of receipts and of the
// policy schema.
func FactNames() []FactName {
	return []FactName{OSVersion, OSSupported, Firewall, ClientVersion, PatchLevel, DiskEncrypted,
		ScreenLock, MDMEnrolled, Antivirus, NotJailbroken, KeyInHardware}
}

// Source says who observed a fact.
type Source string

// The sources. Some facts count from one source only: see Check.
const (
	SourceClient Source = "client" // the device says so about itself
	SourceBroker Source = "broker" // the broker verified it
	SourceMDM    Source = "mdm"    // a management system says so
)
