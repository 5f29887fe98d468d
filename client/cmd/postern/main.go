// Command postern is the client's command line: it talks to the daemon on this machine, or
// does without it, as an ordinary user, through a SOCKS proxy or stdio.
//
// Exit codes: 0 done, 1 error, 2 wrong usage, 3 access denied (reason, remedy and receipt
// are printed), 4 not signed in, 5 the broker or the daemon cannot be reached.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/postern-zt/postern/client/admincli"
)

// version is set by the build.
var version = "dev"

const description = `Reach private apps by name.

  postern up https://broker.example:8443/#pin=...    sign in
  postern apps                                       what you may reach
  postern why payroll                                why not
  postern proxy                                      without root, for curl, browsers, ssh

Exit codes: 0 done, 1 error, 2 wrong usage, 3 access denied, 4 not signed in,
5 broker or daemon not reachable.`

// cli is the command line. No secret is ever an argument.
type cli struct {
	Up      upCmd          `cmd:"" help:"Sign in and bring the apps up." example:"postern up 'https://10.0.0.1:8443/#pin=3f1c...'"`
	Down    downCmd        `cmd:"" help:"Take the apps down; the session stays." example:"postern down"`
	Logout  logoutCmd      `cmd:"" help:"End the session." example:"postern logout"`
	Status  statusCmd      `cmd:"" help:"Show session, links and facts." example:"postern status --json"`
	Apps    appsCmd        `cmd:"" help:"List the apps." example:"postern apps"`
	Why     whyCmd         `cmd:"" help:"Explain an app, a receipt or the latest failure." example:"postern why payroll"`
	Ping    pingCmd        `cmd:"" help:"Measure the way to an app leg by leg." example:"postern ping wiki"`
	Stdio   stdioCmd       `cmd:"" help:"Join standard input and output to an app." example:"ssh -o ProxyCommand='postern stdio %h:%p' git.corp.internal"`
	Proxy   proxyCmd       `cmd:"" help:"Serve the apps as a SOCKS5 proxy, without root and daemon." example:"postern proxy; curl -x socks5h://127.0.0.1:1080 http://wiki.corp.internal/"`
	Admin   admincli.Admin `cmd:"" help:"Administer a broker."`
	Version versionCmd     `cmd:"" help:"Print the version." example:"postern version"`
}

// common are the flags of every command but admin, which has its own.
type common struct {
	Socket string `help:"Socket of the daemon." env:"POSTERN_SOCKET" placeholder:"PATH"`
	State  string `help:"Directory of a client without the daemon." env:"POSTERN_STATE" placeholder:"DIR"`
	JSON   bool   `help:"Print JSON." name:"json"`
	Debug  bool   `help:"Log what happens to standard error."`
}

// AfterApply hands the flags of the chosen command on.
func (c common) AfterApply(a *app) error {
	a.common, a.log = c, newLog(a.errOut, c.Debug)
	return nil
}

// app is what every command gets.
type app struct {
	common
	environ []string
	out     io.Writer
	errOut  io.Writer
	in      io.Reader
	log     *slog.Logger
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run parses and runs one command and returns its exit code.
func run(ctx context.Context, args, environ []string, in io.Reader, out, errOut io.Writer) int {
	var c cli
	a := &app{environ: environ, in: in, out: out, errOut: errOut, log: newLog(errOut, false)}
	exited := -1
	parser, err := kong.New(&c, kong.Name("postern"), kong.Description(description), admincli.Examples(),
		kong.Writers(out, errOut), kong.Exit(func(code int) { exited = code }),
		kong.BindTo(ctx, (*context.Context)(nil)), kong.Bind(a), kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}))
	if err != nil {
		fmt.Fprintln(errOut, "postern:", err)
		return exitError
	}
	parsed, err := parser.Parse(args)
	if exited >= 0 {
		return exited
	}
	if err != nil {
		fmt.Fprintf(errOut, "postern: %v\nRun: postern --help\n", err)
		return exitUsage
	}
	if strings.HasPrefix(parsed.Command(), "admin ") {
		admincli.Bind(ctx, parsed, &admincli.Env{Environ: environ, In: in, Out: out})
		return a.adminExit(parsed.Run())
	}
	return a.report(parsed.Run())
}

// adminExit prints an error of the admin commands, which have exit codes of their own.
func (a *app) adminExit(err error) int {
	if err != nil {
		fmt.Fprintln(a.errOut, "postern:", err)
	}
	return admincli.ExitCode(err)
}

func newLog(w io.Writer, debug bool) *slog.Logger {
	level := slog.LevelError
	if debug {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

type versionCmd struct{ common }

// Run prints the version.
func (versionCmd) Run(a *app) error {
	return a.print(map[string]string{"version": version}, func() { fmt.Fprintln(a.out, "postern", version) })
}
