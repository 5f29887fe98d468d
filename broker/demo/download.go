package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// enough is how much of the download must have come before it is cut.
const enough = 4 << 20

// cutDownload starts a download that never ends, takes the rule away, and measures how
// long bytes still came.
func (d *demo) cutDownload(ctx context.Context) (string, error) {
	cmd := d.net.place(laptop).command("curl", append(d.door.curlArgs(), "--silent", "--output", "-", wikiURL+"download")...)
	cmd.Env = d.environ(laptop)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() }) // it may have ended
	defer stop()
	if _, err := io.CopyN(io.Discard, out, enough); err != nil {
		return "", errors.Join(fmt.Errorf("the download ended early: %w", err), cmd.Wait())
	}
	shown, err := d.takeAway(ctx, out)
	if err != nil {
		_ = cmd.Process.Kill() // the download is of no use any more
	}
	if failed := cmd.Wait(); err == nil && failed == nil {
		err = errors.New("curl took the cut for an orderly end")
	}
	return shown, errors.Join(err, context.Cause(ctx))
}

// takeAway deletes the rule and reads until the last byte.
func (d *demo) takeAway(ctx context.Context, out io.Reader) (string, error) {
	last := make(chan time.Time, 1)
	go func() { // ends with the download, which the caller ends in any case
		_, _ = io.Copy(io.Discard, out) // how it ends shows in curl's exit code
		last <- time.Now()
	}()
	start := time.Now()
	if err := d.admin.deleteRule(ctx, d.rule); err != nil {
		return "", err
	}
	answered := time.Since(start)
	select {
	case at := <-last:
		return fmt.Sprintf("$ postern admin rule delete %s\nthe last byte came %s after the command started; the command took %s",
			d.rule, milliseconds(at.Sub(start)), milliseconds(answered)), nil
	case <-ctx.Done():
		return "", fmt.Errorf("bytes still come: %w", context.Cause(ctx))
	}
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}
