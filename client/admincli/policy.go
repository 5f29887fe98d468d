package admincli

import (
	"context"
	"fmt"
	"io"
	"strings"

	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
)

type policyCmd struct {
	Revisions policyRevisionsCmd `cmd:"" help:"List revisions, newest first." example:"postern admin policy revisions"`
	Show      policyShowCmd      `cmd:"" help:"Show one revision in Cedar." example:"postern admin policy show 7"`
	Rollback  policyRollbackCmd  `cmd:"" help:"Publish an old revision as a new one." example:"postern admin policy rollback 6"`
	Check     policyCheckCmd     `cmd:"" help:"Ask what would be decided. Exit code 3 when it is not allowed." example:"postern admin policy check --user ann --app wiki --fact firewall=fail"`
}

type policyRevisionsCmd struct {
	Limit int32 `help:"How many." default:"20" placeholder:"N"`
}

// Run lists revisions.
func (r *policyRevisionsCmd) Run(ctx context.Context, c *Conn) error {
	all, err := ask(ctx, c, c.policy.ListRevisions, &adminv1.ListRevisionsRequest{Page: &adminv1.Page{Size: r.Limit}})
	if err != nil {
		return err
	}
	t := columns("REVISION", "PUBLISHED", "BY", "HASH")
	for _, v := range all.Revisions {
		t.add(fmt.Sprint(v.Number), c.print.ago(v.TimeMs), v.Author, short(v.Hash))
	}
	return c.print.table(all, "No policy was published yet.", t)
}

// short is enough of a hash to compare two.
func short(hash string) string { return hash[:min(len(hash), 12)] }

// number is empty for nothing.
func number(n uint64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

type revisionRef struct {
	Number uint64 `arg:"" help:"Number of the revision."`
}

type policyShowCmd struct{ revisionRef }

// Run shows a revision.
func (s *policyShowCmd) Run(ctx context.Context, c *Conn) error {
	v, err := ask(ctx, c, c.policy.ShowRevision, &adminv1.RevisionRef{Number: s.Number})
	if err != nil {
		return err
	}
	return c.print.show(v, func(w io.Writer) {
		pairs(w, "revision", fmt.Sprint(v.Number), "published", at(v.TimeMs), "by", v.Author, "hash", v.Hash)
		fmt.Fprintf(w, "\n%s\n", cleanLines(v.Cedar))
	})
}

type policyRollbackCmd struct{ revisionRef }

// Run publishes an old revision again.
func (r *policyRollbackCmd) Run(ctx context.Context, c *Conn) error {
	resp, err := ask(ctx, c, c.policy.Rollback, &adminv1.RevisionRef{Number: r.Number})
	if err != nil {
		return err
	}
	return c.published(resp, fmt.Sprintf("Went back to revision %d", r.Number), false)
}

type policyCheckCmd struct {
	User   string            `help:"Who asks." required:"" placeholder:"LOGIN"`
	App    string            `help:"For which app." required:"" placeholder:"APP"`
	Device string            `help:"On which device (default: the one seen last)." placeholder:"DEVICE"`
	Fact   map[string]string `help:"A fact as it were otherwise, e.g. firewall=fail; may be repeated." placeholder:"NAME=STATE"`
	At     moment            `help:"At another time: a length ahead, or a time." placeholder:"WHEN"`
}

// Run asks for a decision and ends with ExitRefused when it does not allow.
func (k *policyCheckCmd) Run(ctx context.Context, c *Conn) error {
	d, err := ask(ctx, c, c.policy.Check, &adminv1.CheckRequest{
		User: k.User, App: k.App, Device: k.Device, Facts: k.Fact, TimeMs: k.At.after(c.print.now),
	})
	if err != nil {
		return err
	}
	if err := c.decision(d); err != nil {
		return err
	}
	if d.Verdict != "allow" && d.Verdict != "limited" {
		return refused("%s may not use %s", clean(k.User), clean(k.App))
	}
	return nil
}

// decision shows a decision.
func (c *Conn) decision(d *adminv1.Decision) error {
	return c.print.show(d, func(w io.Writer) {
		pairs(w, "decision", d.Verdict, "because", either(d.Reason, strings.Join(d.ReasonCodes, ", ")), "would help", d.Remedy,
			"person", d.User, "device", d.Device, "app", d.App, "rules", strings.Join(d.Rules, ", "),
			"policy revision", number(d.Revision), "receipt", d.Receipt, "time", at(d.TimeMs))
	})
}
