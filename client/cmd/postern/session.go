package main

import (
	"context"
	"errors"
	"fmt"

	"net/url"
	"os/exec"
	"strings"

	"golang.org/x/net/http/httpproxy"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/client"
	"github.com/postern-zt/postern/client/localapi"
	"github.com/postern-zt/postern/platform/ipc"
	"github.com/postern-zt/postern/platform/paths"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	localv1 "github.com/postern-zt/postern/proto/local/v1"
)

// with runs do against the daemon, else against this person's own running client, else
// against one that lives for this command.
func (a *app) with(ctx context.Context, do func(ctx context.Context, c *localapi.Client, daemon bool) error) error {
	if socket, ok := a.daemon(ctx); ok {
		c := localapi.NewClient(socket)
		defer c.Close()
		return do(ctx, c, true)
	}
	own, err := a.own()
	if err != nil {
		return err
	}
	c := localapi.NewClient(own.Paths.Socket)
	defer c.Close()
	if localapi.Serves(ctx, own.Paths.Socket) {
		return do(ctx, c, false)
	}
	err = client.RunAgent(ctx, own, func(ctx context.Context, _ *client.Client) error { return do(ctx, c, false) })
	if errors.Is(err, ipc.ErrInUse) { // somebody was faster
		return do(ctx, c, false)
	}
	return err
}

// daemon returns the socket of a running daemon.
func (a *app) daemon(ctx context.Context) (string, bool) {
	socket := a.Socket
	if socket == "" {
		set, err := paths.System(paths.Client, a.environ)
		if err != nil {
			return "", false
		}
		socket = set.Socket
	}
	return socket, localapi.Serves(ctx, socket)
}

// own describes this person's own client.
func (a *app) own() (client.AgentConfig, error) {
	set, err := paths.User(paths.Client, a.environ)
	if a.State != "" {
		run := a.State + "/run"
		set, err = paths.Set{State: a.State, Runtime: run, Socket: run + "/local.sock"}, nil
	}
	return client.AgentConfig{
		Paths: set, Version: version, Proxy: a.httpProxy(), Log: a.log,
		OnDenied: func(name string, r *controlv1.Receipt) {
			fmt.Fprintf(a.errOut, "postern: %s refused: %s %s (receipt %s)\n", name, r.GetReason(), r.GetRemedy(), r.GetId())
		},
	}, err
}

// httpProxy reads HTTPS_PROXY and NO_PROXY.
func (a *app) httpProxy() *httpproxy.Config {
	get := func(names ...string) string {
		for _, n := range names {
			for _, e := range a.environ {
				if v, ok := strings.CutPrefix(e, n+"="); ok && v != "" {
					return v
				}
			}
		}
		return ""
	}
	return &httpproxy.Config{HTTPSProxy: get("HTTPS_PROXY", "https_proxy"), NoProxy: get("NO_PROXY", "no_proxy")}
}

type upCmd struct {
	common

	URL        string `arg:"" optional:"" help:"The broker's URL with its pin, as an administrator gave it; the last one if omitted."`
	DeviceCode bool   `help:"Sign in with a browser on any machine."`
	Proxy      string `help:"Without the daemon: go on as a SOCKS5 proxy on this address." placeholder:"ADDR"`
}

// Run signs in.
func (u upCmd) Run(ctx context.Context, a *app) error {
	if u.Proxy != "" {
		return proxyCmd{URL: u.URL, Listen: u.Proxy, DeviceCode: u.DeviceCode}.Run(ctx, a)
	}
	return a.with(ctx, func(ctx context.Context, c *localapi.Client, daemon bool) error {
		if !daemon {
			fmt.Fprintln(a.errOut, "The daemon posternd does not run on this machine, so programs do not see the apps by themselves.")
		}
		if err := a.up(ctx, c, u.URL, u.DeviceCode); err != nil {
			return err
		}
		apps, err := c.Apps(ctx, connect.NewRequest(&localv1.AppsRequest{}))
		if err != nil {
			return err
		}
		return a.print(apps.Msg, func() {
			a.listApps(apps.Msg.Apps)
			a.suggest(apps.Msg.Apps, daemon)
		})
	})
}

// up carries the events of a sign-in to the person.
func (a *app) up(ctx context.Context, c *localapi.Client, broker string, deviceCode bool) error {
	code := deviceCode || !a.canBrowse()
	stream, err := c.Up(ctx, connect.NewRequest(&localv1.UpRequest{Url: broker, DeviceCode: code}))
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		a.event(ctx, stream.Msg())
	}
	return stream.Err()
}

func (a *app) event(ctx context.Context, e *localv1.UpEvent) {
	if e.Text != "" {
		fmt.Fprintln(a.errOut, e.Text)
	}
	if e.Url != "" {
		fmt.Fprintln(a.errOut, "\n    "+e.Url)
	}
	if e.UserCode != "" {
		fmt.Fprintln(a.errOut, "\n    code "+e.UserCode)
	}
	if e.Url != "" {
		fmt.Fprintln(a.errOut)
	}
	if e.Stage == "open" && a.env("DISPLAY")+a.env("WAYLAND_DISPLAY") != "" && isLoopbackPage(e.Url) {
		a.browse(ctx, e.Url)
	}
}

// isLoopbackPage keeps what a daemon says from starting anything but our own page.
func isLoopbackPage(page string) bool {
	u, err := url.Parse(page)
	return err == nil && u.Scheme == "http" && u.Hostname() == "127.0.0.1"
}

// browse opens the page where a desktop can; the address is printed in any case.
func (a *app) browse(ctx context.Context, page string) {
	if path, err := exec.LookPath("xdg-open"); err == nil {
		cmd := exec.CommandContext(context.WithoutCancel(ctx), path, page)
		if cmd.Start() == nil {
			go func() { _ = cmd.Wait() }() // ends with the browser's starter
		}
	}
}

// canBrowse reports whether a person with a browser is likely here: a desktop, or a
// terminal from which the printed page can be opened.
func (a *app) canBrowse() bool {
	if a.env("DISPLAY")+a.env("WAYLAND_DISPLAY") != "" {
		return true
	}
	return a.env("SSH_CONNECTION") == ""
}

func (a *app) env(name string) string {
	for _, e := range a.environ {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			return v
		}
	}
	return ""
}

// suggest prints one command to try.
func (a *app) suggest(apps []*localv1.App, daemon bool) {
	var first *localv1.App
	for _, v := range apps {
		if v.Allowed {
			first = v
			break
		}
	}
	switch {
	case first == nil:
		fmt.Fprintln(a.out, "\nNo app is allowed for you yet. Ask your administrator; postern why NAME says why.")
	case daemon:
		fmt.Fprintln(a.out, "\nTry: "+command(first, ""))
	default:
		fmt.Fprintln(a.out, "\nTry: postern proxy    and in another terminal")
		fmt.Fprintln(a.out, "     "+command(first, " -x socks5h://127.0.0.1:1080"))
	}
}

// command is a command that uses an app.
func command(v *localv1.App, curlFlags string) string {
	for _, p := range v.Ports {
		switch p {
		case "tcp/80":
			return "curl" + curlFlags + " http://" + v.Fqdn + "/"
		case "tcp/443":
			return "curl" + curlFlags + " https://" + v.Fqdn + "/"
		case "tcp/22":
			return "ssh -o ProxyCommand='postern stdio %h:%p' " + v.Fqdn
		}
	}
	for _, p := range v.Ports {
		if port, ok := strings.CutPrefix(p, "tcp/"); ok {
			port, _, _ = strings.Cut(port, "-")
			return "curl" + curlFlags + " http://" + v.Fqdn + ":" + port + "/"
		}
	}
	return "postern ping " + v.Name
}

type downCmd struct{ common }

// Run takes the apps down.
func (downCmd) Run(ctx context.Context, a *app) error {
	return a.with(ctx, func(ctx context.Context, c *localapi.Client, daemon bool) error {
		if _, err := c.Down(ctx, connect.NewRequest(&localv1.DownRequest{})); err != nil {
			return err
		}
		return a.done(daemon, "The apps are down. postern up brings them back.", "Nothing was up: the daemon does not run.")
	})
}

type logoutCmd struct {
	common

	Forget bool `help:"Without the daemon: forget the broker and the device key too."`
}

// Run ends the session.
func (l logoutCmd) Run(ctx context.Context, a *app) error {
	return a.with(ctx, func(ctx context.Context, c *localapi.Client, daemon bool) error {
		_, err := c.Logout(ctx, connect.NewRequest(&localv1.LogoutRequest{}))
		if err != nil && !l.Forget {
			return err
		}
		if l.Forget && !daemon {
			if err := a.forget(); err != nil {
				return err
			}
		}
		return a.done(true, "You are signed out.", "")
	})
}

func (a *app) done(first bool, yes, no string) error {
	text := no
	if first {
		text = yes
	}
	return a.print(map[string]string{"message": text}, func() { fmt.Fprintln(a.out, text) })
}
