package controlapi

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker/authorize"
	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/broker/enroll"
	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/session"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
)

// TestRefusalOfTargets: whoever publishes learns what to write instead.
func TestRefusalOfTargets(t *testing.T) {
	for target, want := range map[string]string{
		"http://10.0.0.5/": "host:port without http://",
		"10.0.0.0/8":       "not yet supported",
	} {
		_, err := catalog.ParseTarget(target)
		if r := refusalOf(err); r.code != connect.CodeInvalidArgument || !strings.Contains(r.text, want) {
			t.Errorf("%s: %v %q, want %q", target, r.code, r.text, want)
		}
	}
}

// TestReasonsOnTheWire: programs tell refusals apart by their reason; what has none is told
// by its code, and what is inside stays inside.
func TestReasonsOnTheWire(t *testing.T) {
	a := &API{log: slog.New(slog.DiscardHandler)}
	for _, c := range []struct {
		err    error
		code   connect.Code
		reason controlv1.Reason
		text   string
	}{
		{registry.ErrBlocked, connect.CodePermissionDenied, controlv1.Reason_REASON_BLOCKED, "an administrator has blocked this machine"},
		// Connectors of the first releases compare this sentence.
		{registry.ErrRemoved, connect.CodePermissionDenied, controlv1.Reason_REASON_REMOVED, "an administrator has removed this machine"},
		{unauthenticated("x"), connect.CodeUnauthenticated, controlv1.Reason_REASON_CERTIFICATE, "x"},
		{enroll.ErrTooOld, connect.CodePermissionDenied, controlv1.Reason_REASON_CERTIFICATE_TOO_OLD, "the certificate expired too long ago; join or sign in again"},
		{session.ErrNotFound, connect.CodeFailedPrecondition, controlv1.Reason_REASON_SIGNED_OUT, "nobody is signed in on this device; sign in again"},
		{authorize.ErrNoConnector, connect.CodeUnavailable, controlv1.Reason_REASON_NO_CONNECTOR, "no connector serves this app at present"},
		{authorize.ErrUnavailable, connect.CodeUnavailable, controlv1.Reason_REASON_NOT_RECORDED, "the decision could not be recorded, so nothing is allowed; tell an administrator"},
		{grants.ErrRevoked, connect.CodeAborted, controlv1.Reason_REASON_WITHDRAWN, "the access was withdrawn while it was asked for; try again"},
		{errNoApp(), connect.CodeNotFound, controlv1.Reason_REASON_NO_SUCH_APP, "no app with this name"},
		{badRequest("at most %d", 3), connect.CodeInvalidArgument, controlv1.Reason_REASON_UNSPECIFIED, "at most 3"},
		{errors.New("password=hunter2"), connect.CodeInternal, controlv1.Reason_REASON_UNSPECIFIED, "something went wrong in the broker; its log says what"},
	} {
		for _, err := range []error{c.err, fmt.Errorf("inside: %w", c.err)} {
			var ce *connect.Error
			if !errors.As(a.wireError(t.Context(), "x", err), &ce) {
				t.Fatalf("%v is no wire error", err)
			}
			if ce.Code() != c.code || ce.Message() != c.text || reasonIn(t, ce) != c.reason {
				t.Errorf("%v: %v %v %q", err, ce.Code(), reasonIn(t, ce), ce.Message())
			}
		}
	}
}

func reasonIn(t *testing.T, ce *connect.Error) controlv1.Reason {
	t.Helper()
	for _, d := range ce.Details() {
		v, err := d.Value()
		if err != nil {
			t.Fatal(err)
		}
		return v.(*controlv1.ErrorDetail).Reason
	}
	return controlv1.Reason_REASON_UNSPECIFIED
}
