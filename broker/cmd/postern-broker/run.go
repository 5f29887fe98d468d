package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/postern-zt/postern/broker"
	"github.com/postern-zt/postern/broker/checklist"
	"github.com/postern-zt/postern/platform/daemon"
	"github.com/postern-zt/postern/platform/paths"
	"github.com/postern-zt/postern/platform/settings"
)

// wantedFiles is the limit on open files that a busy broker needs.
const wantedFiles = 1 << 16

// fewFiles is too little to serve an office.
const fewFiles = 4096

// runCmd runs the broker.
type runCmd struct {
	Config  string `help:"Configuration file (default: the system's)." placeholder:"FILE"`
	DataDir string `help:"Directory of database and keys." placeholder:"DIR"`
	Listen  string `help:"Address of the one TCP and the one UDP port." placeholder:"ADDR:PORT"`
	URL     string `help:"How clients and connectors reach this broker." placeholder:"URL"`
	Check   bool   `help:"Read and check the configuration, then stop."`
}

// Help shows an example.
func (runCmd) Help() string {
	return "Example:\n  postern-broker run --url https://broker.example:8443"
}

// config reads file, environment and flags, in this order.
func (r *runCmd) config(e *env) (broker.Config, error) {
	set, err := paths.User(paths.Broker, e.environ)
	if os.Geteuid() == 0 {
		set, err = paths.System(paths.Broker, e.environ)
	}
	if err != nil && r.DataDir == "" {
		return broker.Config{}, fmt.Errorf("%w; give --data-dir", err)
	}
	cfg := broker.DefaultConfig(set.State, set.Socket)
	name, data, err := settings.ReadChosen(r.Config, set.Config)
	if err != nil {
		return broker.Config{}, err
	}
	if err := settings.Load(settings.Source{Role: "broker", Name: name, Data: data, Environ: e.environ}, &cfg); err != nil {
		return broker.Config{}, err
	}
	if r.DataDir != "" {
		cfg.DataDir, cfg.Database, cfg.KEKFile = r.DataDir, "", ""
		cfg.AdminSocket = filepath.Join(r.DataDir, "admin.sock")
	}
	if r.Listen != "" {
		cfg.Listen, cfg.URL = r.Listen, ""
	}
	if r.URL != "" {
		cfg.URL = r.URL
	}
	return cfg, cfg.Validate()
}

// Run serves until the process is told to end.
func (r *runCmd) Run(e *env) error {
	cfg, err := r.config(e)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	if r.Check {
		_, err := fmt.Fprintln(e.out, "The configuration is good.")
		return err
	}
	log := logger(cfg.LogLevel)
	// The OpenID library writes to the default logger.
	slog.SetDefault(log.With("component", "openid"))
	if got, err := daemon.RaiseFileLimit(wantedFiles); err != nil || got < fewFiles {
		log.Warn("few open files allowed", "limit", got, "error", err)
	}
	b, err := broker.New(e.ctx, cfg, version, log)
	if err != nil {
		return err
	}
	fmt.Fprintf(e.out, "The broker is at\n  %s\n", b.URL())
	if err := daemon.Notify(os.Getenv("NOTIFY_SOCKET"), daemon.Ready); err != nil {
		log.Warn("service manager not told", "error", err)
	}
	return daemon.Run(e.ctx, log,
		daemon.Part{Name: "broker", Run: b.Run},
		daemon.Part{Name: "check list", Run: checklistOf(b, e)},
	)
}

// checklistOf prints the check list; not being able to print it is no reason to stop.
func checklistOf(b *broker.Broker, e *env) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		if err := checklist.Run(ctx, b, e.out); err != nil {
			logger("warn").WarnContext(ctx, "check list ended", "error", err)
		}
		return nil
	}
}
