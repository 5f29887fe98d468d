//go:build linux

package system

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-zt/postern/test/netns"
)

// demoSteps is how many ticks a demo shows.
const demoSteps = 12

// demo runs `postern-broker demo` on this machine with a temporary directory of its own.
type demo struct {
	cmd *exec.Cmd
	out *transcript
	tmp string
}

// newDemo prepares one; uid is the user who runs it.
func newDemo(ctx context.Context, t *testing.T, uid int, flags ...string) *demo {
	t.Helper()
	netns.Require(t)
	tmp, err := os.MkdirTemp("", "postern-demo-test-") // that of the test is closed to other users
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(tmp) }) // empty, or the test has failed
	must(t, os.Chown(tmp, uid, uid))
	d := &demo{tmp: tmp, out: &transcript{}}
	d.cmd = exec.CommandContext(ctx, filepath.Join(bin(t), "postern-broker"), append([]string{"demo"}, flags...)...)
	d.cmd.Env = []string{"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin", "TMPDIR=" + tmp, "HOME=" + tmp}
	d.cmd.Stdout, d.cmd.Stderr = d.out, d.out
	d.cmd.Cancel = func() error { return d.cmd.Process.Signal(unix.SIGINT) } // it removes what it made
	d.cmd.WaitDelay = patience
	if uid != 0 {
		d.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	return d
}

// leftNothing checks for files, processes and namespaces of the demo.
func (d *demo) leftNothing(t *testing.T) {
	t.Helper()
	files, err := os.ReadDir(d.tmp)
	if err != nil || len(files) != 0 {
		t.Errorf("left in the temporary directory: %v %v", files, err)
	}
	spaces, err := filepath.Glob("/run/netns/postern-demo-*")
	if err != nil || len(spaces) != 0 {
		t.Errorf("left namespaces: %v %v", spaces, err)
	}
	environments, err := filepath.Glob("/proc/[0-9]*/environ")
	must(t, err)
	for _, name := range environments {
		env, err := os.ReadFile(name)
		if err == nil && bytes.Contains(env, []byte("TMPDIR="+d.tmp)) {
			t.Errorf("left running: %s", name)
		}
	}
}

func TestDemoOnceShowsEachStepAndLeavesNothing(t *testing.T) {
	for _, c := range []struct {
		name  string
		uid   int
		flags []string
		place string
	}{
		{"root with a tunnel interface", 0, []string{"--once"}, "tunnel interface"},
		{"root on loopback", 0, []string{"--once", "--proxy"}, "loopback"},
		{"ordinary user", nobody, []string{"--once"}, "loopback"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
			defer cancel()
			d := newDemo(ctx, t, c.uid, c.flags...)
			if err := d.cmd.Run(); err != nil {
				t.Errorf("demo: %v", err)
			}
			text := d.out.String()
			if got := strings.Count(text, "✓"); got != demoSteps || !strings.Contains(text, c.place) || !strings.Contains(text, "the last byte came") {
				t.Errorf("%d ticks of %d:\n%s", got, demoSteps, text)
			}
			d.leftNothing(t)
		})
	}
}

// What a demo that stays up says to try.
var (
	exportLine = regexp.MustCompile(`(?m)^\s*(export PATH=.*)$`)
	tryLine    = regexp.MustCompile(`(?m)^        ((?:postern|curl|ip netns) .*)$`)
)

// The commands that a demo prints work as printed, and an interrupt ends it well.
func TestDemoStaysUpAndSaysWhatToTry(t *testing.T) {
	for _, flags := range [][]string{{}, {"--proxy"}} {
		t.Run(strings.Join(append([]string{"demo"}, flags...), " "), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
			defer cancel()
			d := newDemo(ctx, t, 0, flags...)
			must(t, d.cmd.Start())
			netns.Wait(t, 2*patience, "the demo says what to try", func() bool { return strings.Contains(d.out.String(), "audit verify") })
			d.try(ctx, t)
			must(t, d.cmd.Process.Signal(unix.SIGINT))
			if err := d.cmd.Wait(); err != nil {
				t.Errorf("after an interrupt: %v\n%s", err, d.out)
			}
			d.leftNothing(t)
		})
	}
}

func (d *demo) try(ctx context.Context, t *testing.T) {
	t.Helper()
	said := d.out.String()
	export := exportLine.FindStringSubmatch(said)
	lines := tryLine.FindAllStringSubmatch(said, -1)
	if export == nil || len(lines) < 7 {
		t.Fatalf("the demo does not say what to try:\n%s", said)
	}
	var output string
	for _, m := range lines {
		cmd := exec.CommandContext(ctx, "bash", "-c", export[1]+"\n"+m[1])
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v: %s", m[1], err, out)
		}
		output += string(out)
	}
	for _, want := range []string{"ann may use wiki now", "Welcome to the wiki", "encrypt the disk", "The audit is whole"} {
		if !strings.Contains(output, want) {
			t.Errorf("the commands to try do not say %q:\n%s", want, output)
		}
	}
}

// An interrupt in the middle leaves nothing either, and is no success.
func TestDemoInterruptedLeavesNothing(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	d := newDemo(ctx, t, 0, "--once")
	must(t, d.cmd.Start())
	netns.Wait(t, patience, "the demo has started a broker", func() bool { return strings.Contains(d.out.String(), "✓") })
	must(t, d.cmd.Process.Signal(unix.SIGINT))
	var exit *exec.ExitError
	if err := d.cmd.Wait(); !errors.As(err, &exit) {
		t.Errorf("an interrupted demo ended with %v:\n%s", err, d.out)
	}
	d.leftNothing(t)
}
