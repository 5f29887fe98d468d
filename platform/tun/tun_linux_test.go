package tun

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
	if os.Geteuid() == 0 {
		t.Skip("root may open everything")
	}
	path := filepath.Join(t.TempDir(), "tun")
	if err := os.WriteFile(path, nil, 0); err != nil {
		t.Fatal(err)
	}
	if err := openError(path); !errors.Is(err, ErrPermission) {
		t.Errorf("open = %v, want ErrPermission", err)
	}
}

func TestDefaults(t *testing.T) {
	if got := (Config{}).withDefaults(); got.Name != "postern0" || got.MTU != 65000 {
		t.Errorf("defaults = %+v", got)
	}
}

func openError(path string) error {
	_, err := openDriver(path)
	return err
}
