package tunnels_test

import (
	"errors"
	"testing"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/client/tunnels"
	"github.com/postern-zt/postern/netstack/control/controltest"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
)

// TestRefusalsByReason: the broker's reason decides; without one, as from an older broker,
// and with one that this client does not know, the code does.
func TestRefusalsByReason(t *testing.T) {
	for _, c := range []struct {
		code   connect.Code
		reason controlv1.Reason
		want   error
	}{
		{connect.CodePermissionDenied, controlv1.Reason_REASON_BLOCKED, tunnels.ErrBlocked},
		{connect.CodePermissionDenied, controlv1.Reason_REASON_REMOVED, tunnels.ErrRemoved},
		{connect.CodePermissionDenied, controlv1.Reason_REASON_UNSPECIFIED, tunnels.ErrBlocked},
		{connect.CodePermissionDenied, 99, tunnels.ErrBlocked},
		{connect.CodeUnavailable, controlv1.Reason_REASON_NOT_RECORDED, tunnels.ErrNotGiven},
		{connect.CodeUnavailable, controlv1.Reason_REASON_NO_CONNECTOR, tunnels.ErrNoConnector},
		{connect.CodeUnavailable, controlv1.Reason_REASON_UNSPECIFIED, tunnels.ErrNoConnector},
		{connect.CodeFailedPrecondition, controlv1.Reason_REASON_SIGNED_OUT, tunnels.ErrSignedOut},
		{connect.CodeNotFound, controlv1.Reason_REASON_NO_SUCH_APP, tunnels.ErrUnknownApp},
		{connect.CodeInternal, controlv1.Reason_REASON_UNSPECIFIED, tunnels.ErrBroker},
	} {
		if err := tunnels.ExplainForTest(controltest.Heard(c.code, c.reason, "x")); !errors.Is(err, c.want) {
			t.Errorf("%v with %v: %v, want %v", c.code, c.reason, err, c.want)
		}
	}
	if err := tunnels.ExplainForTest(controltest.Refusal(connect.CodePermissionDenied, controlv1.Reason_REASON_REMOVED, "x")); !errors.Is(err, tunnels.ErrBroker) {
		t.Errorf("an error that no broker sent: %v", err)
	}
}
