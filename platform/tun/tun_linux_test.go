package tun

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestErrorsSayWhatToDo(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "tun")
	for _, c := range []struct {
		err  error
		want error
		hint string
	}{
		{openError(missing), ErrNoDriver, "modprobe tun"},
		{explain("postern0", fmt.Errorf("ioctl: %w", unix.EPERM)), ErrPermission, "CAP_NET_ADMIN"},
		{explain("postern0", fmt.Errorf("ioctl: %w", unix.EBUSY)), ErrInUse, "other process"},
		{explain("postern0", os.NewSyscallError("ioctl", unix.EINVAL)), unix.EINVAL, "postern0"},
	} {
		if !errors.Is(c.err, c.want) || !strings.Contains(c.err.Error(), c.hint) {
			t.Errorf("error %q, want %q with %q", c.err, c.want, c.hint)
		}
	}
}

func TestPermissionDenied(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "tun")
	if err := errors.Join(os.WriteFile(path, nil, 0), os.Chmod(filepath.Dir(dir), 0o755)); err != nil {
		t.Fatal(err)
	}
	var err error
	asNobody(func() { err = openError(path) })
	if !errors.Is(err, ErrPermission) {
		t.Errorf("open = %v, want ErrPermission", err)
	}
}

// asNobody runs f on a thread without root's right to ignore file modes. The thread ends
// with f, because it is never unlocked.
func asNobody(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		_, _ = unix.SetfsuidRetUid(nobody) // returns the old one, no error; changes nothing for an ordinary user
		f()
	}()
	<-done
}

// nobody is the user without rights.
const nobody = 65534

func TestDefaults(t *testing.T) {
	if got := (Config{}).withDefaults(); got.Name != "postern0" || got.MTU != 65000 {
		t.Errorf("defaults = %+v", got)
	}
}

func openError(path string) error {
	_, err := openDriver(path)
	return err
}
