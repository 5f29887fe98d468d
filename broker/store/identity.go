package store

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/postern-zt/postern/broker/identity"
	"github.com/postern-zt/postern/proto/ids"
)

var _ identity.Store = (*Store)(nil)

const (
	recordColumns = `kind, key, alt, user_id, family, data, expires_at`
	issuerColumns = `id, name, url, client_id, sealed_secret, scopes, claims, created_at`
)

// identityError puts the sentinel of the identity package beside ours.
func identityError(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrNotFound):
		return fmt.Errorf("%s: %w: %w", what, identity.ErrNotFound, err)
	case errors.Is(err, ErrConflict):
		return fmt.Errorf("%s: %w: %w", what, identity.ErrExists, err)
	default:
		return fmt.Errorf("%s: %w", what, err)
	}
}

// PutRecord adds a record or replaces the one with its kind and key.
func (s *Store) PutRecord(ctx context.Context, r identity.Record) error {
	err := s.write(ctx, func(tx *Tx) error {
		if _, err := tx.exec(ctx, `DELETE FROM identity_records WHERE kind = $1 AND key = $2`, r.Kind, r.Key); err != nil {
			return err
		}
		return tx.insertRecord(ctx, r)
	})
	return identityError("write identity record", err)
}

// AddRecord adds a record.
func (s *Store) AddRecord(ctx context.Context, r identity.Record) error {
	return identityError("add identity record", s.write(ctx, func(tx *Tx) error { return tx.insertRecord(ctx, r) }))
}

func (tx *Tx) insertRecord(ctx context.Context, r identity.Record) error {
	_, err := tx.exec(ctx, `INSERT INTO identity_records (`+recordColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
		r.Kind, r.Key, orNull(r.Alt), r.User, r.Family, string(r.Data), unixMilli(r.Expires))
	return err
}

// Record returns one record.
func (s *Store) Record(ctx context.Context, kind identity.Kind, key string) (identity.Record, error) {
	r, err := readRecord(ctx, s.read(ctx), kind, key)
	return r, identityError("read identity record", err)
}

func readRecord(ctx context.Context, q queryer, kind identity.Kind, key string) (identity.Record, error) {
	return scanRow(ctx, q, scanRecord, `SELECT `+recordColumns+` FROM identity_records WHERE kind = $1 AND key = $2`, kind, key)
}

// RecordByAlt returns the record with this second key.
func (s *Store) RecordByAlt(ctx context.Context, kind identity.Kind, alt string) (identity.Record, error) {
	r, err := scanRow(ctx, s.read(ctx), scanRecord,
		`SELECT `+recordColumns+` FROM identity_records WHERE kind = $1 AND alt = $2`, kind, alt)
	return r, identityError("read identity record", err)
}

// TakeRecord returns a record and removes it.
func (s *Store) TakeRecord(ctx context.Context, kind identity.Kind, key string) (identity.Record, error) {
	var r identity.Record
	err := s.write(ctx, func(tx *Tx) (err error) {
		r, err = scanRow(ctx, tx, scanRecord,
			`DELETE FROM identity_records WHERE kind = $1 AND key = $2 RETURNING `+recordColumns, kind, key)
		return err
	})
	if err != nil {
		return identity.Record{}, identityError("take identity record", err)
	}
	return r, nil
}

// ChangeRecord edits a record in one transaction; change may run more than once.
func (s *Store) ChangeRecord(ctx context.Context, kind identity.Kind, key string, change func(*identity.Record) error) (identity.Record, error) {
	var r identity.Record
	err := s.write(ctx, func(tx *Tx) (err error) {
		if r, err = readRecord(ctx, tx, kind, key); err != nil {
			return err
		}
		if err := change(&r); err != nil {
			return err
		}
		return tx.execOne(ctx, `UPDATE identity_records SET alt = $1, user_id = $2, family = $3, data = $4, expires_at = $5
			WHERE kind = $6 AND key = $7`,
			orNull(r.Alt), r.User, r.Family, string(r.Data), unixMilli(r.Expires), kind, key)
	})
	if err != nil {
		return identity.Record{}, identityError("change identity record", err)
	}
	return r, nil
}

// DeleteRecords removes the records that a filter selects; an empty filter is refused.
func (s *Store) DeleteRecords(ctx context.Context, f identity.Filter) error {
	if f == (identity.Filter{}) {
		return errors.New("delete identity records: the filter is empty")
	}
	err := s.write(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, `DELETE FROM identity_records
			WHERE ($1 = '' OR kind = $1) AND ($2 = '' OR user_id = $2) AND ($3 = '' OR family = $3)`,
			string(f.Kind), string(f.User), f.Family)
		return err
	})
	return identityError("delete identity records", err)
}

// CountRecords returns how many records a kind has.
func (s *Store) CountRecords(ctx context.Context, kind identity.Kind) (int, error) {
	n, err := scanRow(ctx, s.read(ctx), scanOne[int], `SELECT COUNT(1) FROM identity_records WHERE kind = $1`, kind)
	return n, identityError("count identity records", err)
}

// DeleteExpired removes records that ended before now.
func (s *Store) DeleteExpired(ctx context.Context, now time.Time) error {
	err := s.write(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, `DELETE FROM identity_records WHERE expires_at > 0 AND expires_at < $1`, unixMilli(now))
		return err
	})
	return identityError("delete expired identity records", err)
}

func scanRecord(row scanner) (identity.Record, error) {
	var r identity.Record
	var alt *string
	var data string
	var expires int64
	err := row.Scan(&r.Kind, &r.Key, &alt, &r.User, &r.Family, &data, &expires)
	if alt != nil {
		r.Alt = *alt
	}
	r.Data, r.Expires = json.RawMessage(data), fromMilli(expires)
	return r, err
}

// orNull keeps an absent second key out of its unique index.
func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// PutIssuer adds or replaces an external issuer.
func (s *Store) PutIssuer(ctx context.Context, i identity.StoredIssuer) error {
	scopes, err := json.Marshal(i.Scopes)
	if err != nil {
		return err
	}
	claims, err := json.Marshal(i.Claims)
	if err != nil {
		return err
	}
	err = s.write(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, `INSERT INTO identity_issuers (`+issuerColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
			ON CONFLICT (id) DO UPDATE SET name = excluded.name, url = excluded.url, client_id = excluded.client_id,
				sealed_secret = excluded.sealed_secret, scopes = excluded.scopes, claims = excluded.claims`,
			i.ID, i.Name, i.URL, i.ClientID, base64.StdEncoding.EncodeToString(i.SealedSecret), string(scopes), string(claims), unixMilli(i.CreatedAt))
		if err != nil {
			return err
		}
		return tx.issuerChanged(ctx, i.ID)
	})
	return identityError("write issuer", err)
}

func (tx *Tx) issuerChanged(ctx context.Context, id ids.IssuerID) error {
	_, err := tx.Change(ctx, identity.TopicIssuer, string(id))
	return err
}

// Issuer returns one external issuer.
func (s *Store) Issuer(ctx context.Context, id ids.IssuerID) (identity.StoredIssuer, error) {
	i, err := scanRow(ctx, s.read(ctx), scanIssuer, `SELECT `+issuerColumns+` FROM identity_issuers WHERE id = $1`, id)
	return i, identityError("read issuer", err)
}

// Issuers returns all external issuers, by id.
func (s *Store) Issuers(ctx context.Context) ([]identity.StoredIssuer, error) {
	list, err := scanRows(ctx, s.read(ctx), scanIssuer, `SELECT `+issuerColumns+` FROM identity_issuers ORDER BY id`)
	return list, identityError("list issuers", err)
}

// DeleteIssuer removes an external issuer.
func (s *Store) DeleteIssuer(ctx context.Context, id ids.IssuerID) error {
	err := s.write(ctx, func(tx *Tx) error {
		if err := tx.execOne(ctx, `DELETE FROM identity_issuers WHERE id = $1`, id); err != nil {
			return err
		}
		return tx.issuerChanged(ctx, id)
	})
	return identityError("delete issuer", err)
}

func scanIssuer(row scanner) (identity.StoredIssuer, error) {
	var i identity.StoredIssuer
	var sealed, scopes, claims string
	var created int64
	if err := row.Scan(&i.ID, &i.Name, &i.URL, &i.ClientID, &sealed, &scopes, &claims, &created); err != nil {
		return identity.StoredIssuer{}, err
	}
	i.CreatedAt = fromMilli(created)
	var err error
	if i.SealedSecret, err = base64.StdEncoding.DecodeString(sealed); err != nil {
		return identity.StoredIssuer{}, fmt.Errorf("secret of issuer %s is damaged", i.ID)
	}
	return i, errors.Join(json.Unmarshal([]byte(scopes), &i.Scopes), json.Unmarshal([]byte(claims), &i.Claims))
}
