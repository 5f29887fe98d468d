package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// testTimeout bounds one run of one named test.
const testTimeout = "5m"

// Verdicts that mean a defect of the mutant or of its test.
var (
	errSurvived = errors.New("the test passes without the guarded line")
	errBuild    = errors.New("the mutant does not build")
	errNotRun   = errors.New("the test does not exist or was skipped")
	errBaseline = errors.New("the test does not pass on the unchanged tree")
)

// bench is a copy of the tree in which mutants are tried. Not for concurrent use.
type bench struct {
	tree   string
	passed map[string]error // results on the unchanged tree, by package and test
	output io.Writer        // of the tests, nil for none
}

// copyTree copies what the checkout tracks or would track, open changes included.
func copyTree(ctx context.Context, root string) (string, error) {
	list, err := exec.CommandContext(ctx, "git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		return "", fmt.Errorf("list the tree: %w", err)
	}
	dir, err := os.MkdirTemp("", "postern-mutants-")
	if err != nil {
		return "", err
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(list), "\x00"), "\x00") {
		if err := copyFile(filepath.Join(root, name), filepath.Join(dir, name)); err != nil {
			return "", errors.Join(fmt.Errorf("copy the tree: %w", err), os.RemoveAll(dir))
		}
	}
	return dir, nil
}

func copyFile(from, to string) error {
	info, err := os.Lstat(from)
	if errors.Is(err, os.ErrNotExist) {
		return nil // tracked and deleted
	}
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", from)
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, data, info.Mode().Perm())
}

// try gives nil when the named test fails because of the mutant, and only then.
func (b *bench) try(ctx context.Context, m mutant) error {
	if err := b.baseline(ctx, m); err != nil {
		return err
	}
	if err := b.apply(ctx, m); err != nil {
		return err
	}
	verdict := b.judge(ctx, m)
	return errors.Join(verdict, b.apply(ctx, m, "--reverse"))
}

// baseline runs the test on the unchanged tree: a test that always fails kills
// nothing.
func (b *bench) baseline(ctx context.Context, m mutant) error {
	key := strings.Join(m.packages, " ") + " " + m.test
	if _, known := b.passed[key]; !known {
		result, err := b.runTest(ctx, m)
		switch {
		case err != nil:
		case result == "fail":
			err = errBaseline
		case result != "pass":
			err = errNotRun
		}
		b.passed[key] = err
	}
	return b.passed[key]
}

func (b *bench) judge(ctx context.Context, m mutant) error {
	if out, err := b.command(ctx, "go", "build", "./...").CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", errBuild, firstLines(out))
	}
	result, err := b.runTest(ctx, m)
	switch {
	case err != nil:
		return err
	case result == "fail":
		return nil
	case result == "pass":
		return errSurvived
	default:
		return errNotRun
	}
}

func (b *bench) apply(ctx context.Context, m mutant, more ...string) error {
	before := b.fingerprint(m)
	cmd := b.command(ctx, "git", append(append([]string{"apply"}, more...), m.file)...)
	// The copy is no repository; inside one, git would skip files silently.
	cmd.Env = append(os.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(b.tree))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("the patch does not apply: %s", firstLines(out))
	}
	if bytes.Equal(before, b.fingerprint(m)) {
		return errors.New("the patch changes nothing")
	}
	return nil
}

// fingerprint gives the content of the files that the patch names.
func (b *bench) fingerprint(m mutant) []byte {
	patch, err := os.ReadFile(m.file)
	if err != nil {
		return nil
	}
	var all []byte
	for line := range strings.Lines(string(patch)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "+++ b/"); ok {
			data, _ := os.ReadFile(filepath.Join(b.tree, name)) // a removed file counts as empty
			all = append(append(all, 0), data...)
		}
	}
	return all
}

func (b *bench) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = b.tree
	return cmd
}

// runTest gives "pass", "fail", "skip" or "" for the named test.
func (b *bench) runTest(ctx context.Context, m mutant) (string, error) {
	args := append([]string{"test", "-json", "-count=1", "-timeout", testTimeout, "-run", m.pattern()}, m.packages...)
	out, runErr := b.command(ctx, "go", args...).Output()
	if b.output != nil {
		_, _ = b.output.Write(out)
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	result, built := verdict(out, m.test)
	if !built || runErr != nil && result == "" && len(out) == 0 {
		return "", errBuild
	}
	return result, nil
}

// event is a line of `go test -json`.
type event struct {
	Action string
	Test   string
}

// verdict reads the result of one test; built is false when a package did not
// compile. A test that panics or runs into the timeout failed.
func verdict(out []byte, test string) (result string, built bool) {
	built = true
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var e event
		if err := dec.Decode(&e); err != nil {
			return result, built
		}
		switch {
		case e.Action == "build-fail":
			built = false
		case e.Test == test && slices.Contains([]string{"pass", "fail", "skip"}, e.Action) && result != "fail":
			result = e.Action
		}
	}
}

func firstLines(out []byte) string {
	const most = 400
	return strings.TrimSpace(string(out[:min(len(out), most)]))
}
