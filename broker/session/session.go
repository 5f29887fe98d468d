package session

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/postern-zt/postern/proto/ids"
)

// Errors that callers branch on with errors.Is.
var (
	// ErrNotFound: no session with this id.
	ErrNotFound = errors.New("session not found")
	// ErrEnded: the session is over; its cause is in the error text.
	ErrEnded = errors.New("session ended")
	// ErrInvalid: a value breaks a rule.
	ErrInvalid = errors.New("invalid value")
)

// Cause says why a session ended. It is shown to people and kept in the audit.
type Cause string

// The causes.
const (
	CauseLogout        Cause = "logout"
	CauseAdmin         Cause = "admin"
	CauseUserDisabled  Cause = "user_disabled"
	CauseDeviceBlocked Cause = "device_blocked"
	CauseDeviceRemoved Cause = "device_removed"
	CauseIssuer        Cause = "issuer_refused"
	CauseMaxAge        Cause = "max_age"
	CauseIdle          Cause = "idle"
	CauseReplaced      Cause = "replaced"
	CauseRisk          Cause = "risk"
	CauseRestore       Cause = "restore"
)

// Stale marks what could not be confirmed lately; a session goes on with it by the outage
// mode of the app, and decisions see it.
type Stale string

// The stale marks.
const (
	IdentityStale Stale = "identity_stale"
	FactsStale    Stale = "facts_stale"
)

// Session is one user on one device, signed in.
type Session struct {
	ID     ids.SessionID
	User   ids.UserID
	Device ids.DeviceID
	// DeviceKey binds the session to the device's key, not to a certificate.
	DeviceKey ids.KeyID
	// ACR, AMR and AuthTime are the authentication context of the last sign-in or step-up.
	ACR      string
	AMR      []string
	AuthTime time.Time
	Created  time.Time
	// LastVerified is when the issuer last confirmed the user.
	LastVerified time.Time
	// LastActive is when the device last asked for something on behalf of its user.
	LastActive time.Time
	// MaxAge and Idle end the session by themselves; zero does not.
	MaxAge time.Duration
	Idle   time.Duration
	// Source is the address that the device was last seen asking from, as text.
	Source string
	Stale  []Stale
	// EndedAt is zero while the session lives.
	EndedAt  time.Time
	EndCause Cause
}

// Live returns nil if the session may be used at now by the holder of key, else ErrEnded
// or, for another device, ErrNotFound: a stolen id is worth nothing and says nothing.
func (s *Session) Live(key ids.KeyID, now time.Time) error {
	if key.IsZero() || s.DeviceKey != key {
		return ErrNotFound
	}
	if !s.EndedAt.IsZero() {
		return fmt.Errorf("%w: %s", ErrEnded, s.EndCause)
	}
	if at, cause := s.end(); !at.IsZero() && !now.Before(at) {
		return fmt.Errorf("%w: %s", ErrEnded, cause)
	}
	return nil
}

// end returns when the session ends by itself and why, or the zero time.
func (s *Session) end() (time.Time, Cause) {
	var at time.Time
	var cause Cause
	if s.MaxAge > 0 {
		at, cause = s.Created.Add(s.MaxAge), CauseMaxAge
	}
	if idle := s.LastActive.Add(s.Idle); s.Idle > 0 && (at.IsZero() || idle.Before(at)) {
		at, cause = idle, CauseIdle
	}
	return at, cause
}

// Deadline is the next moment at which something is due for a session.
type Deadline struct {
	Session ids.SessionID
	At      time.Time
	// End is the cause if the session ends then; empty means that the user is verified
	// again with the issuer.
	End Cause
}

// Next returns the next deadline of a live session: its end, or the re-verification of the
// user, reverify after the last one (zero: none). ok is false if nothing is ever due.
func (s *Session) Next(reverify time.Duration) (d Deadline, ok bool) {
	at, cause := s.end()
	if again := s.LastVerified.Add(reverify); reverify > 0 && (at.IsZero() || again.Before(at)) {
		at, cause = again, ""
	}
	return Deadline{Session: s.ID, At: at, End: cause}, !at.IsZero() && s.EndedAt.IsZero()
}

// NextOf returns the earliest deadline of all sessions.
func NextOf(all []*Session, reverify time.Duration) (first Deadline, ok bool) {
	for _, s := range all {
		if d, due := s.Next(reverify); due && (!ok || d.At.Before(first.At)) {
			first, ok = d, true
		}
	}
	return first, ok
}

// Mark returns the stale marks with one added or taken away, sorted.
func Mark(marks []Stale, m Stale, on bool) []Stale {
	out := slices.DeleteFunc(slices.Clone(marks), func(o Stale) bool { return o == m })
	if on {
		out = append(out, m)
	}
	slices.Sort(out)
	return out
}
