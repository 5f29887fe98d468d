// Package daemon runs the parts of a long-lived process: the run group, the
// two-step stop by signals, the ready message to the service manager and the
// limit on open files.
//
// The root packages of the roles hand their parts to [Run]; the mains use
// [Signals], [Notify] and [RaiseFileLimit]. The package never exits the process
// and never reads the environment: main passes in what it wants used.
//
// All functions are safe for concurrent use; each goroutine started here has
// ended when the function (or the returned stop function) returns.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
)

// Part is one long-running piece of a process.
type Part struct {
	// Name tells parts apart in errors and logs.
	Name string
	// Run works until ctx is done and returns only when every goroutine it
	// started has ended. A nil result before that means the part had nothing
	// more to do; the others go on.
	Run func(ctx context.Context) error
}

// PanicError is the error of a part that panicked.
type PanicError struct {
	// Value is what the part panicked with.
	Value any
	// Stack is the stack of the panicking goroutine.
	Stack []byte
}

// Error gives the panic value; the stack goes to the log.
func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Unwrap gives the panic value when it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// Run runs all parts at the same time and returns when all have ended.
//
// The first error of a part cancels the others, with that error as the cause of
// their context, and is what Run returns. Errors of later parts are logged: they
// are the consequence. A part that only reports the cancelled context is not in
// error, so Run returns nil after the caller cancelled ctx.
func Run(ctx context.Context, log *slog.Logger, parts ...Part) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	g := &group{ctx: ctx, cancel: cancel, log: log}
	var wg sync.WaitGroup
	for _, p := range parts {
		wg.Go(func() { g.ended(p.Name, g.guarded(p)) })
	}
	wg.Wait()
	return g.first
}

// group collects the results of one Run.
type group struct {
	ctx    context.Context // of this one call of Run, handed to its parts
	cancel context.CancelCauseFunc
	log    *slog.Logger

	mu    sync.Mutex
	first error
}

func (g *group) guarded(p Part) (err error) {
	defer func() {
		if v := recover(); v != nil {
			pe := &PanicError{Value: v, Stack: debug.Stack()}
			g.log.Error("part panicked", "part", p.Name, "error", pe, "stack", string(pe.Stack))
			err = pe
		}
	}()
	return p.Run(g.ctx)
}

func (g *group) ended(name string, err error) {
	if err == nil || g.onlyCancelled(err) {
		g.log.Debug("part ended", "part", name)
		return
	}
	err = fmt.Errorf("%s: %w", name, err)
	g.mu.Lock()
	isFirst := g.first == nil
	if isFirst {
		g.first = err
	}
	g.mu.Unlock()
	if !isFirst {
		g.log.Warn("part ended with error during stop", "part", name, "error", err)
		return
	}
	g.cancel(err)
}

// onlyCancelled tells whether err says nothing but that the context ended.
func (g *group) onlyCancelled(err error) bool {
	if g.ctx.Err() == nil {
		return false
	}
	return errors.Is(err, context.Canceled) || errors.Is(err, g.ctx.Err()) || errors.Is(err, context.Cause(g.ctx))
}
