package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/postern-zt/postern/broker"
	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/broker/backup"
)

// backupCmd writes a backup while the broker runs.
type backupCmd struct {
	File string `arg:"" help:"File to write; it must not exist."`
	place
	unlock
	NewKeyFile string `xor:"unlock" help:"Make this key file and use it. Keep it apart from the backup." placeholder:"FILE"`
	WithoutKEK bool   `name:"without-kek" help:"Leave the key-encryption key out; then keep that file yourself."`
}

// Help shows examples.
func (backupCmd) Help() string {
	return "Example:\n    postern-broker backup /mnt/safe/postern.backup --passphrase-file /root/backup.pass"
}

// Run writes the backup and reads it back: one that was never read is a hope.
func (c *backupCmd) Run(e *env) (err error) {
	if c.NewKeyFile != "" {
		if err := writeNew(c.NewKeyFile, func(w io.Writer) error { _, err := w.Write(backup.NewKeyFile()); return err }); err != nil {
			return err
		}
		c.KeyFile = c.NewKeyFile
	}
	secret, err := c.secret()
	if err != nil {
		return err
	}
	m, err := c.open(e)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	err = writeNew(c.File, func(w io.Writer) error {
		_, err := m.Backup(e.ctx, secret, !c.WithoutKEK, w)
		return err
	})
	if err != nil {
		return err
	}
	return c.check(e, secret)
}

func (c *backupCmd) check(e *env, secret backup.Secret) error {
	f, err := os.Open(c.File)
	if err != nil {
		return err
	}
	defer f.Close()
	man, err := backup.Check(f, secret)
	if err != nil {
		return err
	}
	fmt.Fprintf(e.out, "Wrote %s and read it back: the state of %s.\n", c.File, man.Created.Format(time.RFC3339))
	if man.KEK == nil {
		fmt.Fprintf(e.out, "It does not hold the key-encryption key %s; keep that file too.\n", man.KEKID)
	}
	return nil
}

// writeNew writes a file that does not exist yet, for this user alone; a half written one
// is removed.
func writeNew(name string, write func(io.Writer) error) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(write(f), f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return nil
}

// restoreCmd brings a backup back.
type restoreCmd struct {
	File   string `arg:"" optional:"" help:"Backup to read."`
	Finish bool   `help:"Go on with a restore that stopped in the middle."`
	Audit  string `help:"Exported audit of the lost broker: what it took away after the backup is taken away again." placeholder:"FILE"`
	place
	unlock
}

// Help shows examples.
func (restoreCmd) Help() string {
	return "The broker must not run, and its data directory must be empty. Afterwards everybody has to sign in again.\n\n" +
		"Example:\n    postern-broker restore /mnt/safe/postern.backup --audit audit.jsonl"
}

// Run restores, then finishes.
func (c *restoreCmd) Run(e *env) error {
	if c.Finish == (c.File != "") {
		return errors.New("name the backup, or --finish for one that was restored already")
	}
	cfg, err := c.config(e)
	if err != nil {
		return err
	}
	log := logger("warn")
	if c.File != "" {
		if err := c.restore(e, cfg, log); err != nil {
			return err
		}
	}
	m, err := broker.OpenMaintenance(e.ctx, cfg, version, log)
	if err != nil {
		return err
	}
	report, err := c.finish(e.ctx, m)
	if err := errors.Join(err, m.Close()); err != nil {
		return fmt.Errorf("the data is there, but nobody is served yet: %w; then run this again with --finish", err)
	}
	printRecovery(e.out, report)
	return nil
}

func (c *restoreCmd) restore(e *env, cfg broker.Config, log *slog.Logger) error {
	secret, err := c.secret()
	if err != nil {
		return err
	}
	f, err := os.Open(c.File)
	if err != nil {
		return err
	}
	defer f.Close()
	man, err := broker.Restore(e.ctx, cfg, version, log, f, secret)
	if err != nil {
		return err
	}
	fmt.Fprintf(e.out, "Restored the state of %s.\n", man.Created.Format(time.RFC3339))
	return nil
}

func (c *restoreCmd) finish(ctx context.Context, m *broker.Maintenance) (backup.RecoveryReport, error) {
	if c.Audit == "" {
		return m.FinishRestore(ctx, nil)
	}
	f, err := os.Open(c.Audit)
	if err != nil {
		return backup.RecoveryReport{}, err
	}
	defer f.Close()
	return m.FinishRestore(ctx, f)
}

func printRecovery(w io.Writer, r backup.RecoveryReport) {
	if !r.Pending {
		fmt.Fprintln(w, "There was nothing to finish.")
		return
	}
	fmt.Fprintln(w, "Everybody is signed out and signs in again.")
	if r.Appended > 0 {
		fmt.Fprintf(w, "%d audit records after the backup came back.\n", r.Appended)
	}
	if r.Forked {
		fmt.Fprintln(w, "The broker went on after it was restored once; its later records stay in the exported file.")
	}
	printRecords(w, "In force again:", r.Applied)
	printRecords(w, "Changed after the backup; look whether it is to be done again:", r.Listed)
	fmt.Fprintln(w, "Start the broker now.")
}

func printRecords(w io.Writer, title string, list []audit.Record) {
	if len(list) == 0 {
		return
	}
	fmt.Fprintln(w, title)
	for _, r := range list {
		fmt.Fprintf(w, "  %s  %s %s%s%s%s%s\n", r.Time().Format(time.RFC3339), r.Kind, r.Details["what"], named("user", r.User),
			named("device", r.Device), named("connector", r.Connector), named("app", r.App))
	}
}

func named[T ~string](what string, id T) string {
	if id == "" {
		return ""
	}
	return " " + what + " " + string(id)
}

// recoverCmd lets an owner in again.
type recoverCmd struct{ place }

// Help shows an example.
func (recoverCmd) Help() string {
	return "For an owner who lost the password. It works beside the running broker and is recorded.\n\nExample:\n    postern-broker recover"
}

// Run prints a link.
func (c *recoverCmd) Run(e *env) (err error) {
	m, err := c.open(e)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	link, err := m.OwnerLink(e.ctx)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.out, "Open this link, once; it makes a new owner:\n  %s\n", link)
	return err
}
