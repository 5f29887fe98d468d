package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
)

const (
	// maxOutput bounds what is kept of a program's output.
	maxOutput = 1 << 20
	tailLines = 6
)

// place is where the programs of one machine run.
type place struct {
	// prefix stands before each command; empty on this machine itself.
	prefix []string
	dial   func(ctx context.Context, network, addr string) (net.Conn, error)
}

// command prepares a program there.
func (p place) command(name string, args ...string) *exec.Cmd {
	line := append(slices.Clone(p.prefix), append([]string{name}, args...)...)
	return exec.Command(line[0], line[1:]...)
}

// shell is the command as a person types it.
func (p place) shell(line string) string {
	return strings.TrimSpace(strings.Join(p.prefix, " ") + " " + line)
}

// spec says which program to start where.
type spec struct {
	on    machine
	name  string
	args  []string
	env   []string
	stdin string
}

// program is a running process with its terminal.
type program struct {
	spec spec
	cmd  *exec.Cmd
	out  *terminal
	err  *terminal
	done chan struct{}
}

// start runs a program until stop. Names without a path are those of the product.
func (d *demo) start(_ context.Context, s spec) (*program, error) {
	path := s.name
	if !strings.Contains(path, string(filepath.Separator)) {
		path = filepath.Join(d.cfg.Bin, path)
	}
	p := &program{spec: s, out: newTerminal(), err: newTerminal(), done: make(chan struct{})}
	p.cmd = d.net.place(s.on).command(path, s.args...)
	p.cmd.Env = append(d.environ(s.on), s.env...)
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Stdin = p.out, p.err, strings.NewReader(s.stdin)
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	d.programs = append(d.programs, p)
	go func() { // stop waits for done
		defer close(p.done)
		_ = p.cmd.Wait() // an early end shows in await
	}()
	return p, nil
}

// environ is the environment of a machine: a home of its own, and no desktop on which a
// browser could be opened.
func (d *demo) environ(on machine) []string {
	env := environWithout(d.cfg.Environ, "DISPLAY", "WAYLAND_DISPLAY", "BROWSER", "SSH_CONNECTION", "NOTIFY_SOCKET",
		"HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy", "all_proxy", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME")
	return append(append(env, "HOME="+filepath.Join(d.dir, string(on))), d.settings()...)
}

// settings lead the commands to the demo's programs instead of the machine's.
func (d *demo) settings() []string {
	return []string{
		"POSTERN_STATE=" + filepath.Join(d.dir, "client"), "POSTERN_SOCKET=" + filepath.Join(d.dir, daemonSocket),
		"POSTERN_ADMIN_SOCKET=" + filepath.Join(d.dir, "broker", "admin.sock"),
	}
}

// await returns the first group of what the program prints that matches.
func (p *program) await(ctx context.Context, what *regexp.Regexp) (string, error) {
	return p.awaitIn(ctx, p.out, what)
}

// awaitIn is await for one of the program's two outputs.
func (p *program) awaitIn(ctx context.Context, t *terminal, what *regexp.Regexp) (string, error) {
	for {
		text, changed := t.look()
		if m := what.FindStringSubmatch(text); m != nil {
			return m[1], nil
		}
		select {
		case <-changed:
		case <-p.done:
			if text, _ := t.look(); what.MatchString(text) {
				continue
			}
			return "", fmt.Errorf("%s ended: %v", filepath.Base(p.spec.name), p.cmd.ProcessState)
		case <-ctx.Done():
			return "", fmt.Errorf("%s did not print %s: %w", filepath.Base(p.spec.name), what, context.Cause(ctx))
		}
	}
}

// serves reports whether the program, which must not have ended, has made its socket.
func (p *program) serves(socket string) (bool, error) {
	select {
	case <-p.done:
		return false, fmt.Errorf("%s ended: %v", filepath.Base(p.spec.name), p.cmd.ProcessState)
	default:
	}
	_, err := os.Stat(socket)
	return err == nil, nil
}

// finish waits until the program has ended well and returns what it printed.
func (p *program) finish(ctx context.Context) (string, error) {
	select {
	case <-p.done:
	case <-ctx.Done():
		return "", fmt.Errorf("%s does not end: %w", filepath.Base(p.spec.name), context.Cause(ctx))
	}
	text, _ := p.out.look()
	if !p.cmd.ProcessState.Success() {
		return text, fmt.Errorf("%s: %v", filepath.Base(p.spec.name), p.cmd.ProcessState)
	}
	return text, nil
}

// stop asks the program to end and waits; when ctx ends it is killed.
func (p *program) stop(ctx context.Context) {
	if p.cmd.Process.Signal(os.Interrupt) != nil {
		_ = p.cmd.Process.Kill() // it has ended, or the system knows no interrupt
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// run runs a program to its end and returns what it printed.
func (d *demo) run(ctx context.Context, on machine, name string, args ...string) (string, error) {
	cmd := d.net.place(on).command(name, args...)
	cmd.Env = d.environ(on)
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Start(); err != nil {
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() }) // it may have ended
	defer stop()
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", filepath.Base(name), err, strings.TrimSpace(problems.String()))
	}
	return out.String(), nil
}

// needs says which program of the system is missing.
func needs(name string) error {
	if _, err := exec.LookPath(name); err != nil {
		return fmt.Errorf("the demo uses %s, which is not installed", name)
	}
	return nil
}

// terminal keeps what a program prints. It is safe for concurrent use.
type terminal struct {
	mu      sync.Mutex // guards the fields below
	text    []byte
	changed chan struct{} // closed and replaced when text grows
}

var errFull = errors.New("the program prints too much")

func newTerminal() *terminal { return &terminal{changed: make(chan struct{})} }

// Write keeps p.
func (t *terminal) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.text)+len(p) > maxOutput {
		return 0, errFull
	}
	t.text = append(t.text, p...)
	close(t.changed)
	t.changed = make(chan struct{})
	return len(p), nil
}

// look returns the text and a channel that is closed when there is more.
func (t *terminal) look() (string, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text), t.changed
}

// tail returns the last lines.
func (t *terminal) tail() string {
	text, _ := t.look()
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-tailLines):], "\n")
}
