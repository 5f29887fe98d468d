//go:build linux

package ipc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/postern-zt/postern/platform/ipc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func listen(t *testing.T, path string) *ipc.Listener {
	t.Helper()
	l, err := ipc.Listen(t.Context(), path, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func socketPath(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "local.sock")
}

func TestHandlerLearnsTheCallerFromTheKernel(t *testing.T) {
	path := socketPath(t)
	l := listen(t, path)
	srv := &http.Server{
		ConnContext: ipc.ConnContext,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			p, ok := ipc.PeerFrom(r.Context())
			_, _ = fmt.Fprint(w, p.UID, p.GID, p.PID, ok)
		}),
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	tr := ipc.Transport(path)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://local/", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	got, _ := io.ReadAll(res.Body)
	_ = res.Body.Close()
	want := fmt.Sprint(uint32(os.Getuid()), uint32(os.Getgid()), int32(os.Getpid()), true)
	if string(got) != want {
		t.Errorf("caller = %s, want %s", got, want)
	}
	tr.CloseIdleConnections()
	_ = srv.Close()
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("Serve = %v", err)
	}
}

func TestConnectionFromElsewhereHasNoCaller(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if p, ok := ipc.PeerFrom(ipc.ConnContext(t.Context(), a)); ok {
		t.Errorf("PeerFrom = %v, want none", p)
	}
	if _, ok := ipc.PeerFrom(context.Background()); ok {
		t.Error("PeerFrom of an empty context gave a caller")
	}
}

func TestSecondListenerIsRefused(t *testing.T) {
	path := socketPath(t)
	first := listen(t, path)
	if _, err := ipc.Listen(t.Context(), path, 0o666); !errors.Is(err, ipc.ErrInUse) {
		t.Errorf("second Listen = %v, want ErrInUse", err)
	}
	if _, err := ipc.Dial(t.Context(), path); err != nil {
		t.Errorf("the first one does not answer any more: %v", err)
	}
	if err := errors.Join(first.Close(), first.Close()); err != nil {
		t.Errorf("Close twice = %v", err)
	}
	listen(t, path)
}

func TestServerWithoutOurLockIsRefused(t *testing.T) {
	path := socketPath(t)
	foreign, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	if _, err := ipc.Listen(t.Context(), path, 0o666); !errors.Is(err, ipc.ErrInUse) {
		t.Errorf("Listen = %v, want ErrInUse", err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := socketPath(t)
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	_ = dead.Close()
	if _, err := ipc.Dial(t.Context(), path); !errors.Is(err, ipc.ErrNotRunning) {
		t.Fatalf("Dial of the dead socket = %v, want ErrNotRunning", err)
	}
	listen(t, path)
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != fs.ModeSocket || info.Mode().Perm() != 0o666 {
		t.Errorf("socket: %v, %v, want mode 0666", info.Mode(), err)
	}
}

func TestListenRemovesNothingButSockets(t *testing.T) {
	path := socketPath(t)
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ipc.Listen(t.Context(), path, 0o666); err == nil {
		t.Error("Listen over a file succeeded")
	}
	if got, _ := os.ReadFile(path); string(got) != "mine" {
		t.Errorf("the file now holds %q", got)
	}
}

func TestDialWithoutServer(t *testing.T) {
	if _, err := ipc.Dial(t.Context(), socketPath(t)); !errors.Is(err, ipc.ErrNotRunning) {
		t.Errorf("Dial = %v, want ErrNotRunning", err)
	}
}
