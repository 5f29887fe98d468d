package grants

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
)

// Errors that callers branch on with errors.Is.
var (
	// ErrNotFound: no live grant with this id.
	ErrNotFound = errors.New("grant not found")
	// ErrRevoked: a revocation crossed the decision; decide again.
	ErrRevoked = errors.New("revoked while the grant was decided")
	// ErrInvalid: the request breaks a rule.
	ErrInvalid = errors.New("invalid grant")
	// ErrConflict: another broker took the same sequence.
	ErrConflict = errors.New("revocation sequence taken")
	// ErrTooLarge: the apps of a site do not fit into one assignment.
	ErrTooLarge = errors.New("assignment too large")
)

// State is where a grant stands. Only live ones give access.
type State string

// The states of a grant row.
const (
	Live    State = "live"
	Revoked State = "revoked"
	Expired State = "expired"
)

// Cause is the reason code of a revocation, shown to people and kept in the audit.
type Cause string

// The causes.
const (
	CauseLogout         Cause = "logout"
	CauseAdmin          Cause = "admin"
	CauseUserDisabled   Cause = "user_disabled"
	CauseDeviceBlocked  Cause = "device_blocked"
	CauseSessionEnded   Cause = "session_ended"
	CauseNoLonger       Cause = "no_longer_allowed"
	CauseAppChanged     Cause = "app_changed"
	CauseAppRetired     Cause = "app_retired"
	CauseConnectorGone  Cause = "connector_gone"
	CauseScheduleEnded  Cause = "schedule_ended"
	CauseRestore        Cause = "restore"
	CauseReplacedGrant  Cause = "replaced"
	CauseFactsChanged   Cause = "facts_changed"
	CausePolicyChanged  Cause = "policy_changed"
	CauseIdentityFailed Cause = "identity_refused"
	CauseIdle           Cause = "idle"
	CauseSourceChanged  Cause = "source_changed"
)

// Grant is one row: what an allow or limited decision gave. It is immutable except for State
// in the store, Source and ReEvaluateAt, which are replaced with a new value.
type Grant struct {
	ID      ids.GrantID
	Receipt ids.ReceiptID
	Session ids.SessionID
	User    ids.UserID
	Device  ids.DeviceID
	// PeerKind and PeerKey say what stands at the client end.
	PeerKind   grant.PeerKind
	PeerKey    ids.KeyID
	App        ids.AppID
	AppName    string
	Ports      []grant.Ports
	Verbs      []string
	Connectors []ids.ConnectorID
	// Issued is stamped by the ledger, in milliseconds.
	Issued  time.Time
	HardEnd time.Time
	Outage  catalog.Outage
	// BytesPerSecond and Flows limit one micro-tunnel; zero means no limit of its own.
	BytesPerSecond uint64
	Flows          uint32
	// OpensPerMinute limits the flow opens of the device at the app; zero stands in grants
	// of brokers that did not know it, and means no limit.
	OpensPerMinute uint32
	// Idle ends the grant after that long without a byte; zero is never.
	Idle time.Duration
	// Source is the address for which the decision holds. In the store it is the one of the
	// first decision.
	Source netip.Addr
	// ReEvaluateAt is when the decision may turn by itself; zero is never.
	ReEvaluateAt time.Time
	State        State
}

// RevokedGrant is a grant with the time of the revocation that ended it.
type RevokedGrant struct {
	Grant Grant
	At    time.Time
}

// wire returns the grant in the form that is signed.
func (g *Grant) wire() *grant.Grant {
	return &grant.Grant{
		ID: g.ID, Receipt: g.Receipt, Session: g.Session, User: g.User,
		PeerKind: g.PeerKind, PeerKey: g.PeerKey, App: g.App, AppName: g.AppName,
		Ports: g.Ports, Verbs: g.Verbs, Connectors: g.Connectors,
		NotBefore: g.Issued, HardEnd: g.HardEnd,
		Outage: g.Outage.Mode, OutageGrace: time.Duration(g.Outage.Grace),
		BytesPerSecond: g.BytesPerSecond, Flows: g.Flows, OpensPerMinute: g.OpensPerMinute, Idle: g.Idle,
	}
}

// check refuses a request that no connector would accept.
func (g *Grant) check(now time.Time, most time.Duration) error {
	switch {
	case g.Receipt == "" || g.Session == "" || g.User == "" || g.Device == "" || g.App == "":
		return fmt.Errorf("%w: an id is missing", ErrInvalid)
	case g.PeerKey.IsZero() || g.PeerKind < grant.PeerDevice || g.PeerKind > grant.PeerGateway:
		return fmt.Errorf("%w: no peer", ErrInvalid)
	case len(g.Ports) == 0 || len(g.Verbs) == 0:
		return fmt.Errorf("%w: no ports or verbs", ErrInvalid)
	case len(g.Connectors) == 0:
		return fmt.Errorf("%w: no connector", ErrInvalid)
	case g.Outage.Mode < grant.OutageCut || g.Outage.Mode > grant.OutageHold:
		return fmt.Errorf("%w: outage mode %d", ErrInvalid, g.Outage.Mode)
	case !g.HardEnd.After(now) || g.HardEnd.After(now.Add(most)):
		return fmt.Errorf("%w: the hard end must lie within %s", ErrInvalid, most)
	}
	return nil
}

// Target is what a revocation ends: build it with one of the functions below.
type Target struct {
	Kind grant.TargetKind
	ID   string
}

// everything is the kind of Everything in the store; on the wire it is "void before".
const everything grant.TargetKind = 100

// User targets all grants of a user.
func User(id ids.UserID) Target { return Target{grant.TargetUser, string(id)} }

// Device targets all grants of the device with this identity key.
func Device(key ids.KeyID) Target { return Target{grant.TargetDevice, key.String()} }

// Session targets all grants of a session.
func Session(id ids.SessionID) Target { return Target{grant.TargetSession, string(id)} }

// One targets a single grant.
func One(id ids.GrantID) Target { return Target{grant.TargetGrant, string(id)} }

// App targets all grants for an app.
func App(id ids.AppID) Target { return Target{grant.TargetApp, string(id)} }

// Everything targets all grants that exist: after a restore, and for an admin in need.
func Everything() Target { return Target{everything, "all"} }

// matches reports whether the target names g, whenever g was issued. A kind that this
// program does not know matches everything.
func (t Target) matches(g *Grant) bool {
	switch t.Kind {
	case grant.TargetUser:
		return t.ID == string(g.User)
	case grant.TargetDevice:
		return t.ID == g.PeerKey.String()
	case grant.TargetSession:
		return t.ID == string(g.Session)
	case grant.TargetGrant:
		return t.ID == string(g.ID)
	case grant.TargetApp:
		return t.ID == string(g.App)
	default:
		return true
	}
}

// Revocation is one entry of the global list.
type Revocation struct {
	Sequence uint64
	Target   Target
	Cause    Cause
	At       time.Time
	// KeepUntil is when no grant that it ended could be in force any more.
	KeepUntil time.Time
	// Connectors are those that held grants which it ended; only they are told.
	Connectors []ids.ConnectorID
}

// ends reports whether the revocation ends g.
func (r *Revocation) ends(g *Grant) bool {
	return !g.Issued.After(r.At) && r.Target.matches(g)
}

func (r *Revocation) wire() grant.Revocation {
	return grant.Revocation{Sequence: r.Sequence, Kind: r.Target.Kind, Target: r.Target.ID, At: r.At}
}
