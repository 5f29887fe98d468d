package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/postern-zt/postern/broker/audit"
)

const (
	// metaRestore is set while a restored database has not been recovered: nobody may sign in.
	metaRestore = "restore_pending"
	// metaRestoreHeads holds the ends of the audit chains in the backup.
	metaRestoreHeads = "restore_heads"
)

// schemaTable is goose's own table; a dump carries its number and not its rows.
const schemaTable = "schema_version"

// DumpHead describes a dump.
type DumpHead struct {
	Engine  string   `json:"engine"`
	Schema  int64    `json:"schema"`
	Program string   `json:"program"`
	Version Version  `json:"version"`
	Tables  []string `json:"tables"` // referred-to tables before those that refer to them
}

// DumpItem is a table with its columns (Row is nil), or one row of the last table.
type DumpItem struct {
	Table   string
	Columns []string
	Row     []any // string, int64, bool, []byte or nil
}

// Dump gives all rows of all tables as they are at one moment, while writers go on. The form
// is the same for both engines, so a dump of one can be loaded into the other.
func (s *Store) Dump(ctx context.Context, head func(DumpHead) error, item func(DumpItem) error) error {
	tx, err := s.engine.beginSnapshot(ctx, s.reader)
	if err != nil {
		return fmt.Errorf("dump: %w", s.mapError(err))
	}
	defer func() { _ = tx.Rollback() }() // it wrote nothing
	d := dumper{q: &Tx{store: s, sql: tx}, engine: s.engine, item: item}
	h, err := d.head(ctx)
	if err != nil {
		return fmt.Errorf("dump: %w", err)
	}
	if err := head(h); err != nil {
		return err
	}
	for _, table := range h.Tables {
		if err := d.table(ctx, table); err != nil {
			return fmt.Errorf("dump %s: %w", table, err)
		}
	}
	return nil
}

// dumper reads inside one snapshot.
type dumper struct {
	q      *Tx
	engine engine
	item   func(DumpItem) error
}

func (d dumper) head(ctx context.Context) (h DumpHead, err error) {
	ctx = d.q.Context(ctx)
	h.Engine = d.engine.name()
	if h.Version, err = d.q.store.Version(ctx); err != nil {
		return h, err
	}
	if h.Program, err = d.q.store.Meta(ctx, metaProgram); err != nil {
		return h, err
	}
	if h.Schema, err = scanRow(ctx, d.q, scanOne[int64], `SELECT MAX(version_id) FROM `+schemaTable); err != nil {
		return h, err
	}
	h.Tables, err = d.tables(ctx)
	return h, err
}

// tables returns all tables, referred-to ones first.
func (d dumper) tables(ctx context.Context) ([]string, error) {
	names, err := scanRows(ctx, d.q, scanOne[string], d.engine.tablesQuery())
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return n == schemaTable })
	refs := make(map[string][]string)
	for _, n := range names {
		if refs[n], err = scanRows(ctx, d.q, scanOne[string], d.engine.referencesQuery(), n); err != nil {
			return nil, err
		}
	}
	return sortByReference(names, refs)
}

// sortByReference puts each table after the ones that it refers to.
func sortByReference(names []string, refs map[string][]string) ([]string, error) {
	var sorted []string
	for len(sorted) < len(names) {
		before := len(sorted)
		for _, n := range names {
			ready := !slices.Contains(sorted, n) && !slices.ContainsFunc(refs[n], func(r string) bool {
				return r != n && !slices.Contains(sorted, r)
			})
			if ready {
				sorted = append(sorted, n)
			}
		}
		if len(sorted) == before {
			return nil, errors.New("tables refer to each other in a circle")
		}
	}
	return sorted, nil
}

// table gives one table. The names come from the database's own catalog.
func (d dumper) table(ctx context.Context, table string) error {
	rows, err := d.q.QueryContext(ctx, `SELECT * FROM `+quote(table))
	if err != nil {
		return d.q.mapError(err)
	}
	defer func() { _ = rows.Close() }() // its error is in rows.Err
	columns, err := rows.Columns()
	if err != nil {
		return d.q.mapError(err)
	}
	if err := d.item(DumpItem{Table: table, Columns: columns}); err != nil {
		return err
	}
	for rows.Next() {
		values, err := scanAny(rows, len(columns))
		if err != nil {
			return d.q.mapError(err)
		}
		if err := d.item(DumpItem{Table: table, Row: values}); err != nil {
			return err
		}
	}
	return d.q.mapError(rows.Err())
}

func scanAny(rows *sql.Rows, n int) ([]any, error) {
	values, dest := make([]any, n), make([]any, n)
	for i := range values {
		dest[i] = &values[i]
	}
	return values, rows.Scan(dest...)
}

func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// Load writes a dump into the database of cfg, which must be empty, opens a new restore
// epoch and marks the database as restored (RestorePending). It applies the migrations up to
// the dump's schema before the rows and the others after them. When it fails, the database
// holds no rows of the dump.
func Load(ctx context.Context, cfg Config, head DumpHead, items iter.Seq2[DumpItem, error]) error {
	s, err := connect(ctx, cfg)
	if err != nil {
		return err
	}
	if err := s.load(ctx, head, items); err != nil {
		return errors.Join(fmt.Errorf("load dump: %w", s.mapError(err)), s.Close())
	}
	return s.Close()
}

func (s *Store) load(ctx context.Context, head DumpHead, items iter.Seq2[DumpItem, error]) error {
	provider, err := s.provider()
	if err != nil {
		return err
	}
	have, want, err := provider.GetVersions(ctx)
	switch {
	case err != nil:
		return err
	case have != 0:
		return fmt.Errorf("%w: the database is not empty: restore into a new one", ErrConflict)
	case head.Schema > want:
		return fmt.Errorf("%w: the backup has schema %d, written by version %s; this program is version %s and knows schema %d",
			ErrNewerSchema, head.Schema, head.Program, s.programVersion(), want)
	}
	if _, err := provider.UpTo(ctx, head.Schema); err != nil {
		return err
	}
	if err := s.write(ctx, func(tx *Tx) error { return s.loadRows(ctx, tx, head, items) }); err != nil {
		return err
	}
	if _, err := provider.Up(ctx); err != nil {
		return err
	}
	return s.SetMeta(ctx, metaProgram, s.programVersion())
}

// loadRows replaces what the migrations put into the tables.
func (s *Store) loadRows(ctx context.Context, tx *Tx, head DumpHead, items iter.Seq2[DumpItem, error]) error {
	for _, table := range slices.Backward(head.Tables) {
		if _, err := tx.exec(ctx, `DELETE FROM `+quote(table)); err != nil {
			return err
		}
	}
	l := loader{tx: tx, tables: head.Tables}
	defer l.close()
	for item, err := range items {
		if err != nil {
			return err
		}
		if err := l.item(ctx, item); err != nil {
			return fmt.Errorf("table %s: %w", l.table, err)
		}
	}
	ctx = tx.Context(ctx)
	if _, err := s.NewEpoch(ctx); err != nil {
		return err
	}
	heads, err := s.AuditHeads(ctx)
	if err != nil {
		return err
	}
	text, err := json.Marshal(heads)
	if err != nil {
		return err
	}
	return errors.Join(s.SetMeta(ctx, metaRestoreHeads, string(text)), s.SetMeta(ctx, metaRestore, "true"))
}

// loader inserts the rows of one table after the other.
type loader struct {
	tx     *Tx
	tables []string
	table  string
	bools  []bool // columns that are BOOLEAN here, whatever they were in the dump
	insert *sql.Stmt
}

func (l *loader) close() {
	if l.insert != nil {
		_ = l.insert.Close() // nothing depends on it
	}
}

func (l *loader) item(ctx context.Context, item DumpItem) error {
	if item.Row == nil {
		return l.begin(ctx, item)
	}
	if l.insert == nil || len(item.Row) != len(l.bools) {
		return errors.New("a row does not fit its table")
	}
	for i, v := range item.Row {
		if n, ok := v.(int64); ok && l.bools[i] {
			item.Row[i] = n != 0
		}
	}
	_, err := l.insert.ExecContext(ctx, item.Row...)
	return l.tx.mapError(err)
}

// begin prepares for a table; only the names in the head are accepted.
func (l *loader) begin(ctx context.Context, item DumpItem) error {
	l.close()
	l.table, l.insert = item.Table, nil
	if !slices.Contains(l.tables, item.Table) || len(item.Columns) == 0 {
		return errors.New("unknown table")
	}
	var err error
	if l.bools, err = l.booleans(ctx, item); err != nil {
		return err
	}
	names, marks := make([]string, len(item.Columns)), make([]string, len(item.Columns))
	for i, c := range item.Columns {
		names[i], marks[i] = quote(c), fmt.Sprintf("$%d", i+1)
	}
	l.insert, err = l.tx.sql.PrepareContext(ctx, `INSERT INTO `+quote(item.Table)+
		` (`+strings.Join(names, ", ")+`) VALUES (`+strings.Join(marks, ", ")+`)`)
	return l.tx.mapError(err)
}

// booleans asks the database for the types of the columns.
func (l *loader) booleans(ctx context.Context, item DumpItem) ([]bool, error) {
	names := make([]string, len(item.Columns))
	for i, c := range item.Columns {
		names[i] = quote(c)
	}
	rows, err := l.tx.QueryContext(ctx, `SELECT `+strings.Join(names, ", ")+` FROM `+quote(item.Table)+` WHERE 1 = 0`)
	if err != nil {
		return nil, l.tx.mapError(err)
	}
	defer func() { _ = rows.Close() }() // it has no rows
	types, err := rows.ColumnTypes()
	if err != nil {
		return nil, err
	}
	bools := make([]bool, len(types))
	for i, t := range types {
		bools[i] = strings.HasPrefix(strings.ToUpper(t.DatabaseTypeName()), "BOOL")
	}
	return bools, rows.Err()
}

// RestorePending reports whether the database was restored and nobody has been signed out
// yet: the broker must run the recovery before it serves anyone.
func (s *Store) RestorePending(ctx context.Context) (bool, error) {
	v, err := s.Meta(ctx, metaRestore)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return v == "true", err
}

// RestoreHeads returns the ends of the audit chains as the last restored backup had them.
func (s *Store) RestoreHeads(ctx context.Context) ([]audit.Head, error) {
	text, err := s.Meta(ctx, metaRestoreHeads)
	if err != nil {
		return nil, err
	}
	var heads []audit.Head
	if err := json.Unmarshal([]byte(text), &heads); err != nil {
		return nil, fmt.Errorf("read %s: %w", metaRestoreHeads, err)
	}
	return heads, nil
}

// RestoreDone ends the state of RestorePending.
func (s *Store) RestoreDone(ctx context.Context) error {
	return s.SetMeta(ctx, metaRestore, "false")
}
