package broker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/postern-zt/postern/broker/backup"
	"github.com/postern-zt/postern/platform/paths"
)

// backupKeyFile unlocks the backups that the broker makes by itself; keep a copy elsewhere.
const backupKeyFile = "backup.key"

// Backup writes an encrypted backup into the folder "backups" of the data directory while
// the broker runs. Its key file lies beside the database and is made at the first backup.
func (b *Broker) Backup(ctx context.Context, name string) (path string, size int64, err error) {
	if name == "" || name != filepath.Base(name) || name[0] == '.' {
		return "", 0, errBackupName
	}
	secret, err := b.backupSecret()
	if err != nil {
		return "", 0, err
	}
	dir := filepath.Join(b.cfg.DataDir, "backups")
	if err := paths.PrivateDir(dir); err != nil {
		return "", 0, err
	}
	path = filepath.Join(dir, name)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", 0, fmt.Errorf("backup: %w", err)
	}
	_, err = backup.Create(ctx, b.store, b.kek, secret, f)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return "", 0, errors.Join(err, os.Remove(path))
	}
	st, err := os.Stat(path)
	if err != nil {
		return "", 0, err
	}
	return path, st.Size(), nil
}

func (b *Broker) backupSecret() (backup.Secret, error) {
	path := filepath.Join(b.cfg.DataDir, backupKeyFile)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if err := paths.WriteFile(path, backup.NewKeyFile(), 0o600); err != nil {
			return backup.Secret{}, err
		}
	}
	return backup.KeyFile(path)
}
