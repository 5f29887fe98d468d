package control

import (
	"errors"

	"connectrpc.com/connect"

	controlv1 "github.com/postern-zt/postern/proto/control/v1"
)

// ReasonOf returns why the broker refused a call, unspecified when it gave no reason: it is
// older than reasons, or the error comes from elsewhere. Then the code is all there is.
func ReasonOf(err error) controlv1.Reason {
	var ce *connect.Error
	if !connect.IsWireError(err) || !errors.As(err, &ce) {
		return controlv1.Reason_REASON_UNSPECIFIED
	}
	for _, d := range ce.Details() {
		v, err := d.Value()
		if err != nil { // a detail of a later release
			continue
		}
		if detail, ok := v.(*controlv1.ErrorDetail); ok {
			return detail.GetReason()
		}
	}
	return controlv1.Reason_REASON_UNSPECIFIED
}
