package admincli

import (
	"context"
	"fmt"
	"io"
	"strings"

	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
)

type systemCmd struct {
	Status systemStatusCmd `cmd:"" help:"Show whether the broker is ready, and what is not." example:"postern admin system status"`
	Backup systemBackupCmd `cmd:"" help:"Write a backup on the broker's host, under the key in its backup folder." example:"postern admin system backup before-upgrade"`
}

type systemStatusCmd struct{}

// Run shows the status; a broker that is not ready is an error.
func (*systemStatusCmd) Run(ctx context.Context, c *Conn) error {
	s, err := ask(ctx, c, c.system.Status, &adminv1.StatusRequest{})
	if err != nil {
		return err
	}
	err = c.print.show(s, func(w io.Writer) { writeStatus(w, s) })
	if err == nil && !s.Ready {
		err = fmt.Errorf("the broker is not ready: %s", clean(strings.Join(s.NotReady, "; ")))
	}
	return err
}

func writeStatus(w io.Writer, s *adminv1.StatusResponse) {
	pairs(w, "ready", yesNo(s.Ready), "address", s.Url, "version", s.Version, "broker", s.BrokerId, "suffixes", strings.Join(s.Suffixes, ", "))
	for _, k := range s.Checks {
		mark := "[ ]"
		if k.Done {
			mark = "[x]"
		}
		fmt.Fprintln(w, mark, clean(k.Name))
		if !k.Done && k.Next != "" {
			fmt.Fprintln(w, "      "+clean(k.Next))
		}
	}
}

type systemBackupCmd struct {
	Name string `arg:"" optional:"" help:"Name of the file (default: the time)."`
}

// Run writes a backup.
func (b *systemBackupCmd) Run(ctx context.Context, c *Conn) error {
	done, err := ask(ctx, c, c.system.Backup, &adminv1.BackupRequest{Name: either(b.Name, c.print.now.UTC().Format("20060102-150405Z"))})
	if err != nil {
		return err
	}
	return c.print.show(done, func(w io.Writer) {
		fmt.Fprintf(w, "Wrote %s (%d bytes).\n", clean(done.Path), done.Bytes)
	})
}
