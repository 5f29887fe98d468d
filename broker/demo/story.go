package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/postern-zt/postern/broker/demo/apps"
)

// People and names of the story. The passwords live as long as the demo.
const (
	ownerLogin = "olivia"
	employee   = "ann"
	suffix     = "corp.internal"
	// diskEncrypted is the fact that payroll asks for.
	diskEncrypted = "disk_encrypted"
	password      = "only-for-this-demo-4711"
	wikiURL       = "http://wiki." + suffix + "/"
	payrollURL    = "http://payroll." + suffix + "/"
)

// Exit codes of curl for a refused connection, without and with a proxy.
const (
	curlRefused      = 7
	curlProxyRefused = 97
)

// What the programs print and a person would copy.
var (
	urlLine    = regexp.MustCompile(`(?m)^\s*(https://\S+/#pin=[0-9a-f]+)\s*$`)
	ownerLine  = regexp.MustCompile(`(https://\S+/setup#\S+)`)
	tokenLine  = regexp.MustCompile(`(?m)paste this token when it asks:\n\s*(\S+)\s*$`)
	joinedLine = regexp.MustCompile(`(?m)^(Joined as .*)$`)
)

// story is the order of events.
func (d *demo) story() []step {
	return []step{
		{"A broker starts with nothing configured", d.startBroker},
		{"Two private apps stand at a site: wiki and payroll", d.startApps},
		{"Its owner opens the one-time link and sets it up", d.setUp},
		{"ann follows her invitation and chooses a password", d.acceptInvitation},
		{"A connector joins with a token that it reads from standard input, and publishes both apps", d.startConnector},
		{"An admin allows ann the wiki, and payroll from an encrypted disk only", d.allow},
		{"ann signs in through the broker's own pages", func(ctx context.Context) (string, error) { return d.door.signIn(ctx) }},
		{"ann opens the wiki by name, through the tunnel", d.openWiki},
		{"payroll is refused, with reason, remedy and receipt", d.refusePayroll},
		{"A download of ann's is cut while it runs: the admin takes the rule away", d.cutDownload},
		{"The wiki is refused from now on", d.refuseWiki},
		{"The audit verifies", d.verifyAudit},
	}
}

func (d *demo) startBroker(ctx context.Context) (string, error) {
	data := filepath.Join(d.dir, "broker")
	b, err := d.start(ctx, spec{
		on: brokerHost, name: "postern-broker", env: []string{"POSTERN_BROKER_HEALTH=off", "POSTERN_BROKER_LOG_LEVEL=warn"},
		args: []string{"run", "--data-dir", data, "--listen", d.net.broker().String()},
	})
	if err != nil {
		return "", err
	}
	d.broker = b
	if d.url, err = b.await(ctx, urlLine); err != nil {
		return "", err
	}
	if d.owner, err = b.await(ctx, ownerLine); err != nil {
		return "", err
	}
	d.admin = newAdmin(filepath.Join(data, "admin.sock"))
	return d.url, nil
}

func (d *demo) startApps(ctx context.Context) (string, error) {
	for _, app := range []struct{ name, addr string }{
		{"wiki", d.net.wiki().String()}, {"payroll", d.net.payroll().String()},
	} {
		p, err := d.start(ctx, spec{on: siteHost, name: d.cfg.Self, args: []string{"demo", "--serve-app", app.name + "=" + app.addr}})
		if err != nil {
			return "", err
		}
		if _, err := p.await(ctx, regexp.MustCompile("("+apps.Ready+")")); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("wiki at %s, payroll at %s; only the site reaches them", d.net.wiki(), d.net.payroll()), nil
}

// setUp fills in the page behind the owner link.
func (d *demo) setUp(ctx context.Context) (string, error) {
	link, code, _ := strings.Cut(d.owner, "#")
	page, err := d.browser(brokerHost).submitAt(ctx, link, map[string]string{
		"code": code, "login": ownerLogin, "password": password, "again": password, "suffix": suffix, "people": employee + " Ann Example",
	})
	if err != nil {
		return "", err
	}
	if d.invite = invitation.FindString(page.text); d.invite == "" {
		return "", errors.New("the page shows no invitation")
	}
	return "apps are named *." + suffix + "; the page shows an invitation for " + employee, nil
}

func (d *demo) acceptInvitation(ctx context.Context) (string, error) {
	link, code, _ := strings.Cut(d.invite, "#")
	_, err := d.browser(laptop).submitAt(ctx, link, map[string]string{"code": code, "password": password, "again": password})
	return "", err
}

// startConnector hands the token over on standard input, as a person pastes it.
func (d *demo) startConnector(ctx context.Context) (string, error) {
	token, err := d.broker.await(ctx, tokenLine)
	if err != nil {
		return "", err
	}
	c, err := d.start(ctx, spec{
		on: siteHost, name: "postern-connector", stdin: token + "\n",
		args: []string{
			"--state-dir", filepath.Join(d.dir, "connector"), "--log-level", "warn", "run", "--join", d.url, "--name", "demo-site",
			"--publish", "wiki=80=" + d.net.wiki().String(), "--publish", "payroll=80=" + d.net.payroll().String(),
		},
	})
	if err != nil {
		return "", err
	}
	line, err := c.await(ctx, joinedLine)
	if err != nil {
		return "", err
	}
	for _, app := range []string{"wiki", "payroll"} {
		if _, err := c.await(ctx, regexp.MustCompile(`(?m)^(Published `+app+`\.)$`)); err != nil {
			return "", err
		}
	}
	return line + " Published wiki and payroll.", d.admin.awaitConnector(ctx)
}

// allow publishes two rules. No device of the demo shows that its disk is encrypted, and
// what is unknown never counts as passed.
func (d *demo) allow(ctx context.Context) (string, error) {
	rule, err := d.admin.allow(ctx, employee, "wiki")
	if err != nil {
		return "", err
	}
	d.rule = rule.GetId()
	_, err = d.admin.allow(ctx, employee, "payroll", diskEncrypted)
	return "$ postern admin rule allow " + employee + " wiki\n$ postern admin rule allow " + employee + " payroll --require " + diskEncrypted, err
}

func (d *demo) openWiki(ctx context.Context) (string, error) {
	got, err := d.curl(ctx, wikiURL)
	if err != nil {
		return "", err
	}
	if !strings.Contains(got, apps.WikiText) {
		return "", fmt.Errorf("another page came: %.200q", got)
	}
	return "$ " + d.door.command(wikiURL) + "\n" + strings.TrimSpace(got), nil
}

// refusePayroll holds when the program is refused and the reason is known.
func (d *demo) refusePayroll(ctx context.Context) (string, error) {
	if err := d.refused(ctx, payrollURL); err != nil {
		return "", err
	}
	r, err := d.why(ctx, "payroll")
	if err != nil {
		return "", err
	}
	return "$ " + d.door.command(payrollURL) + "\n$ postern why\n" + strings.TrimSpace(r.Text) +
		"\nreceipt " + r.Receipt + ", the same in the admin's records", nil
}

func (d *demo) refuseWiki(ctx context.Context) (string, error) { return "", d.refused(ctx, wikiURL) }

// refused holds when curl says that the connection was refused: no answer, no other
// failure, and no silence.
func (d *demo) refused(ctx context.Context, url string) error {
	got, err := d.curl(ctx, url)
	if err == nil {
		return fmt.Errorf("it answered: %.200q", got)
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != curlRefused && exit.ExitCode() != curlProxyRefused {
		return fmt.Errorf("curl was not refused: %w", err)
	}
	return nil
}

func (d *demo) verifyAudit(ctx context.Context) (string, error) {
	if err := d.admin.awaitFlowRecords(ctx); err != nil {
		return "", err
	}
	v, err := d.admin.verify(ctx)
	if err != nil {
		return "", err
	}
	if !v.Ok {
		return "", fmt.Errorf("it does not: %s", v.Problem)
	}
	return fmt.Sprintf("%d records in %d signed chains (broker and connector), nothing missing, nothing changed", v.Records, len(v.Writers)), nil
}

// lastWords is what the programs wrote last about errors, for a step that failed.
func (d *demo) lastWords() error {
	var errs []error
	for _, p := range d.programs {
		if words := p.err.tail(); words != "" {
			errs = append(errs, fmt.Errorf("%s on %s wrote:\n%s", filepath.Base(p.spec.name), p.spec.on, words))
		}
	}
	return errors.Join(errs...)
}

func printIndented(w io.Writer, text string) error {
	if text == "" {
		return nil
	}
	_, err := fmt.Fprintln(w, "      "+strings.ReplaceAll(text, "\n", "\n      "))
	return err
}

// sayWhatToTry names the exact commands while the demo stays up.
func (d *demo) sayWhatToTry() {
	lines := []string{
		"It stays up until you press Ctrl-C. Try, in another terminal, first:", "",
		"  export PATH=" + d.cfg.Bin + ":$PATH " + strings.Join(d.settings(), " "), "",
		"then give ann the wiki again, and open it:", "",
		"  postern admin rule allow " + employee + " wiki",
		"  " + d.door.command(wikiURL), "",
		"see what she has, and why payroll is closed to her:", "",
		"  " + d.door.shell("postern apps"),
		"  " + d.door.shell("postern why payroll"), "",
		"and look around as an admin:", "",
		"  postern admin device list",
		"  postern admin audit search",
		"  postern admin audit verify",
	}
	fmt.Fprintln(d.cfg.Out)
	_ = printIndented(d.cfg.Out, strings.Join(lines, "\n")) // the terminal may be gone
}

// environWithout drops variables by name, and all that would configure our programs.
func environWithout(environ []string, names ...string) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return strings.HasPrefix(name, "POSTERN_") || slices.Contains(names, name)
	})
}
