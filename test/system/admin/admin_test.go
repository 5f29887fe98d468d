//go:build unix

package admin

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/postern-zt/postern/platform/ipc"
)

const (
	startTime = 30 * time.Second
	stopTime  = 20 * time.Second
	nobody    = 65534
)

// programs are built once, from the tree that the test runs in.
func programs(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "postern-admin") // that of the test is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", dir+string(filepath.Separator),
		"github.com/postern-zt/postern/client/cmd/postern", "github.com/postern-zt/postern/broker/cmd/postern-broker")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	if err := os.Chmod(dir, 0o755); err != nil { // as-nobody runs them too
		t.Fatal(err)
	}
	return dir
}

// TestScripts runs testdata. Commands of the scripts:
//
//	broker start DIR    run a broker with the data directory DIR; admin commands go to it,
//	                    $BROKER is its URL
//	broker stop         end it and wait until it has ended
//	exits N PROG ARG... run a program that must end with exit code N
//	keep REGEXP NAME    set the variable NAME to the first group found in the last output
//	as-nobody N PROG... exits, as another user; skipped without root
//	accept LINK         redeem an invitation in a browser
//	sign-in LOGIN DIR   run postern up for a device with the state directory DIR, and the
//	                    browser of LOGIN
func TestScripts(t *testing.T) {
	bin := programs(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", bin+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("POSTERN_BROKER_HEALTH", "off")
			env.Values[brokerKey] = &process{}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"broker": brokerCmd, "exits": exits, "keep": keep, "as-nobody": asNobody,
			"accept": accept, "sign-in": signIn,
		},
	})
}

// brokerURL is what a broker prints first.
var brokerURL = regexp.MustCompile(`https://127\.0\.0\.1:[0-9]+/#pin=[0-9a-f]{64}`)

// brokerKey finds the broker of a script.
const brokerKey = "broker"

// process is a running broker.
type process struct {
	cmd  *exec.Cmd
	done chan error
}

func brokerCmd(ts *testscript.TestScript, neg bool, args []string) {
	p, ok := ts.Value(brokerKey).(*process)
	switch {
	case neg || !ok || len(args) == 0:
		ts.Fatalf("usage: broker start DIR | broker stop")
	case args[0] == "start" && len(args) == 2 && p.cmd == nil:
		p.start(ts, ts.MkAbs(args[1]))
	case args[0] == "stop" && len(args) == 1 && p.cmd != nil:
		ts.Check(p.stop())
	default:
		ts.Fatalf("broker %v does not fit here", args)
	}
}

// start runs a broker and returns when its socket answers.
func (p *process) start(ts *testscript.TestScript, dir string) {
	socket := filepath.Join(dir, "admin.sock")
	ts.Setenv("POSTERN_ADMIN_SOCKET", socket)
	addr := freeAddress(ts)
	cmd := exec.Command(program(ts, "postern-broker"), "run", "--data-dir", dir, "--listen", addr, "--url", "https://"+addr)
	cmd.Env = append(os.Environ(), "POSTERN_BROKER_HEALTH=off", "HOME="+ts.Getenv("HOME"))
	logs, err := os.OpenFile(filepath.Join(ts.Getenv("WORK"), "broker.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	ts.Check(err)
	defer logs.Close()
	cmd.Stdout, cmd.Stderr = logs, logs
	ts.Check(cmd.Start())
	p.cmd, p.done = cmd, make(chan error, 1)
	go func(done chan<- error) { done <- cmd.Wait() }(p.done)
	ts.Defer(func() { _ = p.stop() })
	err = p.await(socket)
	text, _ := os.ReadFile(logs.Name())
	found := brokerURL.FindAllString(string(text), -1)
	if err != nil || len(found) == 0 {
		ts.Fatalf("broker: %v\n%s", err, text)
	}
	ts.Setenv("BROKER", found[len(found)-1])
}

// freeAddress is one that nobody used a moment ago.
func freeAddress(ts *testscript.TestScript) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	defer l.Close()
	return l.Addr().String()
}

// await returns when the socket answers or the broker has ended.
func (p *process) await(socket string) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if c, err := ipc.Dial(ctx, socket); err == nil {
			return c.Close()
		}
		select {
		case err := <-p.done:
			p.done <- err
			return fmt.Errorf("it ended: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// stop ends the broker as a service manager would. Safe twice.
func (p *process) stop() error {
	if p.cmd == nil {
		return nil
	}
	cmd := p.cmd
	p.cmd = nil
	_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	select {
	case err := <-p.done:
		return err
	case <-time.After(stopTime):
		return errors.Join(errors.New("the broker does not end"), cmd.Process.Kill(), <-p.done)
	}
}

// exits runs a program through the script, so that stdout and stderr can be looked at.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits N PROG ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	if got := codeOf(ts.Exec(args[1], args[2:]...)); got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// codeOf is -1 for a program that could not be run.
func codeOf(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	default:
		return -1
	}
}

func keep(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: keep REGEXP NAME")
	}
	found := regexp.MustCompile(args[0]).FindStringSubmatch(ts.ReadFile("stdout"))
	if len(found) != 2 {
		ts.Fatalf("nothing like %s in the output", args[0])
	}
	ts.Setenv(args[1], found[1])
}

// asNobody runs a program as a user who is neither root nor the broker's.
func asNobody(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: as-nobody N PROG ARG...")
	}
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			ts.Fatalf("another user needs root")
		}
		ts.Logf("skipped: another user needs root")
		return
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got, out := runAs(nobody, strings.Split(ts.Getenv("PATH"), string(os.PathListSeparator))[0], ts.Getenv("POSTERN_ADMIN_SOCKET"), args[1:])
	ts.Logf("%s", out)
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func runAs(uid uint32, bin, socket string, args []string) (code int, output string) {
	cmd := exec.Command(filepath.Join(bin, args[0]), args[1:]...)
	cmd.Env = []string{"POSTERN_ADMIN_SOCKET=" + socket, "HOME=/nonexistent"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	lines := make(chan string, 1)
	go func() {
		text, _ := io.ReadAll(bufio.NewReader(r)) // a pipe fails only when it is closed
		lines <- string(text)
	}()
	err := cmd.Run()
	w.Close()
	return codeOf(err), <-lines
}
