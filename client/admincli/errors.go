package admincli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"connectrpc.com/connect"
	"github.com/alecthomas/kong"

	"github.com/postern-zt/postern/platform/ipc"
)

// Exit codes of `postern admin`.
const (
	ExitError       = 1
	ExitUsage       = 2
	ExitRefused     = 3
	ExitNotFound    = 4
	ExitUnreachable = 5
)

// Error is an error with its exit code.
type Error struct {
	Code int
	err  error
}

// Error says what happened.
func (e *Error) Error() string { return e.err.Error() }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.err }

// ExitCode is how the process ends; kong asks for it.
func (e *Error) ExitCode() int { return e.Code }

// ExitCode returns how a process ends after err; 0 for nil. It also knows errors of the
// command line.
func ExitCode(err error) int {
	var own *Error
	var parse *kong.ParseError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &own):
		return own.Code
	case errors.As(err, &parse):
		return ExitUsage
	default:
		return ExitError
	}
}

func usage(format string, args ...any) error {
	return &Error{Code: ExitUsage, err: fmt.Errorf(format, args...)}
}

func refused(format string, args ...any) error {
	return &Error{Code: ExitRefused, err: fmt.Errorf(format, args...)}
}

func unreachable(format string, args ...any) error {
	return &Error{Code: ExitUnreachable, err: fmt.Errorf(format, args...)}
}

// explain turns the error of a call into what a person can act on. where is the broker
// that was asked.
func explain(where string, err error) error {
	var ce *connect.Error
	switch {
	case errors.Is(err, ipc.ErrNotRunning):
		return unreachable("no broker answers at %s; start one with `postern-broker run`, or name one elsewhere with `postern admin login URL`", where)
	case errors.Is(err, fs.ErrPermission):
		return refused("%s is not for this user; run this as root or as the user who runs the broker", where)
	case errors.Is(err, context.Canceled), !errors.As(err, &ce):
		return err
	}
	text := errors.New(clean(ce.Message()))
	switch ce.Code() {
	case connect.CodeInvalidArgument, connect.CodeOutOfRange:
		return &Error{Code: ExitUsage, err: text}
	case connect.CodePermissionDenied, connect.CodeUnauthenticated:
		return &Error{Code: ExitRefused, err: text}
	case connect.CodeNotFound:
		return &Error{Code: ExitNotFound, err: text}
	case connect.CodeUnavailable, connect.CodeDeadlineExceeded:
		return unreachable("the broker at %s does not answer: %w", where, text)
	default:
		return text
	}
}
