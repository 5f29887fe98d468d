package store_test

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/broker/store/storetest"
)

// asNobody runs f on a thread without root's right to ignore file modes. The thread ends
// with f, because it is never unlocked.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	if os.Getuid() != 0 {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		syscall.RawSyscall(syscall.SYS_SETFSUID, 65534, 0, 0)
		f()
	}()
	<-done
}

func TestReadOnlyFile(t *testing.T) {
	dsn := storetest.SQLite(t)
	s, err := store.Open(t.Context(), config(dsn))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := strings.TrimPrefix(dsn, "sqlite:")
	dir := filepath.Dir(path)
	for p, mode := range map[string]os.FileMode{path: 0o444, filepath.Dir(dir): 0o755, dir: 0o555} {
		if err := os.Chmod(p, mode); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = os.Chmod(dir, 0o700) }) // so that the directory can be removed
	asNobody(t, func() {
		wantOpenError(t, config(dsn), store.ErrReadOnly, "write access")
	})
}
