package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
)

// SignalError is the cause of a context that a signal cancelled.
type SignalError struct {
	// Signal is the signal that arrived.
	Signal os.Signal
}

// Error names the signal.
func (e *SignalError) Error() string { return fmt.Sprintf("stopped by signal %v", e.Signal) }

// Signals returns a context that the first interrupt or terminate signal cancels
// with a [*SignalError], so that the process drains. The second signal calls
// second, in which main exits at once. The returned stop function ends the
// listening and may be called twice.
func Signals(parent context.Context, log *slog.Logger, second func()) (context.Context, func()) {
	arrived := make(chan os.Signal, 2) // two: the one that drains and the one that exits
	signal.Notify(arrived, stopSignals()...)
	ctx, cancel := context.WithCancelCause(parent)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { watch(arrived, done, cancel, log, second) })
	var once sync.Once
	return ctx, func() {
		once.Do(func() {
			signal.Stop(arrived)
			close(done)
		})
		wg.Wait()
		cancel(nil)
	}
}

func watch(arrived <-chan os.Signal, done <-chan struct{}, cancel context.CancelCauseFunc, log *slog.Logger, second func()) {
	for n := 1; ; n++ {
		select {
		case <-done:
			return
		case s := <-arrived:
			if n > 1 {
				log.Warn("second signal, exiting at once", "signal", s.String())
				second()
				return
			}
			log.Info("signal, draining", "signal", s.String())
			cancel(&SignalError{Signal: s})
		}
	}
}
