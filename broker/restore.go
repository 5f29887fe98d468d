package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/broker/backup"
	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/broker/enroll"
	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/keys"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/session"
	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/platform/paths"
	"github.com/postern-zt/postern/proto/ids"
)

// Restore brings a backup back into an empty database. It reads the whole backup before it
// writes anything. FinishRestore must follow; no broker serves before it has.
func Restore(ctx context.Context, cfg Config, version string, log *slog.Logger, in io.ReadSeeker, secret backup.Secret) (backup.Manifest, error) {
	if err := cfg.Validate(); err != nil {
		return backup.Manifest{}, fmt.Errorf("configuration: %w", err)
	}
	m, err := backup.Check(in, secret)
	if err != nil {
		return m, err
	}
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		return m, err
	}
	if err := paths.PrivateDir(cfg.DataDir); err != nil {
		return m, err
	}
	wrote, err := restoreKEK(cfg.KEKFile, m)
	if err != nil {
		return m, err
	}
	_, err = backup.Restore(ctx, in, secret, store.Config{DSN: cfg.Database, Version: version, Log: log})
	if err != nil && wrote {
		err = errors.Join(err, os.Remove(cfg.KEKFile))
	}
	return m, err
}

// restoreKEK makes sure that the key-encryption key of the backup lies at path, and reports
// whether it was put there.
func restoreKEK(path string, m backup.Manifest) (wrote bool, err error) {
	have, err := keys.LoadKEK(path)
	switch {
	case err == nil && (m.KEKID == "" || have.ID() == m.KEKID):
		return false, nil
	case err == nil:
		return false, fmt.Errorf("the key-encryption key %s lies at %s, the backup needs %s: move it away", have.ID(), path, m.KEKID)
	case !errors.Is(err, fs.ErrNotExist):
		return false, err
	case m.KEK == nil:
		return false, fmt.Errorf("the backup does not hold its key-encryption key: put that file at %s first", path)
	}
	if err := paths.PrivateDir(filepath.Dir(path)); err != nil {
		return false, err
	}
	return true, paths.WriteFile(path, m.KEK, 0o600)
}

// FinishRestore signs everybody out and takes away again what the records after the backup
// took away. later is the exported audit of the lost broker, or nil. It may be repeated.
func (m *Maintenance) FinishRestore(ctx context.Context, later io.ReadSeeker) (backup.RecoveryReport, error) {
	b := m.b
	if err := b.openLedger(ctx); err != nil {
		return backup.RecoveryReport{}, err
	}
	return backup.Recover(ctx, backup.Recovery{Store: b.store, Audit: b.audit, Hooks: recovery{b}, Later: later, Trusted: b.brokerKeys()})
}

// openLedger builds the ledger in the epoch that the restore opened.
func (b *Broker) openLedger(ctx context.Context) (err error) {
	if b.ledger, err = grants.New(grants.Config{Store: b.store, Signer: b.signer, Log: b.log}); err != nil {
		return err
	}
	return b.load(ctx)
}

// recovery is what the parts of the broker do after a restore.
type recovery struct{ *Broker }

var _ backup.Hooks = recovery{}

// SignOutAll ends every session and every grant that the backup brought back.
func (r recovery) SignOutAll(ctx context.Context) error {
	now := time.Now()
	r.ledger.Revoke(grants.Everything(), grants.CauseRestore, now)
	if _, err := r.sessions.EndAll(ctx, session.CauseRestore, now); err != nil {
		return err
	}
	return r.ledger.Flush(ctx)
}

// Reapply carries out what a record took away. A thing that the backup does not know is
// gone already; what cannot be read from the record is listed.
func (r recovery) Reapply(ctx context.Context, rec audit.Record) (backup.Outcome, error) {
	switch rec.Kind {
	case audit.Revoked:
		return backup.Ignored, nil // everybody is signed out
	case audit.Erased:
		return outcome(r.audit.Erase(ctx, rec.User, rec.Actor))
	case audit.Changed:
		return r.reapplyChange(ctx, rec)
	default:
		return backup.Unable, nil
	}
}

func (r recovery) reapplyChange(ctx context.Context, rec audit.Record) (backup.Outcome, error) {
	switch rec.Details["what"] {
	case "disable user":
		return outcome(r.identity.Disable(ctx, rec.User))
	case "remove member":
		return outcome(r.removeMember(ctx, rec.User, rec.Details["group"]))
	case "block device":
		_, err := r.registry.SetDeviceState(ctx, rec.Device, registry.Blocked)
		return outcome(err)
	case "remove device":
		_, err := r.registry.SetDeviceState(ctx, rec.Device, registry.Removed)
		return outcome(err)
	case "block connector":
		_, err := r.registry.SetConnectorState(ctx, rec.Connector, registry.Blocked)
		return outcome(err)
	case "remove connector":
		_, err := r.registry.SetConnectorState(ctx, rec.Connector, registry.Removed)
		return outcome(err)
	case "remove relay":
		_, err := r.registry.SetRelayState(ctx, ids.RelayID(rec.Details["relay"]), registry.Removed)
		return outcome(err)
	case "revoke join token":
		return outcome(r.enroller.Revoke(ctx, ids.TokenID(rec.Details["token"]), time.Now()))
	case "retire app":
		return outcome(r.retire(ctx, rec.App))
	case "create user", "invite user", "create group", "add member", "create site", "create join token", "publish app",
		"approve proposal", "reject proposal", "sign out user", "end session", "revoke grant", "backup", "new owner link":
		return backup.Ignored, nil
	default:
		return backup.Unable, nil
	}
}

// outcome says what became of a block: done, nothing to do, or listed for a person.
func outcome(err error) (backup.Outcome, error) {
	for _, gone := range []error{directory.ErrNotFound, registry.ErrNotFound, registry.ErrRemoved, enroll.ErrNotFound, store.ErrNotFound} {
		if errors.Is(err, gone) {
			return backup.Ignored, nil
		}
	}
	switch {
	case err == nil:
		return backup.Applied, nil
	case errors.Is(err, directory.ErrLastOwner):
		return backup.Unable, nil
	default:
		return backup.Unable, err
	}
}

func (r recovery) removeMember(ctx context.Context, user ids.UserID, group string) error {
	g, err := r.dir.FindGroup(ctx, group)
	if err != nil {
		return err
	}
	return r.dir.RemoveFromGroup(ctx, user, g.ID)
}

func (r recovery) retire(ctx context.Context, id ids.AppID) error {
	app, ok := r.catalog.Current().App(id)
	if !ok {
		return store.ErrNotFound
	}
	retired := *app
	retired.Retired = true
	_, err := r.catalog.UpdateApp(ctx, retired, time.Now())
	return err
}
