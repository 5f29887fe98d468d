package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"

	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/broker/backup"
	"github.com/postern-zt/postern/broker/keys"
)

// Errors of the commands on the host.
var (
	// ErrNoBroker says that the data directory holds no broker.
	ErrNoBroker = errors.New("there is no broker here")
	// ErrRestorePending says that a restore was begun and not finished.
	ErrRestorePending = errors.New("a restore was not finished, so nobody is served: run `postern-broker restore --finish`")
)

// Maintenance is a broker whose database and keys are open while nothing is served: what
// the commands on its host need. It may stand beside the running broker, because every
// write goes through transactions of the database.
type Maintenance struct{ b *Broker }

// OpenMaintenance opens an existing broker; it never makes one.
func OpenMaintenance(ctx context.Context, cfg Config, version string, log *slog.Logger) (*Maintenance, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if _, err := keys.LoadKEK(cfg.KEKFile); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: no key-encryption key at %s; name its directory with --data-dir", ErrNoBroker, cfg.KEKFile)
	} else if err != nil {
		return nil, err
	}
	b := &Broker{cfg: cfg, version: version, log: log, epoch: &epoch{}, metrics: newMetrics()}
	for _, step := range []func(context.Context) error{b.openStore, b.openKeys, b.openRecords, b.openPeople} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, b.Close())
		}
	}
	return &Maintenance{b}, nil
}

// Close releases the database. Safe twice.
func (m *Maintenance) Close() error { return m.b.Close() }

// Backup writes one moment of the whole state to w while the broker runs. Without the
// key-encryption key in it, the operator keeps that file elsewhere.
func (m *Maintenance) Backup(ctx context.Context, secret backup.Secret, withKEK bool, w io.Writer) (backup.Manifest, error) {
	kek := m.b.kek
	if !withKEK {
		kek = nil
	}
	return backup.Create(ctx, m.b.store, kek, secret, w)
}

// OwnerLink records that somebody on the host asked for it and returns a one-time link that
// makes its bearer an owner: nothing may lock the last owner out (decisions rule 30).
func (m *Maintenance) OwnerLink(ctx context.Context) (string, error) {
	_, err := m.b.audit.Append(ctx, audit.Event{Kind: audit.Changed, Details: map[string]string{
		"what": "new owner link", "actor": "root on the broker's host",
	}})
	if err != nil {
		return "", err
	}
	return m.b.OwnerLink(ctx)
}

// VerifyAudit checks all chains in the database. expect holds what others remember of them
// and which keys connectors show; the broker's own keys come with it.
func (m *Maintenance) VerifyAudit(ctx context.Context, expect audit.Trust) (audit.Report, error) {
	trust, err := m.b.auditTrust(ctx, expect)
	if err != nil {
		return audit.Report{}, err
	}
	return m.b.audit.Verify(ctx, trust)
}

// VerifyAuditFile checks an exported file like VerifyAudit.
func (m *Maintenance) VerifyAuditFile(ctx context.Context, r io.Reader, expect audit.Trust) (audit.Report, error) {
	trust, err := m.b.auditTrust(ctx, expect)
	if err != nil {
		return audit.Report{}, err
	}
	return audit.VerifyFile(r, trust)
}

// AuditKeys returns, as PEM, the certificates by which anybody checks an exported audit:
// that of the CA, then those of the signing keys. VerifyAuditFile reads them elsewhere.
func (m *Maintenance) AuditKeys() ([]byte, error) {
	_, certs, err := m.b.ring.SignerKeys()
	if err != nil {
		return nil, err
	}
	return encodeAuditKeys(m.b.ca.Certificate().Raw, certs), nil
}

// checkRestored keeps a half restored broker from serving.
func (b *Broker) checkRestored(ctx context.Context) error {
	pending, err := b.store.RestorePending(ctx)
	if err == nil && pending {
		err = ErrRestorePending
	}
	return err
}
