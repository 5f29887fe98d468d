package store

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
)

var _ grants.Store = (*Store)(nil)

const grantColumns = `state, re_evaluate_at, body`

func scanGrant(row scanner) (grants.Grant, error) {
	var g grants.Grant
	var state grants.State
	var reEvaluate int64
	var body string
	if err := row.Scan(&state, &reEvaluate, &body); err != nil {
		return g, err
	}
	if err := fromJSON(body, &g); err != nil {
		return g, err
	}
	g.State, g.ReEvaluateAt = state, fromMilli(reEvaluate)
	return g, nil
}

// InsertGrant stores a new grant.
func (s *Store) InsertGrant(ctx context.Context, g grants.Grant) error {
	body, err := toJSON(g)
	if err != nil {
		return err
	}
	err = s.write(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, `INSERT INTO grants (id, receipt, session_id, user_id, device_key, app_id,
				issued_at, hard_end, re_evaluate_at, state, revoked_by, ended_at, body)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`,
			g.ID, g.Receipt, g.Session, g.User, g.PeerKey.String(), g.App,
			unixMilli(g.Issued), unixMilli(g.HardEnd), unixMilli(g.ReEvaluateAt), g.State, 0, 0, body)
		return err
	})
	return translate("insert grant", err, nil, nil)
}

// SetReEvaluate stores when a grant is to be decided again.
func (s *Store) SetReEvaluate(ctx context.Context, id ids.GrantID, at time.Time) error {
	err := s.write(ctx, func(tx *Tx) error {
		return tx.execOne(ctx, `UPDATE grants SET re_evaluate_at = $1 WHERE id = $2`, unixMilli(at), id)
	})
	return translate("set re-evaluation", err, grants.ErrNotFound, nil)
}

// LiveGrants lists the live grants whose hard end lies after now.
func (s *Store) LiveGrants(ctx context.Context, now time.Time) ([]grants.Grant, error) {
	list, err := scanRows(ctx, s.read(ctx), scanGrant,
		`SELECT `+grantColumns+` FROM grants WHERE state = 'live' AND hard_end > $1 ORDER BY issued_at, id`, unixMilli(now))
	return list, translate("list live grants", err, nil, nil)
}

// RevokedGrants lists the grants that a revocation has ended after since.
func (s *Store) RevokedGrants(ctx context.Context, since time.Time) ([]grants.RevokedGrant, error) {
	scan := func(row scanner) (r grants.RevokedGrant, err error) {
		var at int64
		var body string
		if err := row.Scan(&at, &body); err != nil {
			return r, err
		}
		if err := fromJSON(body, &r.Grant); err != nil {
			return r, err
		}
		r.Grant.State, r.At = grants.Revoked, fromMilli(at)
		return r, nil
	}
	list, err := scanRows(ctx, s.read(ctx), scan,
		`SELECT ended_at, body FROM grants WHERE state = 'revoked' AND ended_at > $1 ORDER BY ended_at, id`, unixMilli(since))
	return list, translate("list revoked grants", err, nil, nil)
}

// Grant returns a grant in any state.
func (s *Store) Grant(ctx context.Context, id ids.GrantID) (grants.Grant, error) {
	g, err := scanRow(ctx, s.read(ctx), scanGrant, `SELECT `+grantColumns+` FROM grants WHERE id = $1`, id)
	return g, translate("read grant", err, grants.ErrNotFound, nil)
}

// SaveRevocations stores revocations and marks the grants that they end.
func (s *Store) SaveRevocations(ctx context.Context, list []grants.Revocation) error {
	err := s.write(ctx, func(tx *Tx) error {
		for _, r := range list {
			if err := tx.saveRevocation(ctx, r); err != nil {
				return fmt.Errorf("revocation %d: %w", r.Sequence, err)
			}
		}
		return nil
	})
	return translate("save revocations", err, nil, grants.ErrConflict)
}

func (tx *Tx) saveRevocation(ctx context.Context, r grants.Revocation) error {
	connectors, err := toJSON(r.Connectors)
	if err != nil {
		return err
	}
	n, err := tx.exec(ctx, `INSERT INTO revocations (sequence, kind, target, cause, at, keep_until, connectors)
		VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (sequence) DO NOTHING`,
		r.Sequence, int64(r.Target.Kind), r.Target.ID, r.Cause, unixMilli(r.At), unixMilli(r.KeepUntil), connectors)
	if err != nil {
		return err
	}
	if n == 0 {
		if err := tx.sameRevocation(ctx, r); err != nil {
			return err
		}
	}
	_, err = tx.exec(ctx, `UPDATE revocation_counter SET last = $1 WHERE id = 1 AND last < $2`, r.Sequence, r.Sequence)
	if err != nil {
		return err
	}
	if err := tx.endGrants(ctx, r); err != nil {
		return err
	}
	return tx.changed(ctx, grants.TopicRevocation, fmt.Sprint(r.Sequence))
}

// sameRevocation fails with ErrConflict if the sequence is stored for something else.
func (tx *Tx) sameRevocation(ctx context.Context, r grants.Revocation) error {
	n, err := scanRow(ctx, tx, scanOne[int64],
		`SELECT COUNT(*) FROM revocations WHERE sequence = $1 AND kind = $2 AND target = $3 AND at = $4`,
		r.Sequence, int64(r.Target.Kind), r.Target.ID, unixMilli(r.At))
	if err == nil && n == 0 {
		return ErrConflict
	}
	return err
}

// endGrants marks the live grants that a revocation names and that are not younger than it.
func (tx *Tx) endGrants(ctx context.Context, r grants.Revocation) error {
	query := `UPDATE grants SET state = 'revoked', revoked_by = $1, ended_at = $2 WHERE state = 'live' AND issued_at <= $3`
	args := []any{r.Sequence, unixMilli(r.At), unixMilli(r.At)}
	if column := targetColumn(r.Target.Kind); column != "" {
		query += ` AND ` + column + ` = $4`
		args = append(args, r.Target.ID)
	}
	_, err := tx.exec(ctx, query, args...)
	return err
}

// targetColumn returns the column that a kind of target names, "" for everything.
func targetColumn(k grant.TargetKind) string {
	switch k {
	case grant.TargetUser:
		return "user_id"
	case grant.TargetDevice:
		return "device_key"
	case grant.TargetSession:
		return "session_id"
	case grant.TargetGrant:
		return "id"
	case grant.TargetApp:
		return "app_id"
	default:
		return ""
	}
}

// Revocations lists what is stored, and the highest sequence ever.
func (s *Store) Revocations(ctx context.Context) ([]grants.Revocation, uint64, error) {
	last, err := scanRow(ctx, s.read(ctx), scanOne[uint64], `SELECT last FROM revocation_counter WHERE id = 1`)
	if err != nil {
		return nil, 0, translate("read revocation counter", err, nil, nil)
	}
	list, err := scanRows(ctx, s.read(ctx), scanRevocation,
		`SELECT sequence, kind, target, cause, at, keep_until, connectors FROM revocations ORDER BY sequence`)
	if n := len(list); n > 0 {
		last = max(last, list[n-1].Sequence)
	}
	return list, last, translate("list revocations", err, nil, nil)
}

func scanRevocation(row scanner) (grants.Revocation, error) {
	var r grants.Revocation
	var kind, at, keep int64
	var connectors string
	if err := row.Scan(&r.Sequence, &kind, &r.Target.ID, &r.Cause, &at, &keep, &connectors); err != nil {
		return r, err
	}
	r.Target.Kind, r.At, r.KeepUntil = grant.TargetKind(kind), fromMilli(at), fromMilli(keep)
	return r, fromJSON(connectors, &r.Connectors)
}

// TidyGrants marks and forgets what ended by itself.
func (s *Store) TidyGrants(ctx context.Context, now, forget time.Time) error {
	err := s.write(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, `UPDATE grants SET state = 'expired', ended_at = hard_end WHERE state = 'live' AND hard_end <= $1`, unixMilli(now))
		if err != nil {
			return err
		}
		if _, err := tx.exec(ctx, `DELETE FROM revocations WHERE keep_until < $1`, unixMilli(now)); err != nil {
			return err
		}
		_, err = tx.exec(ctx, `DELETE FROM grants WHERE state <> 'live' AND ended_at < $1`, unixMilli(forget))
		return err
	})
	return translate("tidy grants", err, nil, nil)
}

// SaveAssignment returns the version of an assignment with this digest.
func (s *Store) SaveAssignment(ctx context.Context, id ids.ConnectorID, digest []byte) (uint64, error) {
	type row struct {
		version uint64
		digest  string
	}
	read := func(ctx context.Context) (row, error) {
		return scanRow(ctx, s.read(ctx), func(sc scanner) (r row, err error) { return r, sc.Scan(&r.version, &r.digest) },
			`SELECT version, digest FROM assignments WHERE connector_id = $1`, id)
	}
	want := hex.EncodeToString(digest)
	if known, err := read(ctx); err == nil && known.digest == want {
		return known.version, nil
	}
	var now row
	err := s.write(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, `INSERT INTO assignments (connector_id, version, digest) VALUES ($1, 1, $2)
			ON CONFLICT (connector_id) DO UPDATE SET version = assignments.version + 1, digest = excluded.digest
			WHERE assignments.digest <> excluded.digest`, id, want)
		if err != nil {
			return err
		}
		now, err = read(tx.Context(ctx))
		return err
	})
	return now.version, translate("save assignment", err, nil, nil)
}
