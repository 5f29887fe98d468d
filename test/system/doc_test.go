//go:build linux

// Package system tests the real programs in network namespaces: the quick start as the
// README has it, and the programs of others through the tunnel. Each test builds its own
// machines; what a program wants of /var/lib, /run and /etc/resolv.conf is a directory of
// the test. The programs are built once, from the tree that the test runs in.
package system

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// programs is the directory of the built programs.
var programs = sync.OnceValues(build)

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := programs(); err == nil {
		_ = os.RemoveAll(dir) // a rest in the temporary directory does no harm
	}
	os.Exit(code)
}

// build compiles the programs as they are shipped. Other users can run them.
func build() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "postern-system-"); err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	const module = "github.com/postern-zt/postern/"
	cmd := exec.Command("go", "build", "-o", dir+string(filepath.Separator), module+"broker/cmd/postern-broker",
		module+"connector/cmd/postern-connector", module+"client/cmd/postern", module+"client/cmd/posternd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.Join(fmt.Errorf("build: %w: %s", err, out), os.RemoveAll(dir))
	}
	return dir, nil
}

// bin is the directory of the built programs.
func bin(t *testing.T) string {
	t.Helper()
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
