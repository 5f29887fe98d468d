//go:build unix

package paths_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/postern-zt/postern/platform/paths"
)

func perm(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

func TestPrivateDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	for range 2 {
		if err := paths.PrivateDir(dir); err != nil {
			t.Fatal(err)
		}
	}
	if got := perm(t, dir); got != 0o700 {
		t.Errorf("mode = %#o, want 0700", got)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := paths.PrivateDir(dir); err != nil || perm(t, dir) != 0o700 {
		t.Errorf("PrivateDir of an open directory = %v, mode %#o, want it closed", err, perm(t, dir))
	}
}

func TestPrivateDirRefusesLinksAndFiles(t *testing.T) {
	base := t.TempDir()
	target := filepath.Join(base, "target")
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(base, "link")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, file, filepath.Join(file, "below")} {
		if err := paths.PrivateDir(path); err == nil {
			t.Errorf("PrivateDir(%s) succeeded", path)
		}
	}
	if got := perm(t, target); got != 0o755 {
		t.Errorf("the target of the link got mode %#o", got)
	}
}

func TestPrivateDirRefusesForeignOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	dir := t.TempDir()
	if err := os.Chown(dir, 12345, 12345); err != nil {
		t.Fatal(err)
	}
	if err := paths.PrivateDir(dir); err == nil {
		t.Error("PrivateDir of a foreign directory succeeded")
	}
}

func TestSharedDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	if err := paths.SharedDir(dir); err != nil {
		t.Fatal(err)
	}
	if got := perm(t, dir); got != 0o755 {
		t.Errorf("mode = %#o, want 0755", got)
	}
}

func TestWriteFileReplacesWhole(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state.json")
	for _, content := range []string{"old and longer", "new"} {
		if err := paths.WriteFile(path, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != content {
			t.Errorf("content = %q, %v, want %q", got, err, content)
		}
	}
	if got := perm(t, path); got != 0o640 {
		t.Errorf("mode = %#o, want 0640", got)
	}
	assertOnly(t, dir, "state.json")
}

func TestWriteFileLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	taken := filepath.Join(dir, "taken")
	if err := os.Mkdir(taken, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := paths.WriteFile(taken, []byte("x"), 0o600); err == nil {
		t.Error("WriteFile over a directory succeeded")
	}
	if err := paths.WriteFile(filepath.Join(dir, "none", "x"), []byte("x"), 0o600); err == nil {
		t.Error("WriteFile into a missing directory succeeded")
	}
	assertOnly(t, dir, "taken")
}

func assertOnly(t *testing.T, dir, name string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || entries[0].Name() != name {
		t.Errorf("directory holds %v, want only %s", entries, name)
	}
}
