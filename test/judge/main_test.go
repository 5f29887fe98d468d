package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// sources are the packages of a small module, by the name of their folder.
var sources = map[string]string{
	"good":   `func TestGood(t *testing.T) { t.Log("quiet"); t.Run("part", func(t *testing.T) { println("heard?") }) }`,
	"lame":   `func TestLame(t *testing.T) { t.Run("part", func(t *testing.T) { t.Skip("no leg") }) }`,
	"bad":    `func TestBad(t *testing.T) { t.Run("part", func(t *testing.T) { t.Error("wrong") }) }; func TestBeside(t *testing.T) { t.Log("quiet") }`,
	"broken": `func TestBroken(t *testing.T) { undefined() }`,
	"panics": `func TestPanics(t *testing.T) { panic("out of order") }`,
	"empty":  ``,
}

// module writes the sources and returns the folder.
func module(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	files := map[string]string{"go.mod": "module example.org/m\n\ngo 1.26\n"}
	for name, tests := range sources {
		files[name+"/code.go"] = "package " + name + "\n"
		if tests != "" {
			files[name+"/code_test.go"] = "package " + name + "\n\nimport \"testing\"\n\n" + tests + "\n"
		}
	}
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func goTest(t *testing.T, root string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command("go", append([]string{"test", "-count=1"}, args...)...)
	cmd.Dir = root
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out
}

func TestVerdicts(t *testing.T) {
	root := module(t)
	for _, c := range []struct {
		name     string
		packages []string
		ci, ran  bool
		says     string // of the output
		want     string // of the error; empty for none
	}{
		{"passes", []string{"./good"}, true, true, "ok  \texample.org/m/good", ""},
		{"without tests", []string{"./empty"}, true, false, "[no test files]", ""},
		{"without tests where some must run", []string{"./empty", "./good"}, true, true, "ok  \t", "example.org/m/empty"},
		{"none selected", []string{"-run", "Other", "./good"}, true, true, "[no tests to run]", "example.org/m/good"},
		{"skips", []string{"./lame"}, false, true, "no leg", ""},
		{"skips in CI", []string{"./lame", "./good"}, true, true, "ok  \texample.org/m/good", "example.org/m/lame TestLame/part"},
		{"fails", []string{"./bad", "./good"}, false, false, "wrong", "1 packages failed"},
		{"does not build", []string{"./broken"}, false, false, "undefined: undefined", "failed"},
		{"panics", []string{"./panics"}, false, false, "out of order", "failed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			j := newJudge(&out)
			j.noSkips, j.ran = c.ci, c.ran
			err := j.run(bytes.NewReader(goTest(t, root, append([]string{"-json"}, c.packages...)...)))
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("verdict = %v, want %q", err, c.want)
			}
			if s := out.String(); !strings.Contains(s, c.says) || strings.Contains(s, "quiet") || strings.Contains(s, `"Action"`) {
				t.Errorf("wrote\n%s", s)
			}
		})
	}
}

// The summary lines are those of go test, one for each package.
func TestSummariesAreThoseOfGoTest(t *testing.T) {
	root := module(t)
	var out bytes.Buffer
	if err := newJudge(&out).run(bytes.NewReader(goTest(t, root, "-json", "./good", "./empty"))); err != nil {
		t.Fatal(err)
	}
	lines := func(s string) []string {
		s = regexp.MustCompile(`\d+\.\d+s`).ReplaceAllString(s, "0s")
		return slices.Sorted(strings.Lines(s)) // the order is that in which packages end
	}
	if d := cmp.Diff(lines(string(goTest(t, root, "./good", "./empty"))), lines(out.String())); d != "" {
		t.Errorf("(-go test +judge):\n%s", d)
	}
}

func TestNothingIsNoSuccess(t *testing.T) {
	for _, text := range []string{"", "no event\n", `{"Action":"start","Package":"a"}` + "\n" + `{"Action":"output","Package":"a","Output":"x"}` + "\n"} {
		var out bytes.Buffer
		if err := newJudge(&out).run(strings.NewReader(text)); err == nil {
			t.Errorf("run(%q) succeeded", text)
		}
	}
}
