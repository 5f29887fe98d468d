package control_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/control/controltest"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/control/v1/controlv1connect"
)

// refuser answers every call with the same error.
type refuser struct {
	controlv1connect.UnimplementedConnectorServiceHandler
	err error
}

func (r *refuser) Leave(context.Context, *connect.Request[controlv1.LeaveRequest]) (*connect.Response[controlv1.LeaveResponse], error) {
	return nil, r.err
}

func (r *refuser) Watch(context.Context, *connect.Request[controlv1.WatchRequest], *connect.ServerStream[controlv1.ConnectorPush]) error {
	return r.err
}

// TestReasonOf: a reason is heard over calls and streams; nothing is read out of a text, out
// of an error that did not come from a broker, or out of a detail that is no reason.
func TestReasonOf(t *testing.T) {
	removed := controlv1.Reason_REASON_REMOVED
	later := connect.NewError(connect.CodePermissionDenied, errors.New("x"))
	detail, err := connect.NewErrorDetail(durationpb.New(1))
	if err != nil {
		t.Fatal(err)
	}
	later.AddDetail(detail)
	b := &refuser{}
	mux := http.NewServeMux()
	mux.Handle(controlv1connect.NewConnectorServiceHandler(b))
	srv := httptest.NewServer(mux)
	defer srv.Close()
	client := controlv1connect.NewConnectorServiceClient(srv.Client(), srv.URL)
	for name, c := range map[string]struct {
		err  error
		want controlv1.Reason
	}{
		"removed":         {controltest.Refusal(connect.CodePermissionDenied, removed, "x"), removed},
		"blocked":         {controltest.Refusal(connect.CodePermissionDenied, controlv1.Reason_REASON_BLOCKED, "x"), controlv1.Reason_REASON_BLOCKED},
		"an older broker": {connect.NewError(connect.CodePermissionDenied, errors.New("an administrator has removed this machine")), 0},
		"a later broker":  {controltest.Refusal(connect.CodePermissionDenied, 99, "x"), 99},
		"another detail":  {later, 0},
	} {
		b.err = c.err
		_, err := client.Leave(t.Context(), connect.NewRequest(&controlv1.LeaveRequest{}))
		if got := control.ReasonOf(err); err == nil || got != c.want {
			t.Errorf("%s: a call gives %v (%v), want %v", name, got, err, c.want)
		}
		stream, err := client.Watch(t.Context(), connect.NewRequest(&controlv1.WatchRequest{}))
		if err == nil {
			stream.Receive()
			err = stream.Err()
			stream.Close()
		}
		if got := control.ReasonOf(err); got != c.want {
			t.Errorf("%s: a stream gives %v (%v), want %v", name, got, err, c.want)
		}
	}
	for name, err := range map[string]error{
		"nil": nil, "our own": errors.New("x"), "not from the wire": controltest.Refusal(connect.CodePermissionDenied, removed, "x"),
	} {
		if got := control.ReasonOf(err); got != 0 {
			t.Errorf("%s: %v", name, got)
		}
	}
	srv.Client().CloseIdleConnections()
}
