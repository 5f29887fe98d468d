package backup

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"
	"unicode/utf8"

	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/broker/store"
)

// maxLine bounds one row; the largest are policy revisions and decision inputs.
const maxLine = 32 << 20

// Manifest is the first line of the content.
type Manifest struct {
	Format  int            `json:"format"`
	Created time.Time      `json:"created"`
	KEKID   string         `json:"kek_id"`
	KEK     []byte         `json:"kek,omitempty"` // content of the key file, when the backup holds it
	Heads   []audit.Head   `json:"audit_heads"`
	Dump    store.DumpHead `json:"dump"`
}

const manifestFormat = 1

// line is one line of the content; one field is set.
type line struct {
	Manifest *Manifest `json:"manifest,omitempty"`
	Table    *table    `json:"table,omitempty"`
	Row      []cell    `json:"row,omitempty"`
	End      *end      `json:"end,omitempty"`
}

type table struct {
	Name    string   `json:"name"`
	Columns []string `json:"columns"`
}

type end struct {
	Rows uint64 `json:"rows"`
}

// cell is one value; the zero cell is NULL. Text that is no UTF-8 goes as bytes of kind text.
type cell struct {
	S *string `json:"s,omitempty"`
	I *int64  `json:"i,omitempty"`
	B *bool   `json:"b,omitempty"`
	X *string `json:"x,omitempty"` // bytes in base64
	T *string `json:"t,omitempty"` // text in base64
}

func cellOf(v any) (cell, error) {
	switch v := v.(type) {
	case nil:
		return cell{}, nil
	case string:
		if !utf8.ValidString(v) {
			b := base64.StdEncoding.EncodeToString([]byte(v))
			return cell{T: &b}, nil
		}
		return cell{S: &v}, nil
	case int64:
		return cell{I: &v}, nil
	case bool:
		return cell{B: &v}, nil
	case []byte:
		b := base64.StdEncoding.EncodeToString(v)
		return cell{X: &b}, nil
	default:
		return cell{}, fmt.Errorf("a column of type %T cannot be backed up", v)
	}
}

func (c cell) value() (any, error) {
	switch {
	case c.S != nil:
		return *c.S, nil
	case c.I != nil:
		return *c.I, nil
	case c.B != nil:
		return *c.B, nil
	case c.X != nil:
		return base64.StdEncoding.DecodeString(*c.X)
	case c.T != nil:
		b, err := base64.StdEncoding.DecodeString(*c.T)
		return string(b), err
	default:
		return nil, nil
	}
}

// contentWriter writes lines.
type contentWriter struct {
	enc  *json.Encoder
	rows uint64
}

func newContentWriter(w io.Writer) *contentWriter {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return &contentWriter{enc: enc}
}

func (c *contentWriter) item(i store.DumpItem) error {
	if i.Row == nil {
		return c.enc.Encode(line{Table: &table{Name: i.Table, Columns: i.Columns}})
	}
	row := make([]cell, len(i.Row))
	for k, v := range i.Row {
		var err error
		if row[k], err = cellOf(v); err != nil {
			return err
		}
	}
	c.rows++
	return c.enc.Encode(line{Row: row})
}

// contentReader reads lines.
type contentReader struct {
	in *bufio.Scanner
}

func newContentReader(r io.Reader) *contentReader {
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 0, chunkLen), maxLine)
	return &contentReader{in: in}
}

func (c *contentReader) next() (line, error) {
	if !c.in.Scan() {
		if err := c.in.Err(); err != nil {
			return line{}, err
		}
		return line{}, fmt.Errorf("%w: it ends early", ErrDamaged)
	}
	var l line
	dec := json.NewDecoder(bytes.NewReader(c.in.Bytes()))
	if err := dec.Decode(&l); err != nil {
		return line{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return l, nil
}

func (c *contentReader) manifest() (Manifest, error) {
	l, err := c.next()
	if err != nil {
		return Manifest{}, err
	}
	if l.Manifest == nil || l.Manifest.Format != manifestFormat {
		return Manifest{}, fmt.Errorf("%w: its content has a format that this program does not know", ErrNotBackup)
	}
	return *l.Manifest, nil
}

// items yields tables and rows up to the end, which must be there and count right.
func (c *contentReader) items() iter.Seq2[store.DumpItem, error] {
	return func(yield func(store.DumpItem, error) bool) {
		var rows uint64
		for {
			l, err := c.next()
			if err == nil && l.End != nil {
				if l.End.Rows != rows || c.in.Scan() {
					yield(store.DumpItem{}, fmt.Errorf("%w: rows are missing", ErrDamaged))
				}
				return
			}
			item, err := l.dumpItem(err)
			if item.Row != nil {
				rows++
			}
			if !yield(item, err) || err != nil {
				return
			}
		}
	}
}

func (l line) dumpItem(err error) (store.DumpItem, error) {
	switch {
	case err != nil:
		return store.DumpItem{}, err
	case l.Table != nil:
		return store.DumpItem{Table: l.Table.Name, Columns: l.Table.Columns}, nil
	case l.Row == nil:
		return store.DumpItem{}, errors.Join(ErrDamaged, errors.New("unknown line"))
	}
	row := make([]any, len(l.Row))
	for i, c := range l.Row {
		if row[i], err = c.value(); err != nil {
			return store.DumpItem{}, errors.Join(ErrDamaged, err)
		}
	}
	return store.DumpItem{Row: row}, nil
}
