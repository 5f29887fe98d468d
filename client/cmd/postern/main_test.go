package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"go.uber.org/goleak"

	"github.com/postern-zt/postern/client"
	"github.com/postern-zt/postern/client/tunnels"
	"github.com/postern-zt/postern/platform/ipc"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	localv1 "github.com/postern-zt/postern/proto/local/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// unused is a URL at which nobody answers.
const unused = "https://127.0.0.1:1/#pin=" + "00000000000000000000000000000000000000000000000000000000000000aa"

type result struct {
	code     int
	out, err string
}

func execute(t *testing.T, args ...string) result {
	t.Helper()
	var out, errOut bytes.Buffer
	dir := t.TempDir()
	environ := []string{"HOME=" + dir, "POSTERN_SOCKET=" + filepath.Join(dir, "none"), "POSTERN_STATE=" + filepath.Join(dir, "state")}
	for _, e := range environ { // kong reads the process's own environment
		k, v, _ := strings.Cut(e, "=")
		t.Setenv(k, v)
	}
	code := run(t.Context(), args, environ, strings.NewReader(""), &out, &errOut)
	return result{code, out.String(), errOut.String()}
}

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		code int
		say  string
	}{
		{"help", []string{"--help"}, exitOK, ""},
		{"version", []string{"version"}, exitOK, ""},
		{"no command", []string{"nothing"}, exitUsage, "postern --help"},
		{"unknown flag", []string{"apps", "--all"}, exitUsage, "--all"},
		{"nobody signed in: apps", []string{"apps"}, exitSignedOut, "postern up URL"},
		{"nobody signed in: stdio", []string{"stdio", "wiki"}, exitSignedOut, "postern up URL"},
		{"nobody signed in: ping", []string{"ping", "wiki"}, exitSignedOut, "postern up URL"},
		{"nobody signed in: why", []string{"why"}, exitSignedOut, "postern up URL"},
		{"nobody signed in: logout", []string{"logout"}, exitSignedOut, "postern up URL"},
		{"up without URL", []string{"up"}, exitSignedOut, "postern up URL"},
		{"proxy without URL", []string{"proxy", "--listen", "127.0.0.1:0"}, exitSignedOut, "postern proxy URL"},
		{"broken URL", []string{"up", "https://broker.example/"}, exitError, "the part after #"},
		{"no broker", []string{"up", unused}, exitUnreachable, "cannot be reached"},
		{"no broker for the proxy", []string{"proxy", "--listen", "127.0.0.1:0", unused}, exitUnreachable, "cannot be reached"},
		{"proxy for everybody", []string{"proxy", "--listen", "0.0.0.0:0", unused}, exitError, "loopback"},
	} {
		r := execute(t, c.args...)
		if r.code != c.code || !strings.Contains(r.err, c.say) {
			t.Errorf("%s: exit %d, %q; want %d, ...%q...", c.name, r.code, r.err, c.code, c.say)
		}
	}
}

func TestStatusWithoutDaemon(t *testing.T) {
	r := execute(t, "status", "--json")
	var st struct{ State string }
	if err := json.Unmarshal([]byte(r.out), &st); err != nil || st.State != "signed_out" || r.code != 0 {
		t.Errorf("exit %d, %q, %v", r.code, r.out, err)
	}
}

func TestEveryCommandHasAnExample(t *testing.T) {
	for _, name := range []string{"up", "down", "logout", "status", "apps", "why", "ping", "stdio", "proxy", "version"} {
		if r := execute(t, name, "--help"); r.code != 0 || !strings.Contains(r.out, "Example") || !strings.Contains(r.out, "postern "+name) {
			t.Errorf("%s: %q", name, r.out)
		}
	}
}

func TestErrorsGetTheirCode(t *testing.T) {
	receipt := &controlv1.Receipt{Id: "K7M2-Q4TX", AppName: "payroll", Reason: "No rule.", Remedy: "Ask ann.", Contact: "ann"}
	for err, want := range map[error]int{
		errors.New("x"):                                                   exitError,
		&tunnels.DeniedError{Receipt: receipt}:                            exitDenied,
		fmt.Errorf("x: %w", client.ErrNotSignedIn):                        exitSignedOut,
		fmt.Errorf("x: %w", tunnels.ErrBroker):                            exitUnreachable,
		ipc.ErrNotRunning:                                                 exitUnreachable,
		connect.NewError(connect.CodeUnavailable, errors.New("x")):        exitUnreachable,
		connect.NewError(connect.CodeFailedPrecondition, errors.New("x")): exitSignedOut,
		connect.NewError(connect.CodePermissionDenied, errors.New("no")):  exitError,
	} {
		if got := classify(err); got.Code != want {
			t.Errorf("%v: %d, want %d", err, got.Code, want)
		}
	}
	var errOut bytes.Buffer
	a := &app{errOut: &errOut}
	if code := a.report(&tunnels.DeniedError{Receipt: receipt}); code != exitDenied {
		t.Errorf("exit %d", code)
	}
	for _, want := range []string{"payroll", "No rule.", "Ask ann.", "K7M2-Q4TX"} {
		if !strings.Contains(errOut.String(), want) {
			t.Errorf("%q lacks %q", errOut.String(), want)
		}
	}
}

func TestSuggestionFitsTheApp(t *testing.T) {
	for ports, want := range map[string]string{
		"tcp/80":          "curl http://a.corp/",
		"tcp/443":         "curl https://a.corp/",
		"tcp/22":          "ssh -o ProxyCommand='postern stdio %h:%p' a.corp",
		"tcp/8000-8010":   "curl http://a.corp:8000/",
		"udp/53 tcp/5432": "curl http://a.corp:5432/",
		"udp/53":          "postern ping a",
	} {
		v := &localv1.App{Name: "a", Fqdn: "a.corp", Ports: strings.Fields(ports)}
		if got := command(v, ""); got != want {
			t.Errorf("%s: %q, want %q", ports, got, want)
		}
	}
}

func TestOnlyOurOwnPageIsOpened(t *testing.T) {
	for page, want := range map[string]bool{
		"http://127.0.0.1:4711/start/X": true,
		"https://evil.example/":         false,
		"file:///etc/passwd":            false,
		"http://127.0.0.1.evil.example": false,
		"":                              false,
	} {
		if got := isLoopbackPage(page); got != want {
			t.Errorf("%q: %v", page, got)
		}
	}
}

func TestStatusSaysHowToGetAProxy(t *testing.T) {
	if r := execute(t, "status"); !strings.Contains(r.out, "run: postern proxy URL") {
		t.Errorf("%q", r.out)
	}
	for want, got := range map[string]string{
		"serves the apps on 127.0.0.1:1080": proxyLine("up", "127.0.0.1:1080"),
		"does not run; run: postern proxy":  proxyLine("up", ""),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
