package controlapi

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/broker/authorize"
	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/broker/enroll"
	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/identity"
	"github.com/postern-zt/postern/broker/keys"
	"github.com/postern-zt/postern/broker/push"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/session"
)

func unauthenticated(format string, args ...any) error {
	return connect.NewError(connect.CodeUnauthenticated, fmt.Errorf(format, args...))
}

func badRequest(format string, args ...any) error {
	return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf(format, args...))
}

// logErrors turns inner errors into wire errors, in this one place, and logs what stays
// inside.
func (a *API) logErrors() connect.Interceptor { return errorInterceptor{a} }

type errorInterceptor struct{ a *API }

func (e errorInterceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		if err != nil {
			return nil, e.a.wireError(ctx, req.Spec().Procedure, err)
		}
		return resp, nil
	}
}

func (e errorInterceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (e errorInterceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := next(ctx, conn); err != nil {
			return e.a.wireError(ctx, conn.Spec().Procedure, err)
		}
		return nil
	}
}

// wireError maps an error of the leaves to a code and a sentence that is safe for people.
func (a *API) wireError(ctx context.Context, procedure string, err error) error {
	var ce *connect.Error
	if errors.As(err, &ce) {
		return err
	}
	code, text := wireCode(err)
	if code == connect.CodeInternal {
		a.log.ErrorContext(ctx, "call failed", "procedure", procedure, "error", err)
	}
	return connect.NewError(code, errors.New(text))
}

func wireCode(err error) (connect.Code, string) {
	if reason := enroll.Reason(err); reason != "" {
		return connect.CodePermissionDenied, reason + ": " + err.Error() + tokenAdvice(err)
	}
	if reason := audit.Reason(err); reason != "" {
		return connect.CodeInvalidArgument, reason + ": " + err.Error()
	}
	var ie *identity.Error
	switch {
	case errors.As(err, &ie):
		return connect.CodeUnauthenticated, string(identity.ReasonOf(err))
	case errors.Is(err, registry.ErrBlocked):
		return connect.CodePermissionDenied, "an administrator has blocked this machine"
	case errors.Is(err, registry.ErrRemoved):
		return connect.CodePermissionDenied, "an administrator has removed this machine"
	case errors.Is(err, enroll.ErrTooOld):
		return connect.CodePermissionDenied, "the certificate expired too long ago; join or sign in again"
	case errors.Is(err, session.ErrEnded), errors.Is(err, session.ErrNotFound):
		return connect.CodeFailedPrecondition, "nobody is signed in on this device; sign in again"
	case errors.Is(err, keys.ErrBadRequest), errors.Is(err, registry.ErrInvalid),
		errors.Is(err, catalog.ErrInvalid), errors.Is(err, catalog.ErrUnsupported):
		return connect.CodeInvalidArgument, err.Error()
	case errors.Is(err, registry.ErrNotFound), errors.Is(err, directory.ErrNotFound), errors.Is(err, catalog.ErrNotFound):
		return connect.CodeNotFound, err.Error()
	case errors.Is(err, registry.ErrExists), errors.Is(err, catalog.ErrConflict), errors.Is(err, push.ErrSuperseded):
		return connect.CodeAborted, err.Error()
	default:
		return wireUnavailable(err)
	}
}

// tokenAdvice says what to do about a token that is whole and opens nothing. The text of a
// malformed one says it already.
func tokenAdvice(err error) string {
	if errors.Is(err, enroll.ErrMalformed) {
		return ""
	}
	return "; ask for a new one: postern admin token add"
}

func wireUnavailable(err error) (connect.Code, string) {
	switch {
	case errors.Is(err, authorize.ErrUnavailable):
		return connect.CodeUnavailable, "the decision could not be recorded, so nothing is allowed; tell an administrator"
	case errors.Is(err, authorize.ErrNoConnector):
		return connect.CodeUnavailable, "no connector serves this app at present"
	case errors.Is(err, grants.ErrRevoked):
		return connect.CodeAborted, "the access was withdrawn while it was asked for; try again"
	case errors.Is(err, context.Canceled):
		return connect.CodeCanceled, "cancelled"
	case errors.Is(err, context.DeadlineExceeded):
		return connect.CodeDeadlineExceeded, "the broker took too long"
	default:
		return connect.CodeInternal, "something went wrong in the broker; its log says what"
	}
}
