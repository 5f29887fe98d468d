package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/proto/ids"
)

var _ catalog.Store = (*Store)(nil)

// Atomically runs fn in one writing transaction: methods that get fn's context run inside
// it. fn may run more than once, so it must have no other effects.
func (s *Store) Atomically(ctx context.Context, fn func(ctx context.Context) error) error {
	return s.write(ctx, func(tx *Tx) error { return fn(tx.Context(ctx)) })
}

// translate puts the sentinels of a leaf in front of those of this package, and says what
// was done. A nil sentinel leaves the error as it is.
func translate(what string, err, notFound, conflict error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrNotFound) && notFound != nil:
		return fmt.Errorf("%s: %w: %w", what, notFound, err)
	case errors.Is(err, ErrConflict) && conflict != nil:
		return fmt.Errorf("%s: %w: %w", what, conflict, err)
	default:
		return fmt.Errorf("%s: %w", what, err)
	}
}

// Sites lists all sites by name.
func (s *Store) Sites(ctx context.Context) ([]catalog.Site, error) {
	list, err := scanRows(ctx, s.read(ctx), scanSite, `SELECT id, name FROM sites ORDER BY name`)
	return list, translate("list sites", err, nil, nil)
}

func scanSite(row scanner) (v catalog.Site, err error) {
	return v, row.Scan(&v.ID, &v.Name)
}

// CreateSite stores a new site.
func (s *Store) CreateSite(ctx context.Context, v catalog.Site) error {
	err := s.write(ctx, func(tx *Tx) error {
		if _, err := tx.exec(ctx, `INSERT INTO sites (id, name) VALUES ($1, $2)`, v.ID, v.Name); err != nil {
			return err
		}
		return tx.changed(ctx, catalog.TopicSite, string(v.ID))
	})
	return translate("create site "+v.Name, err, nil, catalog.ErrExists)
}

// changed appends a change event whose sequence nobody needs.
func (tx *Tx) changed(ctx context.Context, topic, key string) error {
	_, err := tx.Change(ctx, topic, key)
	return err
}

// RenameSite stores the name of an existing site.
func (s *Store) RenameSite(ctx context.Context, v catalog.Site) error {
	err := s.write(ctx, func(tx *Tx) error {
		if err := tx.execOne(ctx, `UPDATE sites SET name = $1 WHERE id = $2`, v.Name, v.ID); err != nil {
			return err
		}
		return tx.changed(ctx, catalog.TopicSite, string(v.ID))
	})
	return translate("rename site", err, catalog.ErrNotFound, catalog.ErrExists)
}

// DeleteSite removes a site that no app and no connector belongs to, with its join tokens.
func (s *Store) DeleteSite(ctx context.Context, id ids.SiteID) error {
	err := s.write(ctx, func(tx *Tx) error {
		n, err := scanRow(ctx, tx, scanOne[int64],
			`SELECT COUNT(*) FROM connectors WHERE site_id = $1 AND state <> 'removed'`, id)
		if err != nil {
			return err
		}
		if n > 0 {
			return fmt.Errorf("%d connectors: %w", n, ErrConflict)
		}
		if _, err := tx.exec(ctx, `DELETE FROM join_tokens WHERE site_id = $1`, id); err != nil {
			return err
		}
		if err := tx.execOne(ctx, `DELETE FROM sites WHERE id = $1`, id); err != nil {
			return err
		}
		return tx.changed(ctx, catalog.TopicSite, string(id))
	})
	return translate("delete site", err, catalog.ErrNotFound, catalog.ErrConflict)
}

// Apps lists all apps by name.
func (s *Store) Apps(ctx context.Context) ([]catalog.App, error) {
	list, err := scanRows(ctx, s.read(ctx), scanApp, `SELECT idx, version, body FROM apps ORDER BY name`)
	return list, translate("list apps", err, nil, nil)
}

// App returns one app.
func (s *Store) App(ctx context.Context, id ids.AppID) (catalog.App, error) {
	a, err := scanRow(ctx, s.read(ctx), scanApp, `SELECT idx, version, body FROM apps WHERE id = $1`, id)
	return a, translate("read app", err, catalog.ErrNotFound, nil)
}

func scanApp(row scanner) (catalog.App, error) {
	var a catalog.App
	var index uint32
	var version uint64
	var body string
	if err := row.Scan(&index, &version, &body); err != nil {
		return a, err
	}
	if err := fromJSON(body, &a); err != nil {
		return a, err
	}
	a.Index, a.Version = index, version
	return a, nil
}

// CreateApp stores a new app with the first free index.
func (s *Store) CreateApp(ctx context.Context, a catalog.App, reuseBefore time.Time) (catalog.App, error) {
	err := s.write(ctx, func(tx *Tx) error {
		index, err := tx.takeIndex(ctx, reuseBefore)
		if err != nil {
			return err
		}
		a.Index, a.Version = index, 1
		body, err := toJSON(a)
		if err != nil {
			return err
		}
		_, err = tx.exec(ctx, `INSERT INTO apps (id, idx, name, version, body) VALUES ($1, $2, $3, $4, $5)`,
			a.ID, a.Index, a.Name, a.Version, body)
		if err != nil {
			return err
		}
		if err := tx.putAppParts(ctx, a); err != nil {
			return err
		}
		return tx.changed(ctx, catalog.TopicApp, string(a.ID))
	})
	return a, translate("create app "+a.Name, err, catalog.ErrNotFound, catalog.ErrExists)
}

// takeIndex returns the smallest index that may be given: one that rests long enough, else
// the one behind the highest ever given.
func (tx *Tx) takeIndex(ctx context.Context, reuseBefore time.Time) (uint32, error) {
	rested, err := scanRow(ctx, tx, scanOne[uint32],
		`SELECT COALESCE(MIN(idx), 0) FROM app_indexes WHERE freed_at < $1`, unixMilli(reuseBefore))
	if err != nil {
		return 0, err
	}
	if rested == 0 {
		return scanRow(ctx, tx, scanOne[uint32], `SELECT COALESCE(MAX(idx), 0) + 1 FROM
			(SELECT idx FROM apps UNION ALL SELECT idx FROM app_indexes) AS given`)
	}
	return rested, tx.execOne(ctx, `DELETE FROM app_indexes WHERE idx = $1`, rested)
}

// putAppParts replaces the rows that guard an app's names and sites.
func (tx *Tx) putAppParts(ctx context.Context, a catalog.App) error {
	for _, query := range []string{`DELETE FROM app_names WHERE app_id = $1`, `DELETE FROM app_sites WHERE app_id = $1`} {
		if _, err := tx.exec(ctx, query, a.ID); err != nil {
			return err
		}
	}
	for _, name := range a.ExtraNames {
		if _, err := tx.exec(ctx, `INSERT INTO app_names (name, app_id) VALUES ($1, $2)`, name, a.ID); err != nil {
			return err
		}
	}
	for _, p := range a.Placements {
		if _, err := tx.exec(ctx, `INSERT INTO app_sites (app_id, site_id) VALUES ($1, $2)`, a.ID, p.Site); err != nil {
			return err
		}
	}
	return nil
}

// UpdateApp stores the next version of an app.
func (s *Store) UpdateApp(ctx context.Context, a catalog.App) (catalog.App, error) {
	err := s.write(ctx, func(tx *Tx) error {
		old, err := s.appVersion(tx.Context(ctx), a.ID, a.Version)
		if err != nil {
			return err
		}
		a.Index, a.CreatedAt, a.Version = old.Index, old.CreatedAt, old.Version+1
		return tx.storeApp(ctx, a)
	})
	return a, translate("update app "+a.Name, err, catalog.ErrNotFound, catalog.ErrExists)
}

// appVersion returns an app if the version is its present one.
func (s *Store) appVersion(ctx context.Context, id ids.AppID, version uint64) (catalog.App, error) {
	old, err := s.App(ctx, id)
	if err == nil && old.Version != version {
		return old, fmt.Errorf("%w: version %d, now %d", catalog.ErrConflict, version, old.Version)
	}
	return old, err
}

func (tx *Tx) storeApp(ctx context.Context, a catalog.App) error {
	body, err := toJSON(a)
	if err != nil {
		return err
	}
	err = tx.execOne(ctx, `UPDATE apps SET name = $1, version = $2, body = $3 WHERE id = $4`, a.Name, a.Version, body, a.ID)
	if err != nil {
		return err
	}
	if err := tx.putAppParts(ctx, a); err != nil {
		return err
	}
	return tx.changed(ctx, catalog.TopicApp, string(a.ID))
}

// DeleteApp removes an app; its index begins to rest.
func (s *Store) DeleteApp(ctx context.Context, id ids.AppID, version uint64, now time.Time) error {
	err := s.write(ctx, func(tx *Tx) error {
		old, err := s.appVersion(tx.Context(ctx), id, version)
		if err != nil {
			return err
		}
		if err := tx.execOne(ctx, `DELETE FROM apps WHERE id = $1`, id); err != nil {
			return err
		}
		_, err = tx.exec(ctx, `INSERT INTO app_indexes (idx, freed_at) VALUES ($1, $2)`, old.Index, unixMilli(now))
		if err != nil {
			return err
		}
		return tx.changed(ctx, catalog.TopicApp, string(id))
	})
	return translate("delete app", err, catalog.ErrNotFound, catalog.ErrConflict)
}

// toJSON returns v as the text that is stored.
func toJSON(v any) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("encode for the database: %w", err)
	}
	return string(b), nil
}

// fromJSON reads what toJSON wrote.
func fromJSON(text string, v any) error {
	if err := json.Unmarshal([]byte(text), v); err != nil {
		return fmt.Errorf("decode from the database: %w", err)
	}
	return nil
}
