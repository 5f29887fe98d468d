package admincli

import (
	"context"
	"fmt"
	"io"
	"strings"

	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
)

// act makes a call that changes something and shows what it ended; done is the sentence
// that says what was done.
func act[Req any](ctx context.Context, c *Conn, do method[Req, adminv1.EffectResponse], msg *Req, done string) error {
	fx, err := ask(ctx, c, do, msg)
	if err != nil {
		return err
	}
	return c.print.show(fx, func(w io.Writer) { fmt.Fprintln(w, strings.TrimSpace(clean(done)+" "+effect(fx))) })
}

// effect says in figures what an act ended; nothing when it ended nothing.
func effect(fx *adminv1.EffectResponse) string {
	var ended []string
	if n := fx.GetSessions(); n > 0 {
		ended = append(ended, count(int(n), "session"))
	}
	if n := fx.GetGrants(); n > 0 {
		ended = append(ended, count(int(n), "grant"))
	}
	text := strings.Join(ended, ", ")
	if text != "" {
		text = "Ended " + text
		if n := fx.GetConnectors(); n > 0 {
			text += " on " + count(int(n), "connector")
		}
		text += "."
	}
	return strings.TrimSpace(text + " " + clean(fx.GetText()))
}

// why is the reason that is recorded with an act.
type why struct {
	Reason string `help:"Why; kept in the audit." placeholder:"TEXT"`
}
