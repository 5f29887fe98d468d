package statusapi

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// socketPath is short: a socket's path has at most 108 bytes.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "status")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "run", "s.sock")
}

// start serves and returns once the socket answers.
func start(t *testing.T, socket string, st Status) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, socket, func() Status { return st }, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			done <- err
			t.Fatalf("Serve ended: %v", err)
		case <-tick.C:
		}
		if _, err := Fetch(t.Context(), socket); err == nil {
			return
		}
	}
}

func TestRoundTrip(t *testing.T) {
	socket := socketPath(t)
	want := Status{
		Version: "1", PID: 7, Started: time.Unix(1_700_000_000, 0).UTC(), ID: "con_1", Key: "3f1c", Live: true, Grants: 2, Flows: 3,
		Uplink: Uplink{Problem: "away"}, Relays: []Relay{{ID: "rly_1", Transport: "udp", Up: true}},
		Apps: []App{{ID: "app_1", Name: "wiki", Targets: []Target{{"tcp", "10.0.0.5:80"}}, State: "ok"}}, ClockOffsetMS: -5,
	}
	start(t, socket, want)
	got, err := Fetch(t.Context(), socket)
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("Fetch = %v, %s", err, d)
	}
	second, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := Serve(second, socket, func() Status { return Status{} }, slog.New(slog.DiscardHandler)); !errors.Is(err, ErrInUse) {
		t.Errorf("a second connector on the socket: %v", err)
	}
	if st, err := os.Stat(filepath.Dir(socket)); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("the directory made: %v, %v", st.Mode(), err)
	}
}

// TestKeepsPrivateDirectories: the state directory stays its owner's alone.
func TestKeepsPrivateDirectories(t *testing.T) {
	socket := socketPath(t)
	if err := os.Mkdir(filepath.Dir(socket), 0o700); err != nil {
		t.Fatal(err)
	}
	start(t, socket, Status{})
	if st, err := os.Stat(filepath.Dir(socket)); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the directory: %v, %v", st.Mode(), err)
	}
}

func TestNotRunning(t *testing.T) {
	if _, err := Fetch(t.Context(), socketPath(t)); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Fetch = %v", err)
	}
}

// TestWhoMayAsk: root and the connector's own user, by the kernel's word.
func TestWhoMayAsk(t *testing.T) {
	for _, c := range []struct {
		caller uint32
		self   int
		want   bool
	}{{0, 0, true}, {0, 1000, true}, {1000, 1000, true}, {1001, 1000, false}, {1000, 0, false}, {1 << 31, -1, false}, {^uint32(0), -1, false}} {
		if got := allowed(c.caller, c.self); got != c.want {
			t.Errorf("allowed(%d, %d) = %v", c.caller, c.self, got)
		}
	}
	called := false
	h := handler(func() Status { called = true; return Status{} })
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, http.NoBody)) // not over the local socket
	if rec.Code != http.StatusForbidden || called {
		t.Errorf("a caller that the kernel did not name: %d", rec.Code)
	}
}

// TestFetchDoubtsTheAnswer: whoever serves the socket is not trusted to be a connector.
func TestFetchDoubtsTheAnswer(t *testing.T) {
	for name, answer := range map[string]struct {
		code int
		body string
		want error
	}{
		"denied":   {http.StatusForbidden, "{}", ErrDenied},
		"broken":   {http.StatusInternalServerError, "{}", nil},
		"not JSON": {http.StatusOK, "<html>", nil},
		"endless":  {http.StatusOK, `{"id":"` + strings.Repeat("x", maxAnswer) + `"}`, nil},
	} {
		socket := filepath.Join(filepath.Dir(filepath.Dir(socketPath(t))), "f.sock")
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(answer.code)
			_, _ = w.Write([]byte(answer.body))
		}))
		srv.Listener.Close()
		srv.Listener = l
		srv.Start()
		if _, err := Fetch(t.Context(), socket); err == nil || answer.want != nil && !errors.Is(err, answer.want) {
			t.Errorf("%s: Fetch = %v", name, err)
		}
		srv.Close()
	}
}
