package admincli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"connectrpc.com/connect"

	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
)

type auditCmd struct {
	Search  auditSearchCmd  `cmd:"" help:"Search the records." example:"postern admin audit search --user ann --since 24h"`
	Receipt auditReceiptCmd `cmd:"" help:"Show the decision behind a receipt." example:"postern admin audit receipt K7M2-Q4TX"`
	Verify  auditVerifyCmd  `cmd:"" help:"Check every chain for changed and missing records." example:"postern admin audit verify"`
	Export  auditExportCmd  `cmd:"" help:"Write the chains as JSON lines; check them offline with postern-broker audit verify --file." example:"postern admin audit export --output audit.jsonl"`
}

type auditSearchCmd struct {
	User    string `help:"Only this person." placeholder:"LOGIN"`
	Device  string `help:"Only this device." placeholder:"DEVICE"`
	App     string `help:"Only this app." placeholder:"APP"`
	Receipt string `help:"Only this receipt." placeholder:"RECEIPT"`
	Kind    string `help:"Only this kind, e.g. denied." placeholder:"KIND"`
	Since   moment `help:"From then: a length back, or a time." placeholder:"WHEN"`
	Until   moment `help:"To then: a length back, or a time." placeholder:"WHEN"`
	Limit   int    `help:"How many at most." default:"50" placeholder:"N"`
}

// Run searches.
func (s *auditSearchCmd) Run(ctx context.Context, c *Conn) error {
	if s.Limit < 1 {
		return usage("--limit %d finds nothing", s.Limit)
	}
	all := &adminv1.SearchResponse{}
	for len(all.Records) < s.Limit {
		part, err := ask(ctx, c, c.audit.Search, &adminv1.SearchRequest{
			User: s.User, Device: s.Device, App: s.App, Receipt: s.Receipt, Kind: s.Kind,
			FromMs: s.Since.before(c.print.now), ToMs: s.Until.before(c.print.now),
			Page: &adminv1.Page{Size: int32(min(s.Limit-len(all.Records), pageSize)), Token: all.Next},
		})
		if err != nil {
			return err
		}
		all.Records, all.Next = append(all.Records, part.Records...), part.Next
		if all.Next == "" {
			break
		}
	}
	t := columns("TIME", "WHAT", "BY", "PERSON", "DEVICE", "APP", "RECEIPT", "SAYS")
	for _, r := range all.Records {
		t.add(at(r.TimeMs), r.Kind, r.Actor, r.User, r.Device, r.App, r.Receipt, r.Text)
	}
	return c.print.table(all, "No record matches.", t)
}

type auditReceiptCmd struct {
	Receipt string `arg:"" help:"Receipt, as the person reads it out."`
}

// Run shows a decision.
func (r *auditReceiptCmd) Run(ctx context.Context, c *Conn) error {
	d, err := ask(ctx, c, c.audit.GetDecision, &adminv1.DecisionRef{Receipt: r.Receipt})
	if err != nil {
		return err
	}
	return c.decision(d)
}

type auditVerifyCmd struct{}

// Run lets the broker verify its chains; a break is an error.
func (*auditVerifyCmd) Run(ctx context.Context, c *Conn) error {
	v, err := ask(ctx, c, c.audit.Verify, &adminv1.VerifyRequest{})
	if err != nil {
		return err
	}
	err = c.print.show(v, func(w io.Writer) {
		if v.Ok {
			fmt.Fprintf(w, "The audit is whole: %s of %s.\n", count(int(v.Records), "record"), count(len(v.Writers), "writer"))
		}
		for _, c := range v.Chains {
			if c.Connector {
				fmt.Fprintf(w, "%s: %s\n", clean(c.Writer), ownSignature(c))
			}
		}
	})
	if err == nil && !v.Ok {
		err = fmt.Errorf("the audit does not verify: %s", clean(v.Problem))
	}
	return err
}

// ownSignature says what a connector vouches for itself, and by which key.
func ownSignature(c *adminv1.ChainState) string {
	if c.OwnKey == "" {
		return "unsigned: only the broker vouches for its records"
	}
	text := fmt.Sprintf("signed to record %d with its key %s", c.OwnSigned, clean(c.OwnKey))
	if c.Last > c.OwnSigned {
		text += fmt.Sprintf("; UNSIGNED: the last %d", c.Last-c.OwnSigned)
	}
	return text
}

type auditExportCmd struct {
	Output string `short:"o" help:"File to write; it must not exist (default: standard output)." placeholder:"FILE"`
}

// Run writes the export; a file that is not whole is removed.
func (x *auditExportCmd) Run(ctx context.Context, c *Conn, e *Env) error {
	if x.Output == "" {
		return c.export(ctx, e.Out)
	}
	f, err := os.OpenFile(x.Output, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return &Error{Code: ExitUsage, err: err}
	}
	if err := errors.Join(c.export(ctx, f), f.Close()); err != nil {
		return errors.Join(err, os.Remove(x.Output))
	}
	return nil
}

// export streams; it has no deadline of its own, because years may be in it.
func (c *Conn) export(ctx context.Context, out io.Writer) error {
	stream, err := c.audit.Export(ctx, connect.NewRequest(&adminv1.ExportRequest{}))
	if err != nil {
		return explain(c.where, err)
	}
	defer stream.Close()
	for stream.Receive() {
		if _, err := out.Write(stream.Msg().Lines); err != nil {
			return err
		}
	}
	return explainEnd(c.where, stream.Err())
}

func explainEnd(where string, err error) error {
	if err == nil {
		return nil
	}
	return explain(where, err)
}
