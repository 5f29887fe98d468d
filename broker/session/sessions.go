package session

import (
	"context"
	"fmt"
	"time"

	"github.com/postern-zt/postern/proto/ids"
)

// Topic of the change events that the store writes; the key is the session's id, or empty
// when many sessions changed at once.
const Topic = "session"

// Limits on what a sign-in says.
const (
	maxACR    = 256
	maxAMR    = 16
	maxSource = 64
)

// Filter selects sessions for a list; empty fields do not narrow.
type Filter struct {
	User   ids.UserID
	Device ids.DeviceID
	// Ended lists ended sessions too.
	Ended bool
}

// Store keeps sessions. broker/store implements it on both engines. Errors satisfy errors.Is
// with those of this package.
type Store interface {
	Session(ctx context.Context, id ids.SessionID) (Session, error)
	// Sessions lists sessions, newest first.
	Sessions(ctx context.Context, f Filter) ([]Session, error)
	CreateSession(ctx context.Context, s Session) error
	// ChangeSession loads the session, lets change edit it and stores it.
	ChangeSession(ctx context.Context, id ids.SessionID, change func(*Session) error) (Session, error)
	// TouchSession notes activity, without a change event.
	TouchSession(ctx context.Context, id ids.SessionID, at time.Time) error
	// EndSessions ends the live sessions that match and returns their ids.
	EndSessions(ctx context.Context, f Filter, cause Cause, at time.Time) ([]ids.SessionID, error)
	// DropSessions forgets sessions that ended before the given time.
	DropSessions(ctx context.Context, before time.Time) (int64, error)
}

// Sessions applies the rules on top of a Store.
type Sessions struct {
	store Store
}

// New returns Sessions over store.
func New(store Store) *Sessions { return &Sessions{store: store} }

// Create stores a new session after a sign-in and ends the one that the same user had on the
// same device. It returns the session and the ids of those that it replaced.
func (m *Sessions) Create(ctx context.Context, s Session, now time.Time) (Session, []ids.SessionID, error) {
	if err := s.check(); err != nil {
		return Session{}, nil, err
	}
	s.ID = ids.New[ids.SessionID]()
	s.Created, s.LastActive = now, now
	if s.LastVerified.IsZero() {
		s.LastVerified = now
	}
	s.EndedAt, s.EndCause = time.Time{}, ""
	replaced, err := m.store.EndSessions(ctx, Filter{User: s.User, Device: s.Device}, CauseReplaced, now)
	if err != nil {
		return Session{}, nil, fmt.Errorf("replace sessions: %w", err)
	}
	if err := m.store.CreateSession(ctx, s); err != nil {
		return Session{}, replaced, fmt.Errorf("create session: %w", err)
	}
	return s, replaced, nil
}

func (s *Session) check() error {
	switch {
	case s.User == "" || s.Device == "" || s.DeviceKey.IsZero():
		return fmt.Errorf("%w: a session has a user, a device and its key", ErrInvalid)
	case s.AuthTime.IsZero():
		return fmt.Errorf("%w: a session has an authentication time", ErrInvalid)
	case s.MaxAge < 0 || s.Idle < 0:
		return fmt.Errorf("%w: a negative age limit", ErrInvalid)
	case len(s.ACR) > maxACR || len(s.AMR) > maxAMR || len(s.Source) > maxSource:
		return fmt.Errorf("%w: the authentication context is too large", ErrInvalid)
	}
	return nil
}

// Session returns one session, also an ended one: ask Live.
func (m *Sessions) Session(ctx context.Context, id ids.SessionID) (Session, error) {
	return m.store.Session(ctx, id)
}

// List returns sessions, newest first.
func (m *Sessions) List(ctx context.Context, f Filter) ([]Session, error) {
	return m.store.Sessions(ctx, f)
}

// Use returns the session if it may be used by the holder of key at now.
func (m *Sessions) Use(ctx context.Context, id ids.SessionID, key ids.KeyID, now time.Time) (Session, error) {
	s, err := m.store.Session(ctx, id)
	if err != nil {
		return Session{}, err
	}
	if err := s.Live(key, now); err != nil {
		return Session{}, err
	}
	return s, nil
}

// Touch notes that the device asked for something on behalf of its user.
func (m *Sessions) Touch(ctx context.Context, id ids.SessionID, now time.Time) error {
	return m.store.TouchSession(ctx, id, now)
}

// StepUp records a stronger or fresher authentication of a live session.
func (m *Sessions) StepUp(ctx context.Context, id ids.SessionID, acr string, amr []string, authTime time.Time) (Session, error) {
	return m.store.ChangeSession(ctx, id, func(s *Session) error {
		if !s.EndedAt.IsZero() {
			return fmt.Errorf("%w: %s", ErrEnded, s.EndCause)
		}
		if authTime.Before(s.AuthTime) {
			return fmt.Errorf("%w: the authentication is older than the one known", ErrInvalid)
		}
		s.ACR, s.AMR, s.AuthTime = acr, amr, authTime
		return s.check()
	})
}

// Verified records that the issuer confirmed the user at now.
func (m *Sessions) Verified(ctx context.Context, id ids.SessionID, now time.Time) (Session, error) {
	return m.store.ChangeSession(ctx, id, func(s *Session) error {
		s.LastVerified, s.Stale = now, Mark(s.Stale, IdentityStale, false)
		return nil
	})
}

// Move records that the device of a live session asks from another address.
func (m *Sessions) Move(ctx context.Context, id ids.SessionID, source string) (Session, error) {
	return m.store.ChangeSession(ctx, id, func(s *Session) error {
		if !s.EndedAt.IsZero() {
			return fmt.Errorf("%w: %s", ErrEnded, s.EndCause)
		}
		s.Source = source
		return s.check()
	})
}

// SetStale adds or takes away a stale mark.
func (m *Sessions) SetStale(ctx context.Context, id ids.SessionID, mark Stale, on bool) (Session, error) {
	return m.store.ChangeSession(ctx, id, func(s *Session) error {
		s.Stale = Mark(s.Stale, mark, on)
		return nil
	})
}

// End ends one session. Ending an ended one changes nothing and is no error.
func (m *Sessions) End(ctx context.Context, id ids.SessionID, cause Cause, now time.Time) (Session, error) {
	return m.store.ChangeSession(ctx, id, func(s *Session) error {
		if s.EndedAt.IsZero() {
			s.EndedAt, s.EndCause = now, cause
		}
		return nil
	})
}

// EndUser ends all sessions of a user and returns their ids.
func (m *Sessions) EndUser(ctx context.Context, user ids.UserID, cause Cause, now time.Time) ([]ids.SessionID, error) {
	if user == "" {
		return nil, fmt.Errorf("%w: no user", ErrInvalid)
	}
	return m.store.EndSessions(ctx, Filter{User: user}, cause, now)
}

// EndDevice ends all sessions on a device and returns their ids.
func (m *Sessions) EndDevice(ctx context.Context, device ids.DeviceID, cause Cause, now time.Time) ([]ids.SessionID, error) {
	if device == "" {
		return nil, fmt.Errorf("%w: no device", ErrInvalid)
	}
	return m.store.EndSessions(ctx, Filter{Device: device}, cause, now)
}

// EndAll signs everybody out: after a restore, and for an admin in need.
func (m *Sessions) EndAll(ctx context.Context, cause Cause, now time.Time) ([]ids.SessionID, error) {
	return m.store.EndSessions(ctx, Filter{}, cause, now)
}

// EndDue ends the sessions whose age or idle limit passed and returns them.
func (m *Sessions) EndDue(ctx context.Context, now time.Time) ([]Session, error) {
	live, err := m.store.Sessions(ctx, Filter{})
	if err != nil {
		return nil, err
	}
	var ended []Session
	for i := range live {
		at, cause := live[i].end()
		if at.IsZero() || now.Before(at) {
			continue
		}
		s, err := m.End(ctx, live[i].ID, cause, now)
		if err != nil {
			return ended, fmt.Errorf("end session: %w", err)
		}
		ended = append(ended, s)
	}
	return ended, nil
}

// Drop forgets sessions that ended before the given time.
func (m *Sessions) Drop(ctx context.Context, before time.Time) (int64, error) {
	return m.store.DropSessions(ctx, before)
}
