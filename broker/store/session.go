package store

import (
	"context"
	"fmt"
	"time"

	"github.com/postern-zt/postern/broker/session"
	"github.com/postern-zt/postern/proto/ids"
)

var _ session.Store = (*Store)(nil)

const sessionColumns = `id, user_id, device_id, device_key, acr, amr, auth_time, created_at, last_verified, last_active,
	max_age_ms, idle_ms, source, stale, ended_at, end_cause`

// sessionMatch selects by session.Filter: user twice, device twice, whether ended ones count.
const sessionMatch = `(user_id = $1 OR $2 = '') AND (device_id = $3 OR $4 = '') AND (ended_at = 0 OR $5)`

func scanSession(row scanner) (session.Session, error) {
	var s session.Session
	var key, amr, stale string
	var auth, created, verified, active, maxAge, idle, ended int64
	err := row.Scan(&s.ID, &s.User, &s.Device, &key, &s.ACR, &amr, &auth, &created, &verified, &active,
		&maxAge, &idle, &s.Source, &stale, &ended, &s.EndCause)
	if err != nil {
		return s, err
	}
	s.AuthTime, s.Created, s.LastVerified = fromMilli(auth), fromMilli(created), fromMilli(verified)
	s.LastActive, s.EndedAt = fromMilli(active), fromMilli(ended)
	s.MaxAge, s.Idle = time.Duration(maxAge)*time.Millisecond, time.Duration(idle)*time.Millisecond
	if err := fromJSON(amr, &s.AMR); err != nil {
		return s, err
	}
	if err := fromJSON(stale, &s.Stale); err != nil {
		return s, err
	}
	s.DeviceKey, err = ids.ParseKeyID(key)
	return s, err
}

// sessionValues returns the arguments for sessionColumns.
func sessionValues(s session.Session) ([]any, error) {
	amr, err := toJSON(s.AMR)
	if err != nil {
		return nil, err
	}
	stale, err := toJSON(s.Stale)
	if err != nil {
		return nil, err
	}
	return []any{
		s.ID, s.User, s.Device, s.DeviceKey.String(), s.ACR, amr, unixMilli(s.AuthTime), unixMilli(s.Created),
		unixMilli(s.LastVerified), unixMilli(s.LastActive), s.MaxAge.Milliseconds(), s.Idle.Milliseconds(),
		s.Source, stale, unixMilli(s.EndedAt), s.EndCause,
	}, nil
}

// Session returns one session.
func (s *Store) Session(ctx context.Context, id ids.SessionID) (session.Session, error) {
	v, err := scanRow(ctx, s.read(ctx), scanSession, `SELECT `+sessionColumns+` FROM sessions WHERE id = $1`, id)
	return v, translate("read session", err, session.ErrNotFound, nil)
}

// Sessions lists sessions, newest first.
func (s *Store) Sessions(ctx context.Context, f session.Filter) ([]session.Session, error) {
	list, err := scanRows(ctx, s.read(ctx), scanSession,
		`SELECT `+sessionColumns+` FROM sessions WHERE `+sessionMatch+` ORDER BY created_at DESC, id`,
		f.User, f.User, f.Device, f.Device, f.Ended)
	return list, translate("list sessions", err, nil, nil)
}

// CreateSession stores a new session.
func (s *Store) CreateSession(ctx context.Context, v session.Session) error {
	args, err := sessionValues(v)
	if err != nil {
		return err
	}
	err = s.write(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, `INSERT INTO sessions (`+sessionColumns+`)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`, args...)
		if err != nil {
			return err
		}
		return tx.changed(ctx, session.Topic, string(v.ID))
	})
	return translate("create session", err, nil, nil)
}

// ChangeSession edits a session in one transaction; who it belongs to does not change.
func (s *Store) ChangeSession(ctx context.Context, id ids.SessionID, change func(*session.Session) error) (session.Session, error) {
	var v session.Session
	err := s.write(ctx, func(tx *Tx) error {
		var err error
		if v, err = s.Session(tx.Context(ctx), id); err != nil {
			return err
		}
		if err := change(&v); err != nil {
			return err
		}
		if err := tx.storeSession(ctx, v); err != nil {
			return err
		}
		return tx.changed(ctx, session.Topic, string(id))
	})
	return v, translate("change session", err, session.ErrNotFound, nil)
}

func (tx *Tx) storeSession(ctx context.Context, v session.Session) error {
	amr, err := toJSON(v.AMR)
	if err != nil {
		return err
	}
	stale, err := toJSON(v.Stale)
	if err != nil {
		return err
	}
	return tx.execOne(ctx, `UPDATE sessions SET acr = $1, amr = $2, auth_time = $3, last_verified = $4, last_active = $5,
			max_age_ms = $6, idle_ms = $7, source = $8, stale = $9, ended_at = $10, end_cause = $11 WHERE id = $12`,
		v.ACR, amr, unixMilli(v.AuthTime), unixMilli(v.LastVerified), unixMilli(v.LastActive),
		v.MaxAge.Milliseconds(), v.Idle.Milliseconds(), v.Source, stale, unixMilli(v.EndedAt), v.EndCause, v.ID)
}

// TouchSession notes activity of a live session.
func (s *Store) TouchSession(ctx context.Context, id ids.SessionID, at time.Time) error {
	err := s.write(ctx, func(tx *Tx) error {
		return tx.execOne(ctx, `UPDATE sessions SET last_active = $1 WHERE id = $2 AND ended_at = 0`, unixMilli(at), id)
	})
	return translate("touch session", err, session.ErrNotFound, nil)
}

// EndSessions ends the live sessions that match.
func (s *Store) EndSessions(ctx context.Context, f session.Filter, cause session.Cause, at time.Time) ([]ids.SessionID, error) {
	var ended []ids.SessionID
	err := s.write(ctx, func(tx *Tx) error {
		var err error
		ended, err = scanRows(ctx, tx, scanOne[ids.SessionID],
			`SELECT id FROM sessions WHERE `+sessionMatch+` ORDER BY id`, f.User, f.User, f.Device, f.Device, false)
		if err != nil || len(ended) == 0 {
			return err
		}
		_, err = tx.exec(ctx, `UPDATE sessions SET ended_at = $6, end_cause = $7 WHERE `+sessionMatch,
			f.User, f.User, f.Device, f.Device, false, unixMilli(at), cause)
		if err != nil {
			return err
		}
		return tx.changed(ctx, session.Topic, "")
	})
	if err != nil {
		return nil, fmt.Errorf("end sessions: %w", err)
	}
	return ended, nil
}

// DropSessions forgets sessions that ended before the given time.
func (s *Store) DropSessions(ctx context.Context, before time.Time) (n int64, err error) {
	err = s.write(ctx, func(tx *Tx) error {
		n, err = tx.exec(ctx, `DELETE FROM sessions WHERE ended_at > 0 AND ended_at < $1`, unixMilli(before))
		return err
	})
	return n, translate("drop sessions", err, nil, nil)
}
