package archtest

import (
	_ "embed"
	"fmt"
	"go/ast"
	"path"
	"slices"
	"strings"
	"testing"
)

// nameFindings refuses packages that are named after nothing.
func nameFindings(all tree) []string {
	var found []string
	for _, f := range all {
		for _, bad := range []string{"util", "utils", "common", "helpers", "helper", "types", "model", "models", "misc"} {
			if name := strings.TrimSuffix(f.ast.Name.Name, "_test"); name == bad || path.Base(f.dir()) == bad {
				found = append(found, fmt.Sprintf("%s: a package named %s says nothing about what it holds", f.path, bad))
			}
		}
	}
	return found
}

// initFindings refuses work at import time outside mains.
func initFindings(all tree) []string {
	var found []string
	for _, f := range all {
		if f.inCmd() || f.generated() {
			continue
		}
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				found = append(found, fmt.Sprintf("%s: init outside cmd", f.at(fn.Pos())))
			}
		}
	}
	return found
}

// sleepFindings refuses tests that wait for a time instead of an event.
func sleepFindings(all tree) []string {
	var found []string
	for _, f := range all {
		if !f.isTest() && f.top() != "test" {
			continue
		}
		for _, pos := range f.callsOf("time", "Sleep") {
			found = append(found, fmt.Sprintf("%s: time.Sleep in a test; wait for the event, or use testing/synctest with a timer", f.at(pos)))
		}
	}
	return found
}

// proofFindings wants a test that counts allocations to be found by its name: it must run
// without the race detector, which `make test` does for names with Alloc only.
func proofFindings(all tree) []string {
	var found []string
	for _, f := range all {
		for _, pos := range f.callsOf("testing", "AllocsPerRun") {
			if in := f.function(pos); !strings.HasPrefix(in, "Test") || !strings.Contains(in, "Alloc") {
				found = append(found, fmt.Sprintf("%s: testing.AllocsPerRun in %q; call it in a test with Alloc in its name", f.at(pos), in))
			}
		}
	}
	return found
}

// commentFindings wants exactly one package comment in each package. A package
// that is generated whole takes its words from the .proto file.
func commentFindings(all tree) []string {
	comments, written := map[string]int{}, map[string]bool{}
	for _, f := range all {
		pkg := f.dir()
		if f.isTest() && !onlyTests(all, pkg) {
			continue
		}
		written[pkg] = written[pkg] || !f.generated()
		if f.ast.Doc != nil && !f.generated() && strings.TrimSpace(f.ast.Doc.Text()) != "" {
			comments[pkg]++
		}
	}
	var found []string
	for pkg, hand := range written {
		switch n := comments[pkg]; {
		case hand && n == 0:
			found = append(found, fmt.Sprintf("%s: no package comment", pkg))
		case n > 1:
			found = append(found, fmt.Sprintf("%s: %d package comments, want one", pkg, n))
		}
	}
	return found
}

func onlyTests(all tree, dir string) bool {
	return !slices.ContainsFunc(all, func(f file) bool { return f.dir() == dir && !f.isTest() })
}

//go:embed background.txt
var backgroundAllowed string

// backgroundFindings wants contexts to come from the caller. The exceptions, each
// with its reason, stand in background.txt.
func backgroundFindings(all tree, allowed []string) []string {
	var found []string
	for _, f := range all {
		if f.isTest() || f.isFake() || f.inCmd() || f.generated() || f.top() == "test" || slices.Contains(allowed, f.path) {
			continue
		}
		for _, name := range []string{"Background", "TODO"} {
			for _, pos := range f.callsOf("context", name) {
				found = append(found, fmt.Sprintf("%s: context.%s cuts the caller's context off", f.at(pos), name))
			}
		}
	}
	return found
}

// allowList reads lines of the form "path: reason".
func allowList(t *testing.T, text string) []string {
	t.Helper()
	var paths []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, reason, ok := strings.Cut(line, ":")
		if !ok || len(strings.Fields(reason)) < 3 {
			t.Errorf("allow-list: %q has no reason", line)
		}
		paths = append(paths, name)
	}
	return paths
}

func TestPackageNames(t *testing.T)     { report(t, nameFindings(readTree(t))) }
func TestNoInitOutsideCmd(t *testing.T) { report(t, initFindings(readTree(t))) }
func TestNoSleepInTests(t *testing.T)   { report(t, sleepFindings(readTree(t))) }
func TestAllocationProofs(t *testing.T) { report(t, proofFindings(readTree(t))) }
func TestPackageComments(t *testing.T)  { report(t, commentFindings(readTree(t))) }

func TestContextsComeFromTheCaller(t *testing.T) {
	all, allowed := readTree(t), allowList(t, backgroundAllowed)
	report(t, backgroundFindings(all, allowed))
	for _, name := range allowed {
		if !slices.ContainsFunc(all, func(f file) bool { return f.path == name }) {
			t.Errorf("background.txt allows %s, which does not exist", name)
		}
	}
}
