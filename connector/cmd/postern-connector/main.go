// Command postern-connector makes private apps reachable: it stands beside them, dials out
// to its broker and nowhere else, and opens an app only for a device that shows a grant.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"

	"github.com/alecthomas/kong"
	"golang.org/x/net/http/httpproxy"

	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/relay/attach"
	"github.com/postern-zt/postern/platform/daemon"
	"github.com/postern-zt/postern/platform/paths"
)

// version is set by the build.
var version = "dev" //nolint:gochecknoglobals // -ldflags -X writes it

// cli is the command line.
type cli struct {
	StateDir string `help:"Directory of identity key and records (default: the system's, or the user's without root)." placeholder:"DIR"`
	LogLevel string `help:"debug, info, warn or error." default:"info" enum:"debug,info,warn,error"`

	Run     runCmd     `cmd:"" help:"Join a broker if needed, and serve until stopped."`
	Check   checkCmd   `cmd:"" help:"Find out what keeps this machine from serving: the first failure and one fix."`
	Status  statusCmd  `cmd:"" help:"Show whether the connector on this machine serves."`
	Leave   leaveCmd   `cmd:"" help:"Leave the broker for good and forget the identity key."`
	Service serviceCmd `cmd:"" help:"Install or remove the system service."`
	Version versionCmd `cmd:"" help:"Print the version."`
}

// env is what the commands share.
type env struct {
	ctx   context.Context
	state paths.Set
	dir   string
	// socket is where a running connector answers.
	socket string
	log    *slog.Logger
	stdin  io.Reader
	out    io.Writer
	token  string
	proxy  control.Dialer
}

func main() {
	var c cli
	parser, err := kong.New(&c, kong.Name("postern-connector"), kong.UsageOnError(),
		kong.Description("Makes private apps reachable for people whom the broker allows. It only dials out."))
	if err != nil {
		fail(err)
	}
	kctx, err := parser.Parse(os.Args[1:])
	parser.FatalIfErrorf(err)
	log := logger(c.LogLevel)
	ctx, stop := daemon.Signals(context.Background(), log, func() { os.Exit(1) })
	defer stop()
	e, err := newEnv(ctx, &c, log)
	if err != nil {
		fail(err)
	}
	if err := kctx.Run(e); err != nil && ctx.Err() == nil {
		fail(err)
	}
}

func newEnv(ctx context.Context, c *cli, log *slog.Logger) (*env, error) {
	environ := os.Environ()
	set, err := paths.User(paths.Connector, environ)
	if os.Geteuid() == 0 {
		set, err = paths.System(paths.Connector, environ)
	}
	e := &env{
		ctx: ctx, state: set, dir: c.StateDir, log: log, stdin: os.Stdin, out: os.Stdout,
		token: os.Getenv("POSTERN_JOIN_TOKEN"), proxy: proxyDialer(),
	}
	if e.dir == "" {
		if err != nil {
			return nil, fmt.Errorf("%w; give --state-dir", err)
		}
		e.dir, e.socket = set.State, set.Socket
		return e, nil
	}
	e.socket = filepath.Join(e.dir, "connector.sock")
	return e, nil
}

// proxyDialer honours HTTPS_PROXY and NO_PROXY; nil when neither is set.
func proxyDialer() control.Dialer {
	cfg := httpproxy.FromEnvironment()
	if cfg.HTTPSProxy == "" {
		return nil
	}
	return attach.NewProxyDialer(cfg, nil, nil)
}

func logger(level string) *slog.Logger {
	var l slog.Level
	_ = l.UnmarshalText([]byte(level)) // kong has checked it
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l}))
}

func fail(err error) {
	var pe *attach.ProxyError
	if errors.As(err, &pe) && pe.Status == http.StatusProxyAuthRequired {
		err = fmt.Errorf("%w: the proxy in HTTPS_PROXY wants a user and a password", err)
	}
	fmt.Fprintln(os.Stderr, "postern-connector:", explain(err))
	var ee *exitError
	if errors.As(err, &ee) {
		os.Exit(ee.code)
	}
	os.Exit(1)
}

// versionCmd prints the version.
type versionCmd struct{}

// Run prints the version.
func (versionCmd) Run(e *env) error {
	_, err := fmt.Fprintln(e.out, "postern-connector", version)
	return err
}
