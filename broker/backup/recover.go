package backup

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/proto/seal"
)

// Restored is the store after Restore; *store.Store is one.
type Restored interface {
	RestorePending(ctx context.Context) (bool, error)
	RestoreDone(ctx context.Context) error
	// RestoreHeads returns the ends of the audit chains in the backup.
	RestoreHeads(ctx context.Context) ([]audit.Head, error)
}

// Outcome says what became of one later block.
type Outcome int

// Outcomes of Hooks.Reapply. The zero value is Unable: what nobody judged is listed.
const (
	Unable  Outcome = iota // the person has to do it again: it is listed
	Applied                // it holds now
	Ignored                // the record takes nothing from anybody
)

// Hooks is what the rest of the broker does after a restore.
type Hooks interface {
	// SignOutAll ends all sessions and grants.
	SignOutAll(ctx context.Context) error
	// Reapply carries out what a record after the backup took away (a blocked user, a
	// removed device), if it did.
	Reapply(ctx context.Context, r audit.Record) (Outcome, error)
}

// Recovery configures Recover.
type Recovery struct {
	Store Restored
	Audit *audit.Log
	Hooks Hooks
	// Later is an exported audit of the lost broker, or nil. What it holds beyond the backup
	// is appended to the chains, and its blocks are applied again.
	Later io.ReadSeeker
	// Trusted are the keys that signed Later's segments.
	Trusted seal.Keys
}

// RecoveryReport says what Recover did.
type RecoveryReport struct {
	Pending  bool           // false: there was nothing to recover
	Appended uint64         // audit records that came back from Later
	Forked   bool           // a chain went on differently since the restore: its later records stay in Later alone
	Applied  []audit.Record // later blocks that hold again
	Listed   []audit.Record // later blocks that somebody has to repeat by hand
}

// Recover finishes a restore: it brings back the audit records after the backup, applies the
// blocks among them again or lists them, signs everybody out, and records all that. It may be
// repeated until it succeeds; before that the broker serves nobody and writes no audit, or
// the later records have no place in its chain.
func Recover(ctx context.Context, r Recovery) (RecoveryReport, error) {
	pending, err := r.Store.RestorePending(ctx)
	if err != nil || !pending {
		return RecoveryReport{}, err
	}
	report := RecoveryReport{Pending: true}
	if r.Later != nil {
		if err := r.replay(ctx, &report); err != nil {
			return report, fmt.Errorf("recover: later audit: %w", err)
		}
	}
	if err := r.Hooks.SignOutAll(ctx); err != nil {
		return report, fmt.Errorf("recover: sign everybody out: %w", err)
	}
	_, err = r.Audit.Append(ctx, audit.Event{Kind: audit.Restored, Count: report.Appended, Details: map[string]string{
		"applied": fmt.Sprint(len(report.Applied)), "listed": fmt.Sprint(len(report.Listed)),
	}})
	if err != nil {
		return report, fmt.Errorf("recover: %w", err)
	}
	return report, r.Store.RestoreDone(ctx)
}

// replay verifies the whole export before it uses any of it, and appends all of it before a
// hook writes records of its own.
func (r Recovery) replay(ctx context.Context, report *RecoveryReport) error {
	if err := r.verifyLater(); err != nil {
		return err
	}
	base, err := r.Store.RestoreHeads(ctx)
	if err != nil {
		return err
	}
	var blocks []audit.Record
	report.Appended, err = r.Audit.Replay(ctx, r.Later, base, func(rec audit.Record) {
		if rec.Kind == audit.Revoked || rec.Kind == audit.Changed || rec.Kind == audit.Erased {
			blocks = append(blocks, rec)
		}
	})
	if report.Forked = errors.Is(err, audit.ErrForked); err != nil && !report.Forked {
		return err
	}
	for _, rec := range blocks {
		if err := r.reapply(ctx, rec, report); err != nil {
			return err
		}
	}
	return nil
}

func (r Recovery) verifyLater() error {
	found, err := audit.VerifyFile(r.Later, audit.Trust{Keys: r.Trusted})
	if err != nil {
		return err
	}
	if !found.OK() {
		return fmt.Errorf("the exported audit does not verify: %w", found.Breaks[0])
	}
	_, err = r.Later.Seek(0, io.SeekStart)
	return err
}

func (r Recovery) reapply(ctx context.Context, rec audit.Record, report *RecoveryReport) error {
	outcome, err := r.Hooks.Reapply(ctx, rec)
	if err != nil {
		return fmt.Errorf("apply record %d of %s again: %w", rec.Seq, rec.Writer, err)
	}
	switch outcome {
	case Applied:
		report.Applied = append(report.Applied, rec)
	case Ignored:
	default:
		report.Listed = append(report.Listed, rec)
	}
	return nil
}
