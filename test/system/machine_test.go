//go:build linux

package system

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-zt/postern/test/netns"
)

const (
	// patience bounds each wait; the machine may be busy.
	patience = 60 * time.Second
	// stopTimeout is how long a program may take to end by itself.
	stopTimeout = 5 * time.Second
	// nobody is the user without rights, who plays the employee.
	nobody = 65534
)

// machine is a host with its own network, /var/lib, /run and home.
type machine struct {
	*netns.Host
	t   *testing.T
	dir string
	uid int
	env []string
	// uplink is its interface on the public network, of those that have one.
	uplink string
}

// newMachine makes one whose programs run as root.
func newMachine(t *testing.T, w *netns.World, name string) *machine {
	t.Helper()
	m := &machine{Host: w.Host(name), t: t, dir: t.TempDir()}
	for _, sub := range []string{"lib", "run", "home"} {
		must(t, os.Mkdir(filepath.Join(m.dir, sub), 0o755))
	}
	must(t, os.Chown(filepath.Join(m.dir, "home"), nobody, nobody))
	m.WriteEtc("resolv.conf", "")
	m.env = []string{"PATH=" + bin(t) + ":" + os.Getenv("PATH") + ":/usr/sbin:/sbin", "HOME=/var/lib/home", "LANG=C"}
	must(t, os.Mkdir(filepath.Join(m.dir, "lib", "home"), 0o755))
	must(t, os.Chown(filepath.Join(m.dir, "lib", "home"), nobody, nobody))
	return m
}

// as returns the same machine for another user.
func (m *machine) as(uid int) *machine {
	other := *m
	other.uid = uid
	return &other
}

// with returns the same machine with more environment.
func (m *machine) with(env ...string) *machine {
	other := *m
	other.env = append(append([]string{}, m.env...), env...)
	return &other
}

// shell prepares a line of shell on the machine. bash replaces itself by a line that is
// one command, so that signals reach the program.
func (m *machine) shell(line string) *exec.Cmd {
	const enter = `mount --bind "$0/lib" /var/lib && mount --bind "$0/run" /run && uid="$1" line="$2" && shift 2 &&
if [ "$uid" = 0 ]; then exec bash -c "$line"; else exec setpriv --reuid="$uid" --regid="$uid" --clear-groups bash -c "$line"; fi`
	cmd := m.Command(context.Background(), "sh", "-c", enter, m.dir, strconv.Itoa(m.uid), line)
	cmd.Env = m.env
	return cmd
}

// run runs a line to its end, at most patience long, and returns what it wrote to both
// outputs.
func (m *machine) run(line string) (string, error) {
	m.t.Helper()
	p := m.start(line, "")
	select {
	case <-p.done:
	case <-time.After(patience):
		p.stop()
		return p.out.String(), fmt.Errorf("%s: still running after %v", line, patience)
	}
	if p.err != nil {
		return p.out.String(), fmt.Errorf("%s: %w: %s", line, p.err, p.out)
	}
	return p.out.String(), nil
}

// must runs a line that has to succeed.
func (m *machine) must(line string) string {
	m.t.Helper()
	out, err := m.run(line)
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

// exits runs a line that has to end with this code.
func (m *machine) exits(code int, line string) string {
	m.t.Helper()
	out, err := m.run(line)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code {
		m.t.Fatalf("%s = %v, want exit code %d; it wrote:\n%s", line, err, code, out)
	}
	return out
}

// program is a line that goes on running.
type program struct {
	t    *testing.T
	line string
	cmd  *exec.Cmd
	out  *transcript
	done chan struct{}
	err  error // how it ended; read it after done
}

// start starts a line; it ends with the test.
func (m *machine) start(line, stdin string) *program {
	m.t.Helper()
	p := &program{t: m.t, line: line, cmd: m.shell(line), out: &transcript{}, done: make(chan struct{})}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = strings.NewReader(stdin), p.out, p.out
	p.cmd.WaitDelay = stopTimeout // a child of the program may keep its output open
	if err := p.cmd.Start(); err != nil {
		m.t.Fatalf("start %s: %v", line, err)
	}
	go func() { // stop waits for done
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	m.t.Cleanup(func() {
		p.stop()
		if m.t.Failed() {
			m.t.Logf("%s: %s\nwrote:\n%s", m.Name, line, p.out)
		}
	})
	return p
}

// stop asks the program to end, and ends it if it does not.
func (p *program) stop() {
	_ = p.cmd.Process.Signal(unix.SIGTERM) // it may have ended
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

func (p *program) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// await returns the first group of what the program prints that matches.
func (p *program) await(what *regexp.Regexp) string {
	p.t.Helper()
	var found string
	netns.Wait(p.t, patience, p.line+" prints "+what.String(), func() bool {
		gone := p.ended() // before the look: what it wrote last counts
		if m := what.FindStringSubmatch(p.out.String()); m != nil {
			found = m[1]
			return true
		}
		if gone {
			p.t.Fatalf("%s ended: %v: %s", p.line, p.err, p.out)
		}
		return false
	})
	return found
}

// finish waits for a good end.
func (p *program) finish() string {
	p.t.Helper()
	netns.Wait(p.t, patience, p.line+" ends", p.ended)
	if p.err != nil {
		p.t.Fatalf("%s: %v: %s", p.line, p.err, p.out)
	}
	return p.out.String()
}

// transcript is what a program has written.
type transcript struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

// Write implements io.Writer.
func (s *transcript) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *transcript) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
