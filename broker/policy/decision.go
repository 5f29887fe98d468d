package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"github.com/postern-zt/postern/broker/trust"
)

// Verdict is the answer. The zero value denies.
type Verdict uint8

// The four verdicts.
const (
	VerdictDeny Verdict = iota
	VerdictStepUp
	VerdictLimited
	VerdictAllow
)

// String returns the word of the verdict; one out of range reads as deny.
func (v Verdict) String() string {
	switch v {
	case VerdictAllow:
		return "allow"
	case VerdictLimited:
		return "limited"
	case VerdictStepUp:
		return "step_up"
	default:
		return "deny"
	}
}

// Grants reports whether the verdict gives access to anything.
func (v Verdict) Grants() bool { return v == VerdictAllow || v == VerdictLimited }

// MarshalText writes the word of the verdict.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText reads the word of a verdict; any other word is deny and an error.
func (v *Verdict) UnmarshalText(b []byte) error {
	for k := VerdictDeny; k <= VerdictAllow; k++ {
		if k.String() == string(b) {
			*v = k
			return nil
		}
	}
	*v = VerdictDeny
	return fmt.Errorf("unknown verdict %.32q", b)
}

// Stage is a step of the evaluation, in this order.
type Stage string

// The stages, as receipts show them.
const (
	StageIdentity Stage = "identity"
	StageDevice   Stage = "device"
	StageContext  Stage = "context"
	StageRisk     Stage = "risk"
	StagePolicy   Stage = "policy"
)

// Stages lists the stages in evaluation order.
func Stages() []Stage {
	return []Stage{StageIdentity, StageDevice, StageContext, StageRisk, StagePolicy}
}

// Step is the outcome of one stage.
type Step struct {
	Stage   Stage    `json:"stage"`
	OK      bool     `json:"ok"`
	Reasons []Reason `json:"reasons,omitempty"`
}

// Reason is one entry of the registry of codes with the details of this case.
type Reason struct {
	Code   Code              `json:"code"`
	Detail map[string]string `json:"detail,omitempty"` // fills the placeholders of the texts
}

// Decision is the answer to an Input under a revision. Granting fields (Verbs, Terms) are
// empty unless the verdict grants.
type Decision struct {
	Verdict     Verdict  `json:"verdict"`
	Reasons     []Reason `json:"reasons"` // why not, or why not all; for allow the single reason allowed
	Steps       []Step   `json:"steps"`
	Determining []string `json:"determining,omitempty"` // rules and baseline rows that decided: a rule's id, or "baseline/..."
	Verbs       []Verb   `json:"verbs,omitempty"`
	Terms       Terms    `json:"terms,omitzero"`
	// StepUp names the authentication that would turn step_up into allow or limited.
	StepUp []RemedyCode `json:"step_up,omitempty"`

	Level        trust.Level  `json:"level"`
	Score        int          `json:"score"`
	Facts        []trust.View `json:"facts,omitempty"` // as they counted, grace included
	ReEvaluateAt time.Time    `json:"re_evaluate_at"`  // never zero
}

// Equal reports whether both are the same answer, reasons and terms included.
func (d Decision) Equal(o Decision) bool {
	a, err := json.Marshal(d)
	if err != nil {
		return false
	}
	b, err := json.Marshal(o)
	return err == nil && bytes.Equal(a, b)
}

// Refuse returns the denial for a reason outside of the policy.
func Refuse(now time.Time, why ...Code) Decision {
	reasons := make([]Reason, len(why))
	for i, c := range why {
		reasons[i].Code = c
	}
	return refuse(now, reasons...)
}

// RefuseWith is Refuse for reasons with details.
func RefuseWith(now time.Time, why ...Reason) Decision { return refuse(now, why...) }

// Terms is what a grant must carry.
type Terms struct {
	Lease          Duration   `json:"lease"`
	Outage         OutageMode `json:"outage"`
	OutageFor      Duration   `json:"outage_for"`
	HardEnd        time.Time  `json:"hard_end"`
	Idle           Duration   `json:"idle"` // 0: never
	ReVerify       Duration   `json:"re_verify"`
	MaxFlows       int        `json:"max_flows"`
	OpenRate       int        `json:"open_rate"`
	RateKbps       int        `json:"rate_kbps"` // 0: no limit
	BrowserDoor    bool       `json:"browser_door"`
	PlainWireGuard bool       `json:"plain_wireguard"`
}

// RemedyCode names one change that may flip a decision.
type RemedyCode string

// The fixed list of remediable facts. The first three are authentication.
const (
	RemedySignIn         RemedyCode = "sign_in"      // sign in again: session age
	RemedyMFA            RemedyCode = "mfa"          // show a second factor now
	RemedyStrongKey      RemedyCode = "hardware_key" // use a passkey or security key
	RemedyUpdateClient   RemedyCode = "update_client"
	RemedyFirewall       RemedyCode = "enable_firewall"
	RemedyScreenLock     RemedyCode = "enable_screen_lock"
	RemedyAntivirus      RemedyCode = "enable_antivirus"
	RemedyPatch          RemedyCode = "install_updates"
	RemedyUpgradeOS      RemedyCode = "upgrade_os"
	RemedyEncryptDisk    RemedyCode = "encrypt_disk"
	RemedyEnrolMDM       RemedyCode = "enrol_management"
	RemedyRegisterDevice RemedyCode = "register_device"
	RemedyHardwareDevice RemedyCode = "hardware_device" // a device that keeps its key in hardware
	RemedyWait           RemedyCode = "wait"            // until the schedule opens
)

// Remedy is a minimal set of changes that together flip the decision.
type Remedy struct {
	Changes []RemedyCode `json:"changes"`
	Verdict Verdict      `json:"verdict"`       // what it becomes then
	At      time.Time    `json:"at,omitzero"`   // for RemedyWait: when
	Ask     string       `json:"ask,omitempty"` // whom to ask when the employee cannot do it alone
}
