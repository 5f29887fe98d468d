package policy

import (
	"net/netip"
	"time"

	"github.com/postern-zt/postern/broker/trust"
	"github.com/postern-zt/postern/proto/ids"
)

// InputVersion is the version of Input that this package writes. It reads this one only; a
// change of meaning takes a new version and keeps the reader of the old one.
const InputVersion = 1

// Input is everything a decision depends on besides the revision. Its canonical form
// (Canonical) is stored with every decision.
type Input struct {
	Version  int       `json:"version"`
	Time     time.Time `json:"time"` // the broker's clock
	Identity Identity  `json:"identity"`
	Device   Device    `json:"device"`
	Context  Context   `json:"context"`
	Risk     Risk      `json:"risk"`
	App      App       `json:"app"`
	Verbs    []Verb    `json:"verbs,omitempty"` // asked for; empty: all that the app knows
	// StepUpTried names the authentication remedies the user has just gone through for this
	// request. A step-up that would ask for one of them again becomes deny.
	StepUpTried []RemedyCode `json:"step_up_tried,omitempty"`
}

// Identity is who asks and how that is known.
type Identity struct {
	User             ids.UserID       `json:"user"`
	Disabled         bool             `json:"disabled,omitempty"`
	Groups           []ids.GroupID    `json:"groups,omitempty"`
	GroupsIncomplete bool             `json:"groups_incomplete,omitempty"` // there are more than were told
	Attributes       map[string]Value `json:"attributes,omitempty"`
	Session          ids.SessionID    `json:"session"`
	SessionRevoked   bool             `json:"session_revoked,omitempty"`
	SignedInAt       time.Time        `json:"signed_in_at"` // session age counts from here
	AuthTime         time.Time        `json:"auth_time"`    // when the user last proved who they are
	ACR              string           `json:"acr,omitempty"`
	AMR              []string         `json:"amr,omitempty"`
	VerifiedAt       time.Time        `json:"verified_at,omitzero"`    // last time the issuer confirmed the user
	IdentityStale    time.Time        `json:"identity_stale,omitzero"` // since when the issuer has been out of reach
}

// Device is what is known of the machine.
type Device struct {
	ID         ids.DeviceID `json:"id"`
	Registered bool         `json:"registered"`
	Blocked    bool         `json:"blocked,omitempty"`
	Facts      []trust.View `json:"facts,omitempty"` // from trust.Settings.Views
}

// Context is where the request comes from.
type Context struct {
	Source  netip.Addr `json:"source,omitzero"`
	Network string     `json:"network,omitempty"` // the client's own name for the network it is on
}

// Risk is 0 to 100; anything outside denies.
type Risk struct {
	Score int `json:"score"`
}

// LimitedMode says what limited means for an app that knows one verb only.
type LimitedMode string

// The limited modes. The zero value means LimitedStepUp.
const (
	LimitedRate   LimitedMode = "rate"
	LimitedStepUp LimitedMode = "step_up"
)

// App is what is asked for.
type App struct {
	ID         ids.AppID        `json:"id"`
	Name       string           `json:"name"`
	Class      Class            `json:"class"`
	Tags       []string         `json:"tags,omitempty"`
	Protocol   string           `json:"protocol,omitempty"`
	Verbs      []Verb           `json:"verbs,omitempty"` // empty: connect
	Owner      string           `json:"owner,omitempty"` // whom an employee asks
	Disabled   bool             `json:"disabled,omitempty"`
	MinLevel   trust.Level      `json:"min_level,omitempty"` // the owner may ask for more than the class
	MinScore   int              `json:"min_score,omitempty"`
	Limited    LimitedMode      `json:"limited,omitempty"`
	Attributes map[string]Value `json:"attributes,omitempty"`
}
