package backup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/broker/keys"
	"github.com/postern-zt/postern/broker/store"
)

// Source is the store that is backed up; *store.Store is one.
type Source interface {
	Dump(ctx context.Context, head func(store.DumpHead) error, item func(store.DumpItem) error) error
	AuditHeads(ctx context.Context) ([]audit.Head, error)
}

// Create writes a backup of src to w while the broker runs: one moment of the database, and
// the key-encryption key unless kek is nil (then the operator keeps that file by himself;
// without it a restored database has no keys).
func Create(ctx context.Context, src Source, kek *keys.KEK, secret Secret, w io.Writer) (Manifest, error) {
	out, err := newSealer(w, secret)
	if err != nil {
		return Manifest{}, fmt.Errorf("write backup: %w", err)
	}
	buf := bufio.NewWriterSize(out, chunkLen)
	m, err := writeContent(ctx, src, kek, buf)
	if err != nil {
		return Manifest{}, fmt.Errorf("write backup: %w", err)
	}
	if err := errors.Join(buf.Flush(), out.Close()); err != nil {
		return Manifest{}, fmt.Errorf("write backup: %w", err)
	}
	return m, nil
}

func writeContent(ctx context.Context, src Source, kek *keys.KEK, w io.Writer) (Manifest, error) {
	m := Manifest{Format: manifestFormat, Created: time.Now().UTC().Truncate(time.Second)}
	if kek != nil {
		m.KEKID, m.KEK = kek.ID(), kek.Export()
	}
	var err error
	if m.Heads, err = src.AuditHeads(ctx); err != nil {
		return Manifest{}, err
	}
	c := newContentWriter(w)
	err = src.Dump(ctx, func(h store.DumpHead) error {
		m.Dump = h
		return c.enc.Encode(line{Manifest: &m})
	}, c.item)
	if err != nil {
		return Manifest{}, err
	}
	return m, c.enc.Encode(line{End: &end{Rows: c.rows}})
}

// Restore writes a backup into the database of cfg, which must be empty, and opens a new
// restore epoch. The manifest it returns holds the key-encryption key if the backup does.
// When it fails, the database holds nothing of the backup. Afterwards Recover must run: the
// store says so by RestorePending.
func Restore(ctx context.Context, r io.Reader, secret Secret, cfg store.Config) (Manifest, error) {
	in, err := newOpener(r, secret)
	if err != nil {
		return Manifest{}, fmt.Errorf("read backup: %w", err)
	}
	content := newContentReader(in)
	m, err := content.manifest()
	if err != nil {
		return Manifest{}, fmt.Errorf("read backup: %w", err)
	}
	if err := store.Load(ctx, cfg, m.Dump, content.items()); err != nil {
		return Manifest{}, fmt.Errorf("restore: %w", err)
	}
	return m, nil
}

// Check reads a whole backup without restoring it: a backup that was never read is a hope.
func Check(r io.Reader, secret Secret) (Manifest, error) {
	in, err := newOpener(r, secret)
	if err != nil {
		return Manifest{}, fmt.Errorf("read backup: %w", err)
	}
	content := newContentReader(in)
	m, err := content.manifest()
	if err != nil {
		return Manifest{}, fmt.Errorf("read backup: %w", err)
	}
	for _, err := range content.items() {
		if err != nil {
			return Manifest{}, fmt.Errorf("read backup: %w", err)
		}
	}
	return m, nil
}
