package policy

import (
	"time"

	"github.com/postern-zt/postern/broker/trust"
	"github.com/postern-zt/postern/proto/ids"
)

// Effect says whether a rule gives or takes. The zero value takes.
type Effect string

// The two effects.
const (
	Allow Effect = "allow"
	Deny  Effect = "deny"
)

// Verb is something one can do with an app: a Cedar action.
type Verb string

// The verbs. A raw TCP or UDP app knows connect alone; an HTTP app whose TLS ends where we
// can look knows the other two.
const (
	Connect   Verb = "connect"
	HTTPRead  Verb = "http:read"
	HTTPWrite Verb = "http:write"
)

// Verbs lists all verbs, the least one first.
func Verbs() []Verb { return []Verb{Connect, HTTPRead, HTTPWrite} }

// Rule is one rule as an admin writes it: either the form or, when Cedar is set, one Cedar
// policy whose effect, scope and conditions stand in the text.
//
//	allow: permits, for who x apps x verbs, when everything in Conditions holds.
//	deny:  forbids, for who x apps x verbs, where the attributes, schedule and networks of
//	       Conditions select, unless everything else in Conditions holds.
//
// What is not known never helps: an attribute that is missing does not satisfy an allow rule
// and does not escape a deny rule.
type Rule struct {
	ID          ids.RuleID  `json:"id"`
	Name        string      `json:"name"`
	Description string      `json:"description,omitempty"`
	Owner       string      `json:"owner,omitempty"` // whom to ask; empty: the app's owner
	Disabled    bool        `json:"disabled,omitempty"`
	ExpiresAt   time.Time   `json:"expires_at,omitzero"` // zero: never
	Effect      Effect      `json:"effect,omitempty"`
	Who         Who         `json:"who,omitzero"`
	Apps        Apps        `json:"apps,omitzero"`
	Verbs       []Verb      `json:"verbs,omitempty"` // empty: all
	Conditions  Conditions  `json:"conditions,omitzero"`
	Obligations Obligations `json:"obligations,omitzero"`
	Cedar       string      `json:"cedar,omitempty"`
}

// Who selects people: any of the users, a member of any of the groups, or every signed-in
// user. An empty Who selects nobody and is refused.
type Who struct {
	Users    []ids.UserID  `json:"users,omitempty"`
	Groups   []ids.GroupID `json:"groups,omitempty"`
	SignedIn bool          `json:"signed_in,omitempty"`
}

// Apps selects apps: any of the ids, tags or classes, or all. An empty Apps is refused.
type Apps struct {
	IDs     []ids.AppID `json:"ids,omitempty"`
	Tags    []string    `json:"tags,omitempty"`
	Classes []Class     `json:"classes,omitempty"`
	Any     bool        `json:"any,omitempty"`
}

// Conditions narrows a rule. A zero field asks for nothing.
type Conditions struct {
	Facts         []trust.FactName `json:"facts,omitempty"` // each must pass
	MinLevel      trust.Level      `json:"min_level,omitempty"`
	MinScore      int              `json:"min_score,omitempty"`
	MFAMaxAge     Duration         `json:"mfa_max_age,omitempty"`     // a second factor shown within
	AuthMethods   []string         `json:"auth_methods,omitempty"`    // amr has each of them
	SessionMaxAge Duration         `json:"session_max_age,omitempty"` // signed in within
	// The three below select: see Rule.
	Attributes []AttributeTest `json:"attributes,omitempty"` // all of them
	Schedule   string          `json:"schedule,omitempty"`   // name in Document.Schedules
	Networks   []string        `json:"networks,omitempty"`   // CIDR, the source address is in one
}

// Subject says whose attribute a test reads.
type Subject string

// The subjects of attribute tests.
const (
	OfUser Subject = "user"
	OfApp  Subject = "app"
)

// Operator compares an attribute with a value.
type Operator string

// The operators. Ordered comparisons work on numbers and on attributes with a declared order.
const (
	Equals      Operator = "equals"
	NotEquals   Operator = "notEquals"
	In          Operator = "in"       // value is a list, the attribute is one of it
	Contains    Operator = "contains" // the attribute is a list that has the value
	LessThan    Operator = "lessThan"
	GreaterThan Operator = "greaterThan"
	AtMost      Operator = "lessThanOrEquals"
	AtLeast     Operator = "greaterThanOrEquals"
	Matches     Operator = "matches" // pattern with *
	Exists      Operator = "exists"
	NotExists   Operator = "notExists"
)

// AttributeTest is one comparison: user.clearance lessThan level3.
type AttributeTest struct {
	Of        Subject  `json:"of"`
	Attribute string   `json:"attribute"`
	Operator  Operator `json:"operator"`
	Value     Value    `json:"value,omitzero"`
}

// Obligations are what a permitted request must keep to. Of several the strictest wins; a
// zero field asks for nothing.
type Obligations struct {
	MaxFlows int      `json:"max_flows,omitempty"` // flows at a time, per device and app
	OpenRate int      `json:"open_rate,omitempty"` // flow opens per minute, per device and app
	RateKbps int      `json:"rate_kbps,omitempty"` // kilobits per second each way
	HardEnd  Duration `json:"hard_end,omitempty"`  // the grant ends this long after the decision
	Idle     Duration `json:"idle,omitempty"`      // the micro-tunnel ends after silence
	ReVerify Duration `json:"re_verify,omitempty"` // the session is verified again this often
	Lease    Duration `json:"lease,omitempty"`     // the connector's grant holds this long without news
}

// AttributeType is the type of a declared attribute.
type AttributeType string

// The attribute types. An ordered attribute is text with a rank by Order.
const (
	TypeString  AttributeType = "string"
	TypeNumber  AttributeType = "number"
	TypeBool    AttributeType = "bool"
	TypeList    AttributeType = "list"
	TypeOrdered AttributeType = "ordered"
)

// AttributeDecl declares an attribute, so that policies can be checked against its type.
// Attributes that only forms use need no declaration.
type AttributeDecl struct {
	Of    Subject       `json:"of"`
	Name  string        `json:"name"`
	Type  AttributeType `json:"type"`
	Order []string      `json:"order,omitempty"` // lowest first, for TypeOrdered
}

// Document is the whole policy as it is published: what a revision is compiled from, stored
// and hashed.
type Document struct {
	Version    int                 `json:"version"` // DocumentVersion
	Rules      []Rule              `json:"rules"`
	Schedules  map[string]Schedule `json:"schedules,omitempty"`
	Attributes []AttributeDecl     `json:"attributes,omitempty"`
	Baseline   Baseline            `json:"baseline"`
	Trust      trust.Settings      `json:"trust"`
}

// DocumentVersion is the version of Document that this package writes and reads.
const DocumentVersion = 1

// NewDocument returns the policy of a new installation: no rules, the default baseline and
// trust table. It allows nothing.
func NewDocument() Document {
	return Document{Version: DocumentVersion, Rules: []Rule{}, Baseline: DefaultBaseline(), Trust: trust.DefaultSettings()}
}
