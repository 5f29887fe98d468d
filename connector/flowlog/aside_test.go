package flowlog_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/postern-zt/postern/connector/flowlog"
	"github.com/postern-zt/postern/proto/chain"
	"github.com/postern-zt/postern/proto/ids"
)

// TestSetAside: the next identity finds no record of the one before, shipped or not.
func TestSetAside(t *testing.T) {
	dir, r := filepath.Join(t.TempDir(), "flows"), &receiver{t: t}
	for i, want := range []string{dir + "-" + string(self), dir + "-" + string(self) + "-2"} {
		l := open(t, dir)
		record(t, l, chain.FlowOpened, "a")
		if i == 1 { // the head file tells the writer
			r.head = chain.Head{}
			if err := l.Ship(t.Context(), r.ship); err != nil {
				t.Fatal(err)
			}
		}
		l.Close()
		if err := flowlog.SetAside(dir); err != nil {
			t.Fatal(err)
		}
		if names, _ := filepath.Glob(filepath.Join(want, "*.jsonl")); len(names) != 1 {
			t.Errorf("%s holds %q", want, names)
		}
	}
	l, err := flowlog.Open(dir, ids.New[ids.ConnectorID](), identity(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if l.Waiting() != 0 {
		t.Errorf("%d records of another identity wait", l.Waiting())
	}
}

// TestSetAsideHostile: what a damaged file says never leads out of the directory.
func TestSetAsideHostile(t *testing.T) {
	for _, head := range []string{`{"writer":"../../x","Writer":"/../../x"}`, "{", ""} {
		dir := filepath.Join(t.TempDir(), "flows")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "head.json"), []byte(head), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := flowlog.SetAside(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(dir + "-unknown"); err != nil {
			t.Errorf("%q: %v", head, err)
		}
	}
	if err := flowlog.SetAside(filepath.Join(t.TempDir(), "none")); err != nil {
		t.Errorf("without a log: %v", err)
	}
}
