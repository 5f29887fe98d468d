package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"golang.org/x/net/http/httpproxy"

	"github.com/postern-zt/postern/broker/relaynode"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/relay/attach"
	"github.com/postern-zt/postern/platform/daemon"
	"github.com/postern-zt/postern/platform/paths"
)

// maxJoinToken bounds what is read as a join token.
const maxJoinToken = 4096

// relayCmd runs a relay alone.
type relayCmd struct {
	Join      string   `help:"URL of the broker with its pin, as the broker prints it. Needed the first time." placeholder:"URL"`
	Address   []string `help:"host:port under which clients and connectors reach this relay; may be repeated. Needed the first time." placeholder:"HOST:PORT"`
	Listen    string   `help:"Address of the one TCP and the one UDP port." default:":8444" placeholder:"ADDR:PORT"`
	TokenFile string   `help:"File with the join token; - is standard input. Without it POSTERN_JOIN_TOKEN counts, then standard input." placeholder:"FILE"`
	DataDir   string   `help:"Directory of the relay's keys (default: the system's, or the user's without root)." placeholder:"DIR"`
	Name      string   `help:"Name of this relay (default: the host's name)."`
	LogLevel  string   `help:"debug, info, warn or error." default:"info" enum:"debug,info,warn,error"`
}

// Help shows an example.
func (relayCmd) Help() string {
	return "A relay of its own process forwards on while a broker restarts. Example:\n" +
		"  postern-broker relay --join https://broker.example:8443/#pin=... --address relay.example:8444 < token"
}

// Run joins if needed and relays until the process is told to end.
func (r *relayCmd) Run(e *env) error {
	dir, err := r.dir(e)
	if err != nil {
		return err
	}
	store, err := relaynode.Open(dir)
	if err != nil {
		return err
	}
	log, proxy := logger(r.LogLevel), relayProxy()
	if err := r.ensureJoined(e, store, proxy); err != nil {
		return err
	}
	raiseFiles(e.ctx, log)
	node, err := relaynode.New(e.ctx, relaynode.Config{Store: store, Listen: r.Listen, Version: version, Dialer: proxy, Log: log})
	if err != nil {
		return err
	}
	if err := daemon.Notify(os.Getenv("NOTIFY_SOCKET"), daemon.Ready); err != nil {
		log.Warn("service manager not told", "error", err)
	}
	return node.Run(e.ctx)
}

func raiseFiles(ctx context.Context, log *slog.Logger) {
	if got, err := daemon.RaiseFileLimit(wantedFiles); err != nil || got < fewFiles {
		log.WarnContext(ctx, "few open files allowed", "limit", got, "error", err)
	}
}

// dir is where the relay keeps its keys: beside those of a broker, never among them.
func (r *relayCmd) dir(e *env) (string, error) {
	if r.DataDir != "" {
		return r.DataDir, nil
	}
	set, err := paths.User(paths.Broker, e.environ)
	if os.Geteuid() == 0 {
		set, err = paths.System(paths.Broker, e.environ)
	}
	if err != nil {
		return "", fmt.Errorf("%w; give --data-dir", err)
	}
	return filepath.Join(filepath.Dir(set.State), "relay"), nil
}

// relayProxy honours HTTPS_PROXY and NO_PROXY; nil when neither is set.
func relayProxy() control.Dialer {
	cfg := httpproxy.FromEnvironment()
	if cfg.HTTPSProxy == "" {
		return nil
	}
	return attach.NewProxyDialer(cfg, nil, nil)
}

// ensureJoined redeems a token unless this machine is a relay of the broker already.
func (r *relayCmd) ensureJoined(e *env, store *relaynode.Store, proxy control.Dialer) error {
	m, err := store.Load()
	if err == nil {
		return m.Same(r.Join, r.Address)
	}
	if !errors.Is(err, relaynode.ErrNotJoined) {
		return err
	}
	if r.Join == "" {
		return fmt.Errorf("%w; start it once with --join URL --address HOST:PORT", err)
	}
	if err := relaynode.CheckAddresses(r.Address); err != nil {
		return fmt.Errorf("--address: %w", err)
	}
	token, err := r.token(os.Stdin)
	if err != nil {
		return err
	}
	name := r.Name
	if name == "" {
		name, _ = os.Hostname() // the broker refuses an empty name with a reason
	}
	joined, err := store.Join(e.ctx, relaynode.Join{
		URL: r.Join, Token: token, Name: name, Addresses: r.Address, Version: version, Dialer: proxy,
	})
	if err != nil {
		return fmt.Errorf("join: %w", plain(err))
	}
	_, err = fmt.Fprintf(e.out, "Joined as %s.\n", joined.Relay)
	return err
}

// plain gives the broker's sentence instead of the RPC's wrapping.
func plain(err error) error {
	var ce *connect.Error
	if errors.As(err, &ce) && connect.IsWireError(err) {
		return errors.New(ce.Message())
	}
	return err
}

// token reads the join token from a file, the environment or standard input, never from
// the command line, where every user of the machine could see it.
func (r *relayCmd) token(stdin io.Reader) (string, error) {
	switch env := os.Getenv("POSTERN_JOIN_TOKEN"); {
	case r.TokenFile != "" && r.TokenFile != "-":
		return tokenFromFile(r.TokenFile)
	case r.TokenFile == "" && env != "":
		return strings.TrimSpace(env), nil
	}
	fmt.Fprintln(os.Stderr, "Paste the join token, then Enter:")
	line, err := bufio.NewReader(io.LimitReader(stdin, maxJoinToken)).ReadString('\n')
	if err != nil && line == "" {
		return "", errors.New("no join token: give --token-file, POSTERN_JOIN_TOKEN or standard input")
	}
	return strings.TrimSpace(line), nil
}

func tokenFromFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", fmt.Errorf("join token: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxJoinToken))
	if err != nil {
		return "", fmt.Errorf("join token: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
