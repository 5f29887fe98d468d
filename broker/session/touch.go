package session

import (
	"slices"

	"github.com/postern-zt/postern/proto/ids"
)

// EventKind is what happened. An unknown kind touches every session.
type EventKind string

// The kinds of events.
const (
	// PolicyPublished: another revision holds. Its Scope narrows it if not empty.
	PolicyPublished EventKind = "policy"
	UserChanged     EventKind = "user"
	// GroupChanged: Users names who was or is a member.
	GroupChanged  EventKind = "group"
	DeviceChanged EventKind = "device"
	FactsChanged  EventKind = "facts"
	// ScheduleEnded: a time condition of decisions about Apps turned.
	ScheduleEnded  EventKind = "schedule"
	AppChanged     EventKind = "app"
	SessionChanged EventKind = "session"
)

// Event is something that may change decisions. Which lists matter depends on the kind.
type Event struct {
	Kind     EventKind
	Users    []ids.UserID
	Devices  []ids.DeviceID
	Apps     []ids.AppID
	Sessions []ids.SessionID
}

// View answers what a session alone does not know. A nil function counts as yes: to decide
// once too often is safe.
type View struct {
	// Uses reports whether the session holds a grant for, or was denied, the app.
	Uses func(s ids.SessionID, app ids.AppID) bool
}

// Touched returns the live sessions whose decisions the event may change, in the order given.
func Touched(e Event, all []*Session, v View) []*Session {
	var out []*Session
	for _, s := range all {
		if s.EndedAt.IsZero() && e.touches(s, v) {
			out = append(out, s)
		}
	}
	return out
}

func (e Event) touches(s *Session, v View) bool {
	switch e.Kind {
	case PolicyPublished:
		return e.unscoped() || e.names(s) || e.usedBy(s, v)
	case UserChanged, GroupChanged, DeviceChanged, FactsChanged, SessionChanged:
		return e.unscoped() || e.names(s)
	case AppChanged, ScheduleEnded:
		return e.unscoped() || e.names(s) || e.usedBy(s, v)
	default:
		return true
	}
}

// unscoped reports an event that names nobody and nothing: it could be anyone.
func (e Event) unscoped() bool {
	return len(e.Users)+len(e.Devices)+len(e.Apps)+len(e.Sessions) == 0
}

func (e Event) names(s *Session) bool {
	return slices.Contains(e.Users, s.User) || slices.Contains(e.Devices, s.Device) || slices.Contains(e.Sessions, s.ID)
}

func (e Event) usedBy(s *Session, v View) bool {
	return slices.ContainsFunc(e.Apps, func(app ids.AppID) bool { return v.Uses == nil || v.Uses(s.ID, app) })
}
