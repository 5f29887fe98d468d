// Command posternd is the client's daemon: it runs as root, holds the device key and the
// tunnel interface, and does what the command postern of the signed-in user asks for.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/alecthomas/kong"
	"golang.org/x/net/http/httpproxy"

	"github.com/postern-zt/postern/client"
	"github.com/postern-zt/postern/platform/daemon"
	"github.com/postern-zt/postern/platform/paths"
	"github.com/postern-zt/postern/platform/service"
	"github.com/postern-zt/postern/platform/settings"
)

// version is set by the build.
var version = "dev"

// wantFiles is how many open files a busy client may need.
const wantFiles = 65536

// cli is the command line.
type cli struct {
	Config string `help:"Configuration file (default: the system's)." placeholder:"FILE"`

	Run     runCmd     `cmd:"" help:"Serve until stopped. Example: posternd run"`
	CleanUp cleanUpCmd `cmd:"" name:"cleanup" help:"Remove what a killed daemon left on this machine. Example: posternd cleanup"`
	Service serviceCmd `cmd:"" help:"Install or remove the system service. Example: posternd service install"`
	Version versionCmd `cmd:"" help:"Print the version."`
}

// env is what the commands share.
type env struct {
	file    string
	environ []string
	out     io.Writer
	log     *slog.Logger
	level   *slog.LevelVar
}

func main() {
	var c cli
	parser, err := kong.New(&c, kong.Name("posternd"), kong.UsageOnError(),
		kong.Description("The daemon of the Postern client: private apps by name, for every program of one user."))
	if err != nil {
		fail(err)
	}
	parsed, err := parser.Parse(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "posternd:", err)
		os.Exit(2)
	}
	level := &slog.LevelVar{}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	ctx, stop := daemon.Signals(context.Background(), log, func() { os.Exit(1) })
	parsed.BindTo(ctx, (*context.Context)(nil))
	err = parsed.Run(&env{file: c.Config, environ: os.Environ(), out: os.Stdout, log: log, level: level})
	stop()
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "posternd:", err)
	os.Exit(1)
}

// config reads file and environment.
func (e *env) config() (client.DaemonConfig, error) {
	set, err := paths.System(paths.Client, e.environ)
	if err != nil {
		return client.DaemonConfig{}, err
	}
	cfg := client.DefaultDaemonConfig(set)
	name, data, err := settings.ReadChosen(e.file, set.Config)
	if err != nil {
		return cfg, err
	}
	if err := settings.Load(settings.Source{Role: "client", Name: name, Data: data, Environ: e.environ}, &cfg); err != nil {
		return cfg, err
	}
	return cfg, e.level.UnmarshalText([]byte(cfg.LogLevel))
}

func (e *env) daemon() (*client.Daemon, error) {
	cfg, err := e.config()
	if err != nil {
		return nil, err
	}
	return client.NewDaemon(cfg, version, httpproxy.FromEnvironment(), e.log)
}

type runCmd struct {
	Check bool `help:"Read and check the configuration, then stop."`
}

// Run serves.
func (r runCmd) Run(ctx context.Context, e *env) error {
	if _, err := e.config(); err != nil || r.Check {
		return err
	}
	if limit, err := daemon.RaiseFileLimit(wantFiles); err != nil {
		e.log.Warn("few open files allowed", "limit", limit, "error", err)
	}
	d, err := e.daemon()
	if err != nil {
		return err
	}
	socket := os.Getenv("NOTIFY_SOCKET")
	defer func() { _ = daemon.Notify(socket, daemon.Stopping) }() // nobody is left to tell
	return d.Run(ctx, func() {
		if err := daemon.Notify(socket, daemon.Ready); err != nil {
			e.log.Warn("service manager not told", "error", err)
		}
	})
}

type cleanUpCmd struct{}

// Run cleans up.
func (cleanUpCmd) Run(ctx context.Context, e *env) error {
	d, err := e.daemon()
	if err != nil {
		return err
	}
	return d.CleanUp(ctx)
}

type serviceCmd struct {
	Install installCmd `cmd:"" help:"Start the daemon now and at every boot."`
	Remove  removeCmd  `cmd:"" help:"Stop the daemon and remove the service."`
}

type installCmd struct{}

// Run installs the unit.
func (installCmd) Run(ctx context.Context, e *env) error {
	exec, err := os.Executable()
	if err != nil {
		return err
	}
	m, err := service.New()
	if err != nil {
		return err
	}
	err = m.Install(ctx, service.Unit{
		Role: string(paths.Client), Description: "Postern client", Exec: exec, Args: []string{"run"}, CleanUp: []string{"cleanup"},
		Capabilities: []string{"CAP_NET_ADMIN", "CAP_NET_RAW"}, Devices: []string{"/dev/net/tun"}, WritesEtc: true,
	})
	if err == nil {
		fmt.Fprintln(e.out, "posternd runs now and at every boot. Next: postern up URL")
	}
	return err
}

type removeCmd struct{}

// Run removes the unit.
func (removeCmd) Run(ctx context.Context, _ *env) error {
	m, err := service.New()
	if err != nil {
		return err
	}
	return m.Remove(ctx, string(paths.Client))
}

type versionCmd struct{}

// Run prints the version.
func (versionCmd) Run(e *env) error {
	_, err := fmt.Fprintln(e.out, "posternd", version)
	return err
}
