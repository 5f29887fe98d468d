//go:build unix

package daemon_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-zt/postern/platform/daemon"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

func untilDone(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestFirstErrorCancelsTheRestWithItsCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boom := errors.New("boom")
		var cause error
		err := daemon.Run(t.Context(), quiet,
			daemon.Part{Name: "works", Run: func(ctx context.Context) error {
				<-ctx.Done()
				cause = context.Cause(ctx)
				return errors.New("late consequence")
			}},
			daemon.Part{Name: "fails", Run: func(context.Context) error {
				<-time.After(time.Second)
				return boom
			}},
		)
		if !errors.Is(err, boom) || err.Error() != "fails: boom" {
			t.Errorf("Run = %v, want fails: boom", err)
		}
		if !errors.Is(cause, boom) {
			t.Errorf("cause = %v, want boom", cause)
		}
	})
}

func TestRunAwaitsEveryPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ended atomic.Bool
		_ = daemon.Run(t.Context(), quiet,
			daemon.Part{Name: "slow", Run: func(ctx context.Context) error {
				<-ctx.Done()
				<-time.After(time.Minute)
				ended.Store(true)
				return nil
			}},
			daemon.Part{Name: "fails", Run: func(context.Context) error { return errors.New("x") }},
		)
		if !ended.Load() {
			t.Error("Run returned before the slow part ended")
		}
	})
}

func TestPanicBecomesError(t *testing.T) {
	inner := errors.New("inner")
	err := daemon.Run(t.Context(), quiet,
		daemon.Part{Name: "bad", Run: func(context.Context) error { panic(inner) }},
		daemon.Part{Name: "good", Run: untilDone},
	)
	var pe *daemon.PanicError
	if !errors.As(err, &pe) || len(pe.Stack) == 0 || !errors.Is(err, inner) {
		t.Errorf("Run = %v, want a PanicError around inner", err)
	}
}

func TestCancelledByTheCallerIsNoError(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("told to stop")
	cancel(cause)
	err := daemon.Run(ctx, quiet,
		daemon.Part{Name: "a", Run: untilDone},
		daemon.Part{Name: "b", Run: func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) }},
	)
	if err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
}

func TestErrorDuringStopIsReported(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	bad := errors.New("flush failed")
	err := daemon.Run(ctx, quiet, daemon.Part{Name: "a", Run: func(context.Context) error { return bad }})
	if !errors.Is(err, bad) {
		t.Errorf("Run = %v, want flush failed", err)
	}
}

func TestPartThatIsDoneStopsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		start := time.Now()
		err := daemon.Run(ctx, quiet,
			daemon.Part{Name: "once", Run: func(context.Context) error { return nil }},
			daemon.Part{Name: "long", Run: untilDone},
		)
		if err != nil || time.Since(start) != time.Hour {
			t.Errorf("Run = %v after %v, want nil after an hour", err, time.Since(start))
		}
	})
}

func TestRunWithoutParts(t *testing.T) {
	if err := daemon.Run(t.Context(), quiet); err != nil {
		t.Errorf("Run = %v", err)
	}
}

func TestFirstSignalDrainsSecondExits(t *testing.T) {
	exited := make(chan struct{})
	ctx, stop := daemon.Signals(t.Context(), quiet, func() { close(exited) })
	defer stop()
	interrupt(t)
	<-ctx.Done()
	var se *daemon.SignalError
	if !errors.As(context.Cause(ctx), &se) || se.Signal != os.Interrupt {
		t.Errorf("cause = %v, want the interrupt", context.Cause(ctx))
	}
	select {
	case <-exited:
		t.Fatal("exited at the first signal")
	default:
	}
	interrupt(t)
	<-exited
	stop()
	stop()
}

func interrupt(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
}

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := daemon.Notify(path, daemon.Ready); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	n, err := l.Read(buf)
	if err != nil || string(buf[:n]) != "READY=1" {
		t.Errorf("service manager read %q, %v", buf[:n], err)
	}
	if err := daemon.Notify("", daemon.Ready); err != nil {
		t.Errorf("Notify without a service manager = %v", err)
	}
	for _, bad := range []string{"relative", path + ".none"} {
		if err := daemon.Notify(bad, daemon.Ready); err == nil {
			t.Errorf("Notify(%q) succeeded", bad)
		}
	}
}

func TestRaiseFileLimit(t *testing.T) {
	got, err := daemon.RaiseFileLimit(64)
	if err != nil || got < 64 {
		t.Errorf("RaiseFileLimit(64) = %d, %v", got, err)
	}
	more, err := daemon.RaiseFileLimit(got)
	if err != nil || more != got {
		t.Errorf("RaiseFileLimit(%d) = %d, %v, want it unchanged", got, more, err)
	}
}
