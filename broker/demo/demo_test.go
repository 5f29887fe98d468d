package demo

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"
)

func TestRunNamesAMissingProgramAndLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	var out bytes.Buffer
	err := Run(t.Context(), Config{Bin: filepath.Join(dir, "nothing"), Proxy: true, Once: true, Out: &out})
	if err == nil || !strings.Contains(err.Error(), "postern-broker") {
		t.Errorf("Run without programs = %v, want an error that names the first missing one", err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A token or a proxy of the user's own must not reach the demo's programs.
func TestEnvironmentOfProgramsHoldsNothingOfTheUsers(t *testing.T) {
	got := environWithout([]string{"PATH=/bin", "POSTERN_JOIN_TOKEN=secret", "HTTPS_PROXY=http://proxy", "LANG=C"}, "HTTPS_PROXY")
	if want := []string{"PATH=/bin", "LANG=C"}; !slices.Equal(got, want) {
		t.Errorf("environWithout = %q, want %q", got, want)
	}
}

func TestPageGivesItsFormAndText(t *testing.T) {
	root, err := html.Parse(strings.NewReader(`<h1>Hello</h1><form action="/invite"><input name="csrf" value="abc"><input name="code"></form>`))
	if err != nil {
		t.Fatal(err)
	}
	p := newShown("https://broker.example/somewhere")
	p.read(root)
	if p.action.String() != "https://broker.example/invite" || p.fields.Get("csrf") != "abc" || !strings.Contains(p.text, "Hello") {
		t.Errorf("read %v, %v, %q", p.action, p.fields, p.text)
	}
}

func TestTerminalKeepsTheTailAndIsBounded(t *testing.T) {
	term := newTerminal()
	_, more := term.look()
	if _, err := term.Write([]byte("1\n2\n3\n4\n5\n6\n7\n")); err != nil {
		t.Fatal(err)
	}
	<-more
	if got, want := term.tail(), "2\n3\n4\n5\n6\n7"; got != want {
		t.Errorf("tail = %q, want %q", got, want)
	}
	if _, err := term.Write(make([]byte, maxOutput)); err == nil {
		t.Error("a terminal kept more than its bound")
	}
}

func TestMillisecondsShowsATenth(t *testing.T) {
	if got := milliseconds(12340 * time.Microsecond); got != "12.3 ms" {
		t.Errorf("milliseconds = %q", got)
	}
}
