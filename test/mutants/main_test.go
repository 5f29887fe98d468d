package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const source = `package door

func Open(allowed bool) bool {
	if !allowed {
		return false
	}
	return true
}
`

const sourceTest = `package door

import "testing"

func TestDenied(t *testing.T) {
	t.Run("no grant", func(t *testing.T) {
		if Open(false) {
			t.Error("open without grant")
		}
	})
}

func TestWeak(t *testing.T)    { Open(false) }
func TestBroken(t *testing.T)  { t.Error("always") }
func TestSkipped(t *testing.T) { t.Skip("never") }
`

// repository makes a module in a git checkout of its own.
func repository(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range map[string]string{
		"go.mod": "module example.org/door\n\ngo 1.26\n", "door/door.go": source, "door/door_test.go": sourceTest,
	} {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("git", "-C", root, "init", "-q").CombinedOutput(); err != nil {
		t.Fatalf("git init: %s", out)
	}
	return root
}

const removesGuard = `diff --git a/door/door.go b/door/door.go
--- a/door/door.go
+++ b/door/door.go
@@ -1,8 +1,5 @@
 package door
 
 func Open(allowed bool) bool {
-	if !allowed {
-		return false
-	}
 	return true
 }
`

var (
	breaksBuild = strings.Replace(removesGuard, "\n \treturn true\n", "\n-\treturn true\n+\treturn 1\n", 1)
	elsewhere   = strings.Replace(removesGuard, " package door", " package other", 1)
)

func TestVerdicts(t *testing.T) {
	root := repository(t)
	tree, err := copyTree(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(tree)
	tests := []struct {
		name, test, diff string
		want             error
		text             string
	}{
		{"killed", "TestDenied", removesGuard, nil, ""},
		{"killed in a subtest", "TestDenied/no_grant", removesGuard, nil, ""},
		{"survives", "TestWeak", removesGuard, errSurvived, ""},
		{"build failure does not count", "TestDenied", breaksBuild, errBuild, ""},
		{"always failing test", "TestBroken", removesGuard, errBaseline, ""},
		{"skipped test", "TestSkipped", removesGuard, errNotRun, ""},
		{"missing test", "TestNone", removesGuard, errNotRun, ""},
		{"missing subtest", "TestDenied/other", removesGuard, errNotRun, ""},
		{"stale patch", "TestDenied", elsewhere, nil, "does not apply"},
	}
	b := &bench{tree: tree, passed: map[string]error{}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "m.patch")
			text := "# invariant: 2\n# packages: ./door\n# test: " + tt.test + "\n# why: test\n" + tt.diff
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			m, err := read(file)
			if err != nil {
				t.Fatal(err)
			}
			err = b.try(t.Context(), m)
			if tt.text == "" && !errors.Is(err, tt.want) || tt.text != "" && (err == nil || !strings.Contains(err.Error(), tt.text)) {
				t.Errorf("try = %v, want %v %s", err, tt.want, tt.text)
			}
			if left, _ := os.ReadFile(filepath.Join(tree, "door/door.go")); string(left) != source {
				t.Errorf("the copy was left as\n%s", left)
			}
		})
	}
}

func TestTableNamesTheSurvivor(t *testing.T) {
	root := repository(t)
	dir := filepath.Join(root, "test", "mutants")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]string{"2-guard": "TestDenied", "2-weak": "TestWeak"} {
		text := "# invariant: 2\n# packages: ./door\n# test: " + test + "\n# why: x\n" + removesGuard
		if err := os.WriteFile(filepath.Join(dir, name+".patch"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mutants, err := readAll(dir, regexp.MustCompile("^2-"))
	if err != nil {
		t.Fatal(err)
	}
	tree, err := copyTree(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(tree)
	var out bytes.Buffer
	b := &bench{tree: tree, passed: map[string]error{}}
	if err := b.all(t.Context(), mutants, &out); err == nil || !strings.Contains(err.Error(), "1 of 2") {
		t.Errorf("all = %v, want 1 of 2", err)
	}
	if s := out.String(); !strings.Contains(s, "killed") || !strings.Contains(s, "NOT KILLED") {
		t.Errorf("table:\n%s", s)
	}
}

func TestParseHeader(t *testing.T) {
	good := "# invariant: 1\n# packages: ./a, ./b\n# test: TestX/y\n# why: gone\n" + removesGuard
	m, err := parseHeader(good)
	want := mutant{invariant: "1", packages: []string{"./a", "./b"}, test: "TestX/y", why: "gone"}
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, m, cmp.AllowUnexported(mutant{})); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if p := m.pattern(); p != "^TestX$/^y$" {
		t.Errorf("pattern = %q", p)
	}
	for _, bad := range []string{
		"", "# invariant: 1\n", removesGuard, strings.Replace(good, "# why: gone\n", "", 1),
		strings.Replace(good, "# why", "why", 1), strings.Replace(good, "TestX/y", "", 1),
	} {
		if _, err := parseHeader(bad); err == nil {
			t.Errorf("parseHeader(%q) succeeded", bad)
		}
	}
}

// The patches beside this file must be readable, whatever they find.
func TestHeadersOfThisTree(t *testing.T) {
	if _, err := readAll(".", regexp.MustCompile("")); err != nil {
		t.Error(err)
	}
}
