package store

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/postern-zt/postern/broker/enroll"
	"github.com/postern-zt/postern/proto/ids"
)

var _ enroll.Store = (*Store)(nil)

const tokenColumns = `id, hash, kind, site_id, label, multi, may_publish, created_at, expires_at, revoked_at, uses, last_used`

func scanToken(row scanner) (enroll.Token, error) {
	var t enroll.Token
	var hash string
	var created, expires, revoked, used int64
	err := row.Scan(&t.ID, &hash, &t.Kind, &t.Site, &t.Label, &t.Multi, &t.MayPublish, &created, &expires, &revoked, &t.Uses, &used)
	if err != nil {
		return t, err
	}
	t.CreatedAt, t.ExpiresAt, t.RevokedAt, t.LastUsed = fromMilli(created), fromMilli(expires), fromMilli(revoked), fromMilli(used)
	b, err := hex.DecodeString(hash)
	if err != nil || len(b) != len(t.Hash) {
		return t, fmt.Errorf("hash of join token %s is damaged", t.ID)
	}
	copy(t.Hash[:], b)
	return t, nil
}

// CreateToken stores a new join token.
func (s *Store) CreateToken(ctx context.Context, t enroll.Token) error {
	err := s.write(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, `INSERT INTO join_tokens (lookup, `+tokenColumns+`)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`,
			hex.EncodeToString(t.Hash.Lookup()), t.ID, hex.EncodeToString(t.Hash[:]), t.Kind, t.Site, t.Label, t.Multi, t.MayPublish,
			unixMilli(t.CreatedAt), unixMilli(t.ExpiresAt), unixMilli(t.RevokedAt), t.Uses, unixMilli(t.LastUsed))
		if err != nil {
			return err
		}
		return tx.changed(ctx, enroll.Topic, string(t.ID))
	})
	return translate("create join token", err, nil, nil)
}

// Tokens lists all join tokens, newest first.
func (s *Store) Tokens(ctx context.Context) ([]enroll.Token, error) {
	list, err := scanRows(ctx, s.read(ctx), scanToken, `SELECT `+tokenColumns+` FROM join_tokens ORDER BY created_at DESC, id`)
	return list, translate("list join tokens", err, nil, nil)
}

// Token returns one join token.
func (s *Store) Token(ctx context.Context, id ids.TokenID) (enroll.Token, error) {
	t, err := scanRow(ctx, s.read(ctx), scanToken, `SELECT `+tokenColumns+` FROM join_tokens WHERE id = $1`, id)
	return t, translate("read join token", err, enroll.ErrNotFound, nil)
}

// FindToken returns the token whose hash begins with lookup.
func (s *Store) FindToken(ctx context.Context, lookup []byte) (enroll.Token, error) {
	t, err := scanRow(ctx, s.read(ctx), scanToken, `SELECT `+tokenColumns+` FROM join_tokens WHERE lookup = $1`, hex.EncodeToString(lookup))
	return t, translate("find join token", err, enroll.ErrUnknown, nil)
}

// RevokeToken notes the time of the first revocation.
func (s *Store) RevokeToken(ctx context.Context, id ids.TokenID, at time.Time) error {
	err := s.write(ctx, func(tx *Tx) error {
		err := tx.execOne(ctx, `UPDATE join_tokens SET revoked_at = CASE WHEN revoked_at = 0 THEN $1 ELSE revoked_at END
			WHERE id = $2`, unixMilli(at), id)
		if err != nil {
			return err
		}
		return tx.changed(ctx, enroll.Topic, string(id))
	})
	return translate("revoke join token", err, enroll.ErrNotFound, nil)
}

// TokenUse returns the use of a token by a key.
func (s *Store) TokenUse(ctx context.Context, id ids.TokenID, key ids.KeyID) (enroll.Use, error) {
	u, err := scanRow(ctx, s.read(ctx), func(row scanner) (enroll.Use, error) {
		u := enroll.Use{Token: id, Key: key}
		var at int64
		err := row.Scan(&at, &u.Subject)
		u.At = fromMilli(at)
		return u, err
	}, `SELECT at, subject FROM join_token_uses WHERE token_id = $1 AND key_id = $2`, id, key.String())
	return u, translate("read use of join token", err, enroll.ErrNotFound, nil)
}

// AddTokenUse stores a use and counts it.
func (s *Store) AddTokenUse(ctx context.Context, u enroll.Use) error {
	err := s.write(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, `INSERT INTO join_token_uses (token_id, key_id, at, subject) VALUES ($1, $2, $3, $4)`,
			u.Token, u.Key.String(), unixMilli(u.At), u.Subject)
		if err != nil {
			return err
		}
		err = tx.execOne(ctx, `UPDATE join_tokens SET uses = uses + 1, last_used = $1 WHERE id = $2`, unixMilli(u.At), u.Token)
		if err != nil {
			return err
		}
		return tx.changed(ctx, enroll.Topic, string(u.Token))
	})
	return translate("count use of join token", err, enroll.ErrNotFound, nil)
}
