package store

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/proto/ids"
)

var _ audit.Store = (*Store)(nil)

const auditColumns = `writer, seq, at, kind, user_id, device, session, app, receipt, line, hash`

// InTransaction reports whether ctx is joined to a transaction of this store.
func (s *Store) InTransaction(ctx context.Context) bool { return s.joined(ctx) != nil }

// AppendAudit calls build with the head of writer and appends the rows that it returns.
func (s *Store) AppendAudit(ctx context.Context, writer string, build func(context.Context, audit.Head) ([]audit.Row, error)) error {
	return s.write(ctx, func(tx *Tx) error {
		ctx := tx.Context(ctx)
		head, err := s.AuditHead(ctx, writer)
		if err != nil {
			return err
		}
		rows, err := build(ctx, head)
		if err != nil || len(rows) == 0 {
			return err
		}
		for _, r := range rows {
			if err := tx.addAuditRow(ctx, r); err != nil {
				return err
			}
		}
		last := rows[len(rows)-1]
		return tx.setAuditHead(ctx, audit.Head{Writer: writer, Seq: last.Seq, Hash: last.Hash})
	})
}

func (tx *Tx) addAuditRow(ctx context.Context, r audit.Row) error {
	_, err := tx.exec(ctx, `INSERT INTO audit_records (`+auditColumns+`)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
		r.Writer, r.Seq, unixMilli(r.At), r.Kind, r.User, r.Device, r.Session, r.App, r.Receipt, string(r.Line), r.Hash.String())
	if err != nil {
		return fmt.Errorf("write audit record %s %d: %w", r.Writer, r.Seq, err)
	}
	return nil
}

func (tx *Tx) setAuditHead(ctx context.Context, h audit.Head) error {
	_, err := tx.exec(ctx, `INSERT INTO audit_heads (writer, seq, hash) VALUES ($1, $2, $3)
		ON CONFLICT (writer) DO UPDATE SET seq = excluded.seq, hash = excluded.hash`, h.Writer, h.Seq, h.Hash.String())
	if err != nil {
		return fmt.Errorf("write audit head of %s: %w", h.Writer, err)
	}
	return nil
}

// AuditHeads returns the head of each writer.
func (s *Store) AuditHeads(ctx context.Context) ([]audit.Head, error) {
	list, err := scanRows(ctx, s.read(ctx), scanHead, `SELECT writer, seq, hash FROM audit_heads ORDER BY writer`)
	if err != nil {
		return nil, fmt.Errorf("list audit heads: %w", err)
	}
	return list, nil
}

// AuditHead returns the head of one writer, with Seq 0 when it wrote nothing.
func (s *Store) AuditHead(ctx context.Context, writer string) (audit.Head, error) {
	h, err := scanRow(ctx, s.read(ctx), scanHead, `SELECT writer, seq, hash FROM audit_heads WHERE writer = $1`, writer)
	if errors.Is(err, ErrNotFound) {
		return audit.Head{Writer: writer}, nil
	}
	if err != nil {
		return audit.Head{}, fmt.Errorf("read audit head of %s: %w", writer, err)
	}
	return h, nil
}

func scanHead(row scanner) (h audit.Head, err error) {
	var hash string
	if err := row.Scan(&h.Writer, &h.Seq, &hash); err != nil {
		return audit.Head{}, err
	}
	return h, h.Hash.UnmarshalText([]byte(hash))
}

// AuditRows returns up to limit rows of writer with a number above after, in order.
func (s *Store) AuditRows(ctx context.Context, writer string, after uint64, limit int) ([]audit.Row, error) {
	list, err := scanRows(ctx, s.read(ctx), scanAuditRow,
		`SELECT `+auditColumns+` FROM audit_records WHERE writer = $1 AND seq > $2 ORDER BY seq LIMIT $3`, writer, after, limit)
	if err != nil {
		return nil, fmt.Errorf("read audit of %s: %w", writer, err)
	}
	return list, nil
}

func scanAuditRow(row scanner) (r audit.Row, err error) {
	var at int64
	var line, hash string
	err = row.Scan(&r.Writer, &r.Seq, &at, &r.Kind, &r.User, &r.Device, &r.Session, &r.App, &r.Receipt, &line, &hash)
	if err != nil {
		return audit.Row{}, err
	}
	r.At, r.Line = fromMilli(at), []byte(line)
	return r, r.Hash.UnmarshalText([]byte(hash))
}

// conditions collects the terms of a WHERE clause with their arguments.
type conditions struct {
	terms []string
	args  []any
}

// add appends a term in which each ? stands for the next argument.
func (c *conditions) add(term string, args ...any) {
	for _, a := range args {
		c.args = append(c.args, a)
		term = strings.Replace(term, "?", fmt.Sprintf("$%d", len(c.args)), 1)
	}
	c.terms = append(c.terms, term)
}

// equal adds column = value unless the value is empty.
func (c *conditions) equal(column, value string) {
	if value != "" {
		c.add(column+` = ?`, value)
	}
}

func (c *conditions) where() string {
	if len(c.terms) == 0 {
		return ""
	}
	return ` WHERE ` + strings.Join(c.terms, ` AND `)
}

// SearchAudit returns the rows that match q, newest first.
func (s *Store) SearchAudit(ctx context.Context, q audit.Query) ([]audit.Row, error) {
	c := auditConditions(q)
	query := `SELECT ` + auditColumns + ` FROM audit_records` + c.where() +
		fmt.Sprintf(` ORDER BY at DESC, writer DESC, seq DESC LIMIT $%d`, len(c.args)+1)
	list, err := scanRows(ctx, s.read(ctx), scanAuditRow, query, append(c.args, q.Limit)...)
	if err != nil {
		return nil, fmt.Errorf("search audit: %w", err)
	}
	return list, nil
}

func auditConditions(q audit.Query) *conditions {
	c := &conditions{}
	c.equal(`writer`, q.Writer)
	c.equal(`kind`, string(q.Kind))
	c.equal(`user_id`, string(q.User))
	c.equal(`device`, string(q.Device))
	c.equal(`session`, string(q.Session))
	c.equal(`app`, string(q.App))
	c.equal(`receipt`, string(q.Receipt))
	if !q.From.IsZero() {
		c.add(`at >= ?`, unixMilli(q.From))
	}
	if !q.To.IsZero() {
		c.add(`at < ?`, unixMilli(q.To))
	}
	if q.Before.Writer != "" {
		c.add(`(at, writer, seq) < (?, ?, ?)`, unixMilli(q.Before.At), q.Before.Writer, q.Before.Seq)
	}
	return c
}

const segmentColumns = `writer, first_seq, last_seq, head, signed, dropped, signed_at`

// AuditSegments returns all segments of writer, in order.
func (s *Store) AuditSegments(ctx context.Context, writer string) ([]audit.Segment, error) {
	list, err := scanRows(ctx, s.read(ctx), scanSegment,
		`SELECT `+segmentColumns+` FROM audit_segments WHERE writer = $1 ORDER BY first_seq`, writer)
	if err != nil {
		return nil, fmt.Errorf("list audit segments of %s: %w", writer, err)
	}
	return list, nil
}

// LastAuditSegment returns the last segment of writer, zero when there is none.
func (s *Store) LastAuditSegment(ctx context.Context, writer string) (audit.Segment, error) {
	seg, err := scanRow(ctx, s.read(ctx), scanSegment,
		`SELECT `+segmentColumns+` FROM audit_segments WHERE writer = $1 ORDER BY first_seq DESC LIMIT 1`, writer)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return audit.Segment{}, fmt.Errorf("read last audit segment of %s: %w", writer, err)
	}
	return seg, nil
}

func scanSegment(row scanner) (g audit.Segment, err error) {
	var at int64
	var head, signed string
	if err := row.Scan(&g.Writer, &g.First, &g.Last, &head, &signed, &g.Dropped, &at); err != nil {
		return audit.Segment{}, err
	}
	g.At = fromMilli(at)
	if g.Signed, err = base64.StdEncoding.DecodeString(signed); err != nil {
		return audit.Segment{}, err
	}
	return g, g.Head.UnmarshalText([]byte(head))
}

// AddAuditSegment stores a segment unless one begins at the same record.
func (s *Store) AddAuditSegment(ctx context.Context, g audit.Segment) error {
	return s.write(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, `INSERT INTO audit_segments (`+segmentColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7)
			ON CONFLICT (writer, first_seq) DO NOTHING`, g.Writer, g.First, g.Last, g.Head.String(),
			base64.StdEncoding.EncodeToString(g.Signed), g.Dropped, unixMilli(g.At))
		if err != nil {
			return fmt.Errorf("write audit segment of %s: %w", g.Writer, err)
		}
		return nil
	})
}

const connectorHeadColumns = `writer, first_seq, last_seq, signed, received_at`

// ConnectorHeads returns up to limit signed heads of writer that end after record after, in
// order.
func (s *Store) ConnectorHeads(ctx context.Context, writer string, after uint64, limit int) ([]audit.ConnectorHead, error) {
	list, err := scanRows(ctx, s.read(ctx), scanConnectorHead, `SELECT `+connectorHeadColumns+` FROM audit_connector_heads
		WHERE writer = $1 AND last_seq > $2 ORDER BY last_seq LIMIT $3`, writer, after, limit)
	if err != nil {
		return nil, fmt.Errorf("list signed heads of %s: %w", writer, err)
	}
	return list, nil
}

func scanConnectorHead(row scanner) (h audit.ConnectorHead, err error) {
	var at int64
	var signed string
	if err := row.Scan(&h.Writer, &h.First, &h.Last, &signed, &at); err != nil {
		return audit.ConnectorHead{}, err
	}
	h.At = fromMilli(at)
	h.Signed, err = base64.StdEncoding.DecodeString(signed)
	return h, err
}

// AddConnectorHead stores a signed head unless one ends at the same record.
func (s *Store) AddConnectorHead(ctx context.Context, h audit.ConnectorHead) error {
	return s.write(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, `INSERT INTO audit_connector_heads (`+connectorHeadColumns+`) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (writer, last_seq) DO NOTHING`, h.Writer, h.First, h.Last,
			base64.StdEncoding.EncodeToString(h.Signed), unixMilli(h.At))
		if err != nil {
			return fmt.Errorf("write signed head of %s: %w", h.Writer, err)
		}
		return nil
	})
}

// DropAudit deletes the rows of writer up to through and marks their segments. Of the signed
// heads the one that ends at through stays: the hash at its end is still known.
func (s *Store) DropAudit(ctx context.Context, writer string, through uint64) (rows int64, err error) {
	err = s.write(ctx, func(tx *Tx) error {
		rows, err = tx.exec(ctx, `DELETE FROM audit_records WHERE writer = $1 AND seq <= $2`, writer, through)
		if err != nil {
			return err
		}
		if _, err = tx.exec(ctx, `DELETE FROM audit_connector_heads WHERE writer = $1 AND last_seq < $2`, writer, through); err != nil {
			return err
		}
		_, err = tx.exec(ctx, `UPDATE audit_segments SET dropped = TRUE WHERE writer = $1 AND last_seq <= $2`, writer, through)
		return err
	})
	return rows, err
}

const personColumns = `id, user_id, sealed, created_at`

// PersonKey returns the newest key for user, zero when there is none.
func (s *Store) PersonKey(ctx context.Context, user ids.UserID) (audit.PersonKey, error) {
	return s.personKey(ctx, `SELECT `+personColumns+` FROM audit_person_keys WHERE user_id = $1 ORDER BY created_at DESC, id LIMIT 1`, string(user))
}

// PersonKeyByID returns one key, zero when there is none.
func (s *Store) PersonKeyByID(ctx context.Context, id string) (audit.PersonKey, error) {
	return s.personKey(ctx, `SELECT `+personColumns+` FROM audit_person_keys WHERE id = $1`, id)
}

func (s *Store) personKey(ctx context.Context, query, arg string) (audit.PersonKey, error) {
	k, err := scanRow(ctx, s.read(ctx), scanPersonKey, query, arg)
	if errors.Is(err, ErrNotFound) {
		return audit.PersonKey{}, nil
	}
	if err != nil {
		return audit.PersonKey{}, fmt.Errorf("read person key: %w", err)
	}
	return k, nil
}

func scanPersonKey(row scanner) (k audit.PersonKey, err error) {
	var created int64
	err = row.Scan(&k.ID, &k.User, &k.Sealed, &created)
	k.Created = fromMilli(created)
	return k, err
}

// AddPersonKey stores a key.
func (s *Store) AddPersonKey(ctx context.Context, k audit.PersonKey) error {
	return s.write(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, `INSERT INTO audit_person_keys (`+personColumns+`) VALUES ($1, $2, $3, $4)`,
			k.ID, k.User, k.Sealed, unixMilli(k.Created))
		if err != nil {
			return fmt.Errorf("write person key: %w", err)
		}
		return nil
	})
}

// ErasePerson deletes all keys of user. SQLite overwrites them (secure_delete).
func (s *Store) ErasePerson(ctx context.Context, user ids.UserID) error {
	return s.write(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, `DELETE FROM audit_person_keys WHERE user_id = $1`, user)
		if err != nil {
			return fmt.Errorf("erase person keys: %w", err)
		}
		return nil
	})
}
