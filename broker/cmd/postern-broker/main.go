// Command postern-broker decides who may use which private app, and keeps the records. By
// default it contains a relay; `postern-broker relay` runs one alone.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/alecthomas/kong"

	"github.com/postern-zt/postern/platform/daemon"
)

// version is set by the build.
var version = "dev" //nolint:gochecknoglobals // -ldflags -X writes it

// cli is the command line.
type cli struct {
	Run     runCmd     `cmd:"" help:"Run the broker. Nothing needs to be configured."`
	Relay   relayCmd   `cmd:"" help:"Run a relay alone, beside a broker: it forwards on while the broker restarts."`
	Demo    demoCmd    `cmd:"" help:"Show the product on this machine: an employee reaches one app and not the other."`
	Backup  backupCmd  `cmd:"" help:"Write an encrypted backup while the broker runs."`
	Restore restoreCmd `cmd:"" help:"Bring a backup back into an empty data directory."`
	Recover recoverCmd `cmd:"" help:"Print a link that makes a new owner."`
	Audit   auditCmd   `cmd:"" help:"Check the tamper-evident record."`
	Version versionCmd `cmd:"" help:"Print the version."`
}

// env is what the commands share.
type env struct {
	ctx     context.Context
	environ []string
	out     io.Writer
}

func main() {
	var c cli
	parser, err := kong.New(&c, kong.Name("postern-broker"), kong.UsageOnError(),
		kong.Description("The broker of Postern: sign-in, policy, audit, relay."))
	if err != nil {
		fail(err)
	}
	kctx, err := parser.Parse(os.Args[1:])
	parser.FatalIfErrorf(err)
	ctx, stop := daemon.Signals(context.Background(), logger("info"), func() { os.Exit(1) })
	defer stop()
	if err := kctx.Run(&env{ctx: ctx, environ: os.Environ(), out: os.Stdout}); err != nil {
		fail(err)
	}
}

func logger(level string) *slog.Logger {
	l := slog.LevelInfo
	_ = l.UnmarshalText([]byte(level)) // an unknown word logs at info
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l}))
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "postern-broker:", err)
	os.Exit(1)
}

// versionCmd prints the version.
type versionCmd struct{}

// Run prints the version.
func (versionCmd) Run(e *env) error {
	_, err := fmt.Fprintln(e.out, "postern-broker", version)
	return err
}
