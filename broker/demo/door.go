package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
)

// door is the employee's way to the apps: the proxy, or the tunnel interface.
type door interface {
	// signIn starts the client and signs ann in.
	signIn(ctx context.Context) (string, error)
	// curlArgs are what curl needs to use this door.
	curlArgs() []string
	// command is how a person opens a page through this door, from any terminal.
	command(url string) string
	// shell is a command of ann's as a person types it.
	shell(line string) string
}

// daemonSocket is where the daemon of the laptop answers, below the demo's directory.
const daemonSocket = "posternd.sock"

// What the client prints.
var (
	startPage = regexp.MustCompile(`(http://127\.0\.0\.1:\d+/start/\S+)`)
	proxyLine = regexp.MustCompile(`SOCKS5 proxy on (127\.0\.0\.1:\d+)`)
)

// fillIn signs ann in on the page that the client asked her to open.
func (d *demo) fillIn(ctx context.Context, page string) error {
	b := d.browser(laptop)
	login, err := b.open(ctx, page)
	if err != nil {
		return err
	}
	done, err := b.submit(ctx, login, map[string]string{"login": employee, "password": password})
	if err != nil {
		return err
	}
	if !strings.Contains(done.text, "You are signed in") {
		return fmt.Errorf("the page says: %.200s", done.text)
	}
	return nil
}

// curl opens a page as ann's program would.
func (d *demo) curl(ctx context.Context, url string) (string, error) {
	return d.run(ctx, laptop, "curl", append(d.door.curlArgs(), "--silent", "--show-error", "--max-time", "20", url)...)
}

// refusal is what `postern why` says about an app.
type refusal struct {
	Text    string `json:"text"`
	Receipt string `json:"receipt"`
	Verdict string `json:"verdict"`
	Reason  string `json:"reason"`
	Remedy  string `json:"remedy"`
}

// why asks the client about the latest refusal, then the admin for the same receipt.
func (d *demo) why(ctx context.Context, app string) (refusal, error) {
	out, err := d.run(ctx, laptop, filepath.Join(d.cfg.Bin, "postern"), "why", "--json")
	if err != nil {
		return refusal{}, err
	}
	var r refusal
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return refusal{}, fmt.Errorf("postern why: %w", err)
	}
	if r.Receipt == "" || r.Reason == "" || r.Remedy == "" {
		return refusal{}, fmt.Errorf("the answer lacks a reason, a remedy or a receipt: %s", out)
	}
	kept, err := d.admin.decision(ctx, r.Receipt)
	if err != nil {
		return refusal{}, fmt.Errorf("receipt %s: %w", r.Receipt, err)
	}
	if kept.Verdict != "deny" || kept.App != app || kept.User != employee {
		return refusal{}, fmt.Errorf("receipt %s stands for %s of %s at %s", r.Receipt, kept.Verdict, kept.User, kept.App)
	}
	return r, nil
}

// proxyDoor is the SOCKS proxy of an ordinary user.
type proxyDoor struct {
	*demo
	addr string
}

var _ door = (*proxyDoor)(nil)

func (p *proxyDoor) signIn(ctx context.Context) (string, error) {
	port, err := freePort()
	if err != nil {
		return "", err
	}
	c, err := p.start(ctx, spec{on: laptop, name: "postern", args: []string{"proxy", p.url, "--listen", port.String()}})
	if err != nil {
		return "", err
	}
	page, err := c.awaitIn(ctx, c.err, startPage)
	if err != nil {
		return "", err
	}
	if err := p.fillIn(ctx, page); err != nil {
		return "", err
	}
	p.addr, err = c.await(ctx, proxyLine)
	return "postern proxy serves " + p.addr, err
}

func (p *proxyDoor) curlArgs() []string { return []string{"--socks5-hostname", p.addr} }

func (p *proxyDoor) command(url string) string { return "curl --socks5-hostname " + p.addr + " " + url }

func (p *proxyDoor) shell(line string) string { return line }

// tunnelDoor is the tunnel interface of the daemon, in the laptop's namespace.
type tunnelDoor struct{ *demo }

var _ door = (*tunnelDoor)(nil)

// signIn starts the daemon, and `postern up` as ann types it.
func (t *tunnelDoor) signIn(ctx context.Context) (string, error) {
	socket := filepath.Join(t.dir, daemonSocket)
	daemon, err := t.start(ctx, spec{on: laptop, name: "posternd", args: []string{"run"}, env: []string{
		"POSTERN_CLIENT_STATE_DIR=" + filepath.Join(t.dir, "laptop"), "POSTERN_CLIENT_SOCKET=" + socket,
		"POSTERN_CLIENT_DNS_BUS=none", "POSTERN_CLIENT_LOG_LEVEL=warn",
	}})
	if err != nil {
		return "", err
	}
	if err := until(ctx, "the daemon does not serve its socket", func() (bool, error) { return daemon.serves(socket) }); err != nil {
		return "", err
	}
	up, err := t.start(ctx, spec{on: laptop, name: "postern", args: []string{"up", t.url}})
	if err != nil {
		return "", err
	}
	page, err := up.awaitIn(ctx, up.err, startPage)
	if err != nil {
		return "", err
	}
	if err := t.fillIn(ctx, page); err != nil {
		return "", err
	}
	said, err := up.finish(ctx)
	return "$ postern up " + t.url + "\n" + strings.TrimSpace(said), err
}

func (t *tunnelDoor) curlArgs() []string { return nil }

func (t *tunnelDoor) command(url string) string { return t.net.place(laptop).shell("curl " + url) }

func (t *tunnelDoor) shell(line string) string { return t.net.place(laptop).shell(line) }
