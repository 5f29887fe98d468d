package policy

import (
	"fmt"
	"time"

	"github.com/postern-zt/postern/broker/trust"
)

// Class is the sensitivity of an app. A class that is not one of the four denies.
type Class string

// The four classes. An app that names none is internal.
const (
	Public       Class = "public"
	Internal     Class = "internal"
	Confidential Class = "confidential"
	Restricted   Class = "restricted"
)

// Classes lists the classes, least sensitive first.
func Classes() []Class { return []Class{Public, Internal, Confidential, Restricted} }

// OutageMode says what happens to live micro-tunnels when the broker's news stop.
type OutageMode string

// The outage modes. The zero value and anything unknown mean OutageCut.
const (
	OutageCut      OutageMode = "cut"
	OutageContinue OutageMode = "continue" // bytes pass for OutageFor
	OutageHold     OutageMode = "hold"     // no byte passes, the app's socket stays for OutageFor
)

// ClassDefaults is one row of the baseline: what every app of the class asks for, whatever
// the rules say.
type ClassDefaults struct {
	MinLevel      trust.Level `json:"min_level"`
	MinScore      int         `json:"min_score"`
	MFAMaxAge     Duration    `json:"mfa_max_age"`     // 0: no second factor asked for
	SessionMaxAge Duration    `json:"session_max_age"` // sign in again after
	Idle          Duration    `json:"idle"`            // 0: never
	ReVerify      Duration    `json:"re_verify"`
	Lease         Duration    `json:"lease"`
	Outage        OutageMode  `json:"outage"`
	OutageFor     Duration    `json:"outage_for"`
	HardEnd       Duration    `json:"hard_end"`
	// Risk at or above these reduces, steps up, terminates.
	RiskReduce    int `json:"risk_reduce"`
	RiskStepUp    int `json:"risk_step_up"`
	RiskTerminate int `json:"risk_terminate"`
	// Doors that end at the broker.
	BrowserDoor    bool `json:"browser_door"`
	PlainWireGuard bool `json:"plain_wireguard"`
	MaxFlows       int  `json:"max_flows"`
	OpenRate       int  `json:"open_rate"` // per minute
}

// Baseline is the table of defaults by class.
type Baseline map[Class]ClassDefaults

// DefaultBaseline returns the table of a new installation. A device without management
// reaches internal apps at level 1.
func DefaultBaseline() Baseline {
	const minute, hour = Duration(time.Minute), Duration(time.Hour)
	return Baseline{
		Public: {
			MinLevel: trust.LevelUnknown, SessionMaxAge: 7 * 24 * hour,
			ReVerify: 5 * minute, Lease: minute, Outage: OutageContinue, OutageFor: hour, HardEnd: 12 * hour,
			RiskReduce: 60, RiskStepUp: 80, RiskTerminate: 95,
			BrowserDoor: true, PlainWireGuard: true, MaxFlows: 1024, OpenRate: 6000,
		},
		Internal: {
			MinLevel: trust.LevelKnown, SessionMaxAge: 24 * hour, Idle: 8 * hour,
			ReVerify: 5 * minute, Lease: minute, Outage: OutageContinue, OutageFor: 15 * minute, HardEnd: 12 * hour,
			RiskReduce: 50, RiskStepUp: 70, RiskTerminate: 90,
			BrowserDoor: true, PlainWireGuard: true, MaxFlows: 1024, OpenRate: 6000,
		},
		Confidential: {
			MinLevel: trust.LevelManaged, MinScore: 50, MFAMaxAge: 12 * hour, SessionMaxAge: 12 * hour, Idle: 2 * hour,
			ReVerify: 5 * minute, Lease: minute, Outage: OutageHold, OutageFor: 15 * minute, HardEnd: 8 * hour,
			RiskReduce: 30, RiskStepUp: 50, RiskTerminate: 80,
			BrowserDoor: true, MaxFlows: 512, OpenRate: 1200,
		},
		Restricted: {
			MinLevel: trust.LevelCompliant, MinScore: 75, MFAMaxAge: 4 * hour, SessionMaxAge: 8 * hour, Idle: 30 * minute,
			ReVerify: minute, Lease: minute, Outage: OutageCut, HardEnd: 4 * hour,
			RiskReduce: 20, RiskStepUp: 40, RiskTerminate: 60,
			MaxFlows: 256, OpenRate: 600,
		},
	}
}

// Validate reports the first row that is missing or out of range.
func (b Baseline) Validate() error {
	for _, c := range Classes() {
		row, ok := b[c]
		if !ok {
			return fmt.Errorf("baseline: no row for class %s", c)
		}
		if err := row.validate(); err != nil {
			return fmt.Errorf("baseline of class %s: %w", c, err)
		}
	}
	if len(b) != len(Classes()) {
		return fmt.Errorf("baseline: unknown class in the table")
	}
	return nil
}

func (r ClassDefaults) validate() error {
	switch {
	case r.MinLevel > trust.MaxLevel:
		return fmt.Errorf("min_level is above %d", trust.MaxLevel)
	case r.MinScore < 0 || r.MinScore > trust.MaxScore:
		return fmt.Errorf("min_score is outside 0 to %d", trust.MaxScore)
	case r.SessionMaxAge <= 0 || r.ReVerify <= 0 || r.Lease <= 0 || r.HardEnd <= 0:
		return fmt.Errorf("session_max_age, re_verify, lease and hard_end must be set")
	case r.MFAMaxAge < 0 || r.Idle < 0 || r.OutageFor < 0:
		return fmt.Errorf("a duration is negative")
	case r.Outage != OutageCut && r.Outage != OutageContinue && r.Outage != OutageHold:
		return fmt.Errorf("outage is none of cut, continue, hold")
	case r.RiskReduce <= 0 || r.RiskReduce > r.RiskStepUp || r.RiskStepUp > r.RiskTerminate || r.RiskTerminate > 100:
		return fmt.Errorf("risk limits must rise from reduce to terminate within 1 to 100")
	case r.MaxFlows <= 0 || r.OpenRate <= 0:
		return fmt.Errorf("max_flows and open_rate must be set")
	}
	return nil
}
