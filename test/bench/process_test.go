//go:build linux

package bench

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-zt/postern/test/netns"
)

// stopTimeout is how long a program may take to end by itself.
const stopTimeout = 10 * time.Second

// build compiles a program the way it is shipped, but with symbols for profiles.
// POSTERN_BENCH_BIN names a directory of programs that are there already, to compare.
func build(t *testing.T, dir, pkg string) string {
	t.Helper()
	out := filepath.Join(dir, filepath.Base(pkg))
	if ready := os.Getenv("POSTERN_BENCH_BIN"); ready != "" {
		if given := filepath.Join(ready, filepath.Base(pkg)); exists(given) {
			return given
		}
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v: %s", pkg, err, text)
	}
	return out
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// program is a process on a machine of the bench.
type program struct {
	cmd  *exec.Cmd
	out  *transcript
	done chan struct{}
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

// launch starts a program on h; it ends with the test. env is added to a bare environment.
func launch(t *testing.T, h *netns.Host, env []string, stdin string, name string, args ...string) *program {
	t.Helper()
	p := &program{out: &transcript{}, done: make(chan struct{})}
	p.cmd = h.Command(context.Background(), name, args...)
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = bytes.NewBufferString(stdin), p.out, p.out
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() { // stop waits for done
		defer close(p.done)
		_ = p.cmd.Wait() // how a program ends is of no interest here
	}()
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("%s %v wrote:\n%s", filepath.Base(name), args, p.out)
		}
	})
	return p
}

// pid is the program's own: "ip netns exec" replaces itself by it.
func (p *program) pid() int { return p.cmd.Process.Pid }

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

// ended reports whether the program is gone.
func (p *program) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// await returns the first group of what the program prints that matches.
func (p *program) await(t *testing.T, what *regexp.Regexp) string {
	t.Helper()
	var found string
	netns.Wait(t, patience, filepath.Base(p.cmd.Args[len(p.cmd.Args)-1])+" prints "+what.String(), func() bool {
		m := what.FindStringSubmatch(p.out.String())
		if m != nil {
			found = m[1]
			return true
		}
		if p.ended() {
			t.Fatalf("%v ended: %s", p.cmd.Args, p.out)
		}
		return false
	})
	return found
}
