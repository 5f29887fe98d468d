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
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
)

// refusal is how a call ends on the wire: a code and a reason for programs, a sentence for
// people. Connectors of the first releases tell a removal by its sentence, so that one stays.
type refusal struct {
	code   connect.Code
	reason controlv1.Reason
	text   string
}

func (r *refusal) Error() string { return r.text }

// wire returns the error that crosses the wire.
func (r *refusal) wire() error {
	err := connect.NewError(r.code, errors.New(r.text))
	if r.reason == controlv1.Reason_REASON_UNSPECIFIED {
		return err
	}
	if d, bad := connect.NewErrorDetail(&controlv1.ErrorDetail{Reason: r.reason}); bad == nil {
		err.AddDetail(d)
	}
	return err
}

func unauthenticated(format string, args ...any) error {
	return &refusal{connect.CodeUnauthenticated, controlv1.Reason_REASON_CERTIFICATE, fmt.Sprintf(format, args...)}
}

func badRequest(format string, args ...any) error {
	return &refusal{code: connect.CodeInvalidArgument, text: fmt.Sprintf(format, args...)}
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

// wireError maps an error of the leaves to a code, a reason and a sentence that is safe for
// people.
func (a *API) wireError(ctx context.Context, procedure string, err error) error {
	var ce *connect.Error
	if errors.As(err, &ce) {
		return err
	}
	r := refusalOf(err)
	if r.code == connect.CodeInternal {
		a.log.ErrorContext(ctx, "call failed", "procedure", procedure, "error", err)
	}
	return r.wire()
}

// refusalOf is the one map from inner errors to what crosses the wire.
func refusalOf(err error) *refusal {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r
	}
	if reason := enroll.Reason(err); reason != "" {
		return &refusal{connect.CodePermissionDenied, controlv1.Reason_REASON_TOKEN, reason + ": " + err.Error() + tokenAdvice(err)}
	}
	if reason := audit.Reason(err); reason != "" {
		return &refusal{connect.CodeInvalidArgument, controlv1.Reason_REASON_RECORDS, reason + ": " + err.Error()}
	}
	var ie *identity.Error
	switch {
	case errors.As(err, &ie):
		return &refusal{connect.CodeUnauthenticated, controlv1.Reason_REASON_IDENTITY, string(identity.ReasonOf(err))}
	case errors.Is(err, registry.ErrBlocked):
		return &refusal{connect.CodePermissionDenied, controlv1.Reason_REASON_BLOCKED, "an administrator has blocked this machine"}
	case errors.Is(err, registry.ErrRemoved):
		return &refusal{connect.CodePermissionDenied, controlv1.Reason_REASON_REMOVED, "an administrator has removed this machine"}
	case errors.Is(err, enroll.ErrTooOld):
		return &refusal{connect.CodePermissionDenied, controlv1.Reason_REASON_CERTIFICATE_TOO_OLD, "the certificate expired too long ago; join or sign in again"}
	case errors.Is(err, session.ErrEnded), errors.Is(err, session.ErrNotFound):
		return &refusal{connect.CodeFailedPrecondition, controlv1.Reason_REASON_SIGNED_OUT, "nobody is signed in on this device; sign in again"}
	case errors.Is(err, authorize.ErrUnavailable):
		return &refusal{connect.CodeUnavailable, controlv1.Reason_REASON_NOT_RECORDED, "the decision could not be recorded, so nothing is allowed; tell an administrator"}
	case errors.Is(err, authorize.ErrNoConnector):
		return &refusal{connect.CodeUnavailable, controlv1.Reason_REASON_NO_CONNECTOR, "no connector serves this app at present"}
	case errors.Is(err, grants.ErrRevoked):
		return &refusal{connect.CodeAborted, controlv1.Reason_REASON_WITHDRAWN, "the access was withdrawn while it was asked for; try again"}
	default:
		return plainRefusal(err)
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

// plainRefusal is for what callers tell by the code alone.
func plainRefusal(err error) *refusal {
	switch {
	case errors.Is(err, keys.ErrBadRequest), errors.Is(err, registry.ErrInvalid),
		errors.Is(err, catalog.ErrInvalid), errors.Is(err, catalog.ErrUnsupported):
		return &refusal{code: connect.CodeInvalidArgument, text: err.Error()}
	case errors.Is(err, registry.ErrNotFound), errors.Is(err, directory.ErrNotFound), errors.Is(err, catalog.ErrNotFound):
		return &refusal{code: connect.CodeNotFound, text: err.Error()}
	case errors.Is(err, registry.ErrExists), errors.Is(err, catalog.ErrConflict), errors.Is(err, catalog.ErrExists), errors.Is(err, push.ErrSuperseded):
		return &refusal{code: connect.CodeAborted, text: err.Error()}
	case errors.Is(err, context.Canceled):
		return &refusal{code: connect.CodeCanceled, text: "cancelled"}
	case errors.Is(err, context.DeadlineExceeded):
		return &refusal{code: connect.CodeDeadlineExceeded, text: "the broker took too long"}
	default:
		return &refusal{code: connect.CodeInternal, text: "something went wrong in the broker; its log says what"}
	}
}
