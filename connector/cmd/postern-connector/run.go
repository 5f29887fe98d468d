package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"connectrpc.com/connect"
	"golang.org/x/term"

	"github.com/postern-zt/postern/connector"
	"github.com/postern-zt/postern/connector/enroll"
	"github.com/postern-zt/postern/connector/uplink"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/platform/daemon"
)

// wantedFiles is the limit on open files that a busy connector needs: one per flow.
const wantedFiles = 1 << 16

// fewFiles is too little to serve an office.
const fewFiles = 4096

// maxToken bounds what is read as a join token.
const maxToken = 4096

// runCmd joins and serves.
type runCmd struct {
	Join      string   `help:"URL of the broker with its pin, as the broker prints it. Needed the first time." placeholder:"URL"`
	TokenFile string   `help:"File with the join token; - is standard input. Without it POSTERN_JOIN_TOKEN counts, then standard input." placeholder:"FILE"`
	Name      string   `help:"Name of this connector (default: the host's name)."`
	Publish   []string `help:"App to publish, as wiki=10.0.0.5:80 or dns=10.0.0.2:53/udp; may be repeated." placeholder:"NAME=HOST:PORT" sep:"none"`
}

// Help shows an example.
func (runCmd) Help() string {
	return "Example:\n  postern-connector run --join https://broker.example:8443/#pin=... --publish wiki=10.0.0.5:80 < token"
}

// Run joins if needed and serves until the process is told to end.
func (r *runCmd) Run(e *env) error {
	store, err := enroll.Open(e.dir)
	if err != nil {
		return err
	}
	if err := r.ensureJoined(e, store); err != nil {
		return err
	}
	if got, err := daemon.RaiseFileLimit(wantedFiles); err != nil || got < fewFiles {
		e.log.Warn("few open files allowed", "limit", got, "error", err)
	}
	c, err := connector.New(connector.Config{Store: store, Version: version, Dialer: e.proxy, Socket: e.socket, Log: e.log})
	if err != nil {
		return err
	}
	if err := daemon.Notify(os.Getenv("NOTIFY_SOCKET"), daemon.Ready); err != nil {
		e.log.Warn("service manager not told", "error", err)
	}
	return c.Run(e.ctx)
}

// ensureJoined redeems a token unless this machine is a member of the broker already.
func (r *runCmd) ensureJoined(e *env, store *enroll.Store) error {
	publish, err := parsePublish(r.Publish)
	if err != nil {
		return err
	}
	m, err := store.Load()
	if err == nil {
		if err := r.already(m); err != nil {
			return err
		}
		propose(e, store, m, publish)
		return nil
	}
	if !errors.Is(err, enroll.ErrNotJoined) {
		return err
	}
	if r.Join == "" {
		return fmt.Errorf("%w; start it once with --join URL", err)
	}
	token, err := r.token(e)
	if err != nil {
		return err
	}
	name := r.Name
	if name == "" {
		name, _ = os.Hostname()
	}
	joined, results, err := store.Join(e.ctx, enroll.Join{
		URL: r.Join, Token: token, Name: name, Version: version, Publish: publish, Dialer: e.proxy,
	})
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	fmt.Fprintf(e.out, "Joined as %s at site %s.\n", joined.Connector, joined.SiteName)
	e.tellPublished(results)
	return nil
}

// already checks that a repeated --join names the broker that this machine belongs to.
func (r *runCmd) already(m enroll.Membership) error {
	if r.Join == "" {
		return nil
	}
	want, err := control.ParseURL(r.Join)
	if err != nil {
		return err
	}
	have, err := m.Broker()
	if err != nil {
		return err
	}
	if want.Pin != have.Pin {
		return fmt.Errorf("%w (%s); run `postern-connector leave` first, or give another --state-dir", enroll.ErrOtherBroker, have.Address)
	}
	return nil
}

// token reads the join token from a file, the environment or standard input, never from
// the command line, where every user of the machine could see it.
func (r *runCmd) token(e *env) (string, error) {
	switch {
	case r.TokenFile != "" && r.TokenFile != "-":
		b, err := os.ReadFile(r.TokenFile)
		if err != nil {
			return "", fmt.Errorf("join token: %w", err)
		}
		return strings.TrimSpace(string(b[:min(len(b), maxToken)])), nil
	case r.TokenFile == "" && e.token != "":
		return strings.TrimSpace(e.token), nil
	}
	if f, ok := e.stdin.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprintln(os.Stderr, "Paste the join token, then Enter:")
	}
	line, err := bufio.NewReader(io.LimitReader(e.stdin, maxToken)).ReadString('\n')
	if err != nil && line == "" {
		return "", errors.New("no join token: give --token-file, POSTERN_JOIN_TOKEN or standard input")
	}
	return strings.TrimSpace(line), nil
}

// explain adds to an error what a person can do about it.
func explain(err error) string {
	var ce *connect.Error
	switch {
	case errors.Is(err, uplink.ErrRemoved):
		return "An administrator removed this connector. To join again: get a token (postern admin token add), run postern-connector leave, then run --join URL"
	case errors.Is(err, control.ErrClock), errors.Is(err, uplink.ErrClock):
		return err.Error() + " (timedatectl set-ntp true)"
	case errors.Is(err, control.ErrPin):
		return err.Error() + "; compare the URL with what the broker printed, or a firewall intercepts TLS"
	case errors.Is(err, context.DeadlineExceeded):
		return err.Error() + "; is the broker's TCP port reachable from here?"
	case errors.As(err, &ce):
		return ce.Message()
	default:
		return err.Error()
	}
}
