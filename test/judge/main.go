// Command judge reads the events of `go test -json` and writes what `go test` would have
// written. It fails when a test failed, when a test was skipped although CI=true, and with
// -ran when a package ran no test at all: a run that tests nothing must not look green.
// There is no list of exceptions. `make test` pipes each of its runs through it.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

func main() {
	ran := flag.Bool("ran", false, "fail when a package ran no test")
	flag.Parse()
	j := newJudge(os.Stdout)
	j.noSkips, j.ran = os.Getenv("CI") == "true", *ran
	if err := j.run(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "judge:", err)
		os.Exit(1)
	}
}

// maxLine bounds one event; a test may print long lines.
const maxLine = 16 << 20

// event is a line of `go test -json`.
type event struct {
	Action, Package, Test, Output string
}

// line is what a test printed; the package itself has no test name.
type line struct{ test, text string }

// pkg is what is known of a package that has not ended.
type pkg struct {
	lines []line
	ended map[string]string // test -> pass, fail or skip
}

// judge owns all state of a run. Not for concurrent use.
type judge struct {
	noSkips, ran bool

	out      *bufio.Writer
	open     map[string]*pkg
	packages int
	failed   int
	skipped  []string
	idle     []string // packages without a test
}

func newJudge(out io.Writer) *judge {
	return &judge{out: bufio.NewWriter(out), open: map[string]*pkg{}}
}

// run reads to the end and gives the verdict.
func (j *judge) run(in io.Reader) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		j.line(lines.Bytes())
		if err := j.out.Flush(); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read the events: %w", err)
	}
	return j.verdict()
}

func (j *judge) line(text []byte) {
	var e event
	if json.Unmarshal(text, &e) != nil || e.Action == "" {
		fmt.Fprintf(j.out, "%s\n", text) // not of go test
		return
	}
	switch {
	case e.Action == "build-output":
		j.write(e.Output)
	case e.Action == "build-fail":
		j.failed++
	case e.Package == "":
	case e.Action == "output":
		p := j.of(e.Package)
		p.lines = append(p.lines, line{e.Test, e.Output})
	case !slices.Contains([]string{"pass", "fail", "skip"}, e.Action):
	case e.Test != "":
		j.of(e.Package).ended[e.Test] = e.Action
	default:
		j.end(e.Package, e.Action)
	}
}

func (j *judge) of(name string) *pkg {
	p := j.open[name]
	if p == nil {
		p = &pkg{ended: map[string]string{}}
		j.open[name] = p
	}
	return p
}

// end prints a package: its skipped tests, what failed, its summary.
func (j *judge) end(name, action string) {
	p := j.of(name)
	delete(j.open, name)
	j.packages++
	if action == "fail" {
		j.failed++
	}
	if action != "fail" && len(p.ended) == 0 {
		j.idle = append(j.idle, name)
	}
	for _, l := range p.lines {
		switch {
		case l.test == "" && (action == "fail" || summary(l.text)):
			j.write(l.text)
		case action == "fail" && p.ended[l.test] != "pass", p.ended[l.test] == "skip":
			j.write(l.text)
		}
	}
	for test, result := range p.ended {
		if result == "skip" {
			j.skipped = append(j.skipped, name+" "+test)
		}
	}
}

// summary tells whether a line stands for the whole package.
func summary(text string) bool {
	return strings.HasPrefix(text, "ok  \t") || strings.HasPrefix(text, "?   \t")
}

// write prints to the buffer, whose error shows when it is flushed.
func (j *judge) write(text string) { _, _ = j.out.WriteString(text) }

func (j *judge) verdict() error {
	var errs []error
	if j.failed > 0 {
		errs = append(errs, fmt.Errorf("%d packages failed", j.failed))
	}
	if len(j.open) > 0 {
		errs = append(errs, fmt.Errorf("%d packages did not end", len(j.open)))
	}
	if j.packages == 0 {
		errs = append(errs, errors.New("no package was tested"))
	}
	if j.noSkips && len(j.skipped) > 0 {
		slices.Sort(j.skipped)
		errs = append(errs, fmt.Errorf("with CI=true a skip fails the run, and these were skipped:\n\t%s", strings.Join(j.skipped, "\n\t")))
	}
	if j.ran && len(j.idle) > 0 {
		slices.Sort(j.idle)
		errs = append(errs, fmt.Errorf("these packages ran no test:\n\t%s", strings.Join(j.idle, "\n\t")))
	}
	return errors.Join(errs...)
}
