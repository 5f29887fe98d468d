package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/client"
	"github.com/postern-zt/postern/client/localapi"
	"github.com/postern-zt/postern/client/proxy"
	"github.com/postern-zt/postern/platform/ipc"
	localv1 "github.com/postern-zt/postern/proto/local/v1"
)

type proxyCmd struct {
	common

	URL        string `arg:"" optional:"" help:"The broker's URL with its pin, for the first time."`
	Listen     string `help:"Loopback address to listen on." default:"127.0.0.1:1080"`
	DeviceCode bool   `help:"Sign in with a browser on any machine."`
}

// Run serves the proxy until it is interrupted; it signs in first if nobody is.
func (p proxyCmd) Run(ctx context.Context, a *app) error {
	own, err := a.own()
	if err != nil {
		return err
	}
	err = client.RunAgent(ctx, own, func(ctx context.Context, c *client.Client) error {
		api := localapi.NewClient(own.Paths.Socket)
		defer api.Close()
		server, err := proxy.Listen(ctx, proxy.Config{
			Listen: p.Listen, Opener: c, Reply: client.SOCKSReply, Admit: client.AdmitUser(uint32(os.Getuid())), Log: a.log,
		})
		if err != nil {
			return err
		}
		defer server.Close()
		if err := a.up(ctx, api, p.URL, p.DeviceCode); p.URL == "" && connect.CodeOf(err) == connect.CodeFailedPrecondition {
			return connect.NewError(connect.CodeFailedPrecondition, errors.New("nobody is signed in on this device; run: postern proxy URL"))
		} else if err != nil {
			return err
		}
		apps, err := api.Apps(ctx, connect.NewRequest(&localv1.AppsRequest{}))
		if err != nil {
			return err
		}
		a.listApps(apps.Msg.Apps)
		note := proxyNote(own)
		if err := os.WriteFile(note, []byte(server.Addr().String()), 0o600); err != nil {
			return err
		}
		defer os.Remove(note)
		fmt.Fprintf(a.out, "\nSOCKS5 proxy on %s. Try: %s\n", server.Addr(), tryProxy(apps.Msg.Apps, server.Addr().String()))
		return server.Run(ctx)
	})
	if errors.Is(err, ipc.ErrInUse) {
		return errors.New("another postern of yours serves already; end it first")
	}
	return err
}

// proxyNote is the file in which a running proxy says where it listens; only this person
// can write there.
func proxyNote(own client.AgentConfig) string { return filepath.Join(own.Paths.Runtime, "proxy") }

// proxyAddress is where this person's proxy listens, empty when none runs.
func (a *app) proxyAddress(ctx context.Context) string {
	own, err := a.own()
	if err != nil || !localapi.Serves(ctx, own.Paths.Socket) {
		return ""
	}
	text, err := os.ReadFile(proxyNote(own))
	if err != nil {
		return ""
	}
	addr, err := netip.ParseAddrPort(string(text))
	if err != nil {
		return ""
	}
	return addr.String()
}

func tryProxy(apps []*localv1.App, addr string) string {
	for _, v := range apps {
		if v.Allowed {
			return command(v, " -x socks5h://"+addr)
		}
	}
	return "postern apps"
}

type stdioCmd struct {
	common

	App string `arg:"" help:"The app, with a port unless it has one only."`
}

// Run joins standard input and output to the app.
func (s stdioCmd) Run(ctx context.Context, a *app) error {
	return a.with(ctx, func(ctx context.Context, c *localapi.Client, _ bool) error {
		name, port, err := a.endpoint(ctx, c, s.App)
		if err != nil {
			return err
		}
		conn, err := c.OpenTCP(ctx, name, port)
		if err != nil {
			return err
		}
		defer conn.Close()
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		defer stop()
		return join(conn, a.in, a.out)
	})
}

// endpoint reads APP[:port]; without a port the app's first TCP port counts.
func (a *app) endpoint(ctx context.Context, c *localapi.Client, text string) (string, uint16, error) {
	apps, err := c.Apps(ctx, connect.NewRequest(&localv1.AppsRequest{}))
	if err != nil {
		return "", 0, err
	}
	if host, p, err := net.SplitHostPort(text); err == nil {
		port, err := strconv.ParseUint(p, 10, 16)
		if err != nil || port == 0 {
			return "", 0, fmt.Errorf("%q is no port", p)
		}
		return host, uint16(port), nil
	}
	for _, v := range apps.Msg.Apps {
		if !strings.EqualFold(v.Name, text) && !strings.EqualFold(v.Fqdn, text) {
			continue
		}
		for _, p := range v.Ports {
			first, _, _ := strings.Cut(strings.TrimPrefix(p, "tcp/"), "-")
			if port, err := strconv.ParseUint(first, 10, 16); err == nil && strings.HasPrefix(p, "tcp/") {
				return text, uint16(port), nil
			}
		}
	}
	return "", 0, fmt.Errorf("give the port: %s:PORT", text)
}

// join copies both ways. It ends with the app's side: what the app has still to say after
// our input ended is printed.
func join(conn net.Conn, in io.Reader, out io.Writer) error {
	go func() { // ends with the process: a read of standard input cannot be interrupted
		_, err := io.Copy(conn, in)
		if half, ok := conn.(interface{ CloseWrite() error }); ok && err == nil {
			_ = half.CloseWrite()
		}
	}()
	_, err := io.Copy(out, conn)
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
