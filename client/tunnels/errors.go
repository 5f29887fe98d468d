package tunnels

import (
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/link"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
)

// Errors that callers branch on. A connector's refusal is a *frame.Error.
var (
	// ErrUnknownApp says that no app has this name, or none that the user can see.
	ErrUnknownApp = errors.New("there is no app with this name that you can see")
	// ErrSignedOut says that nobody is signed in.
	ErrSignedOut = errors.New("nobody is signed in on this device")
	// ErrBroker says that the broker cannot be reached and no grant is at hand.
	ErrBroker = errors.New("the broker cannot be reached")
	// ErrNoConnector says that nothing serves the app at present.
	ErrNoConnector = errors.New("no connector serves this app at present")
	// ErrBlocked says that the broker does not admit this device.
	ErrBlocked = errors.New("the broker does not admit this device")
	// ErrRemoved says that it never will again.
	ErrRemoved = errors.New("the broker does not admit this device any more")
	// ErrNotGiven says that the broker was reached and could not give access at this moment.
	ErrNotGiven = errors.New("the broker gives no access at this moment")
	// ErrClosed says that the tunnels have ended.
	ErrClosed = errors.New("the client is ending")
)

// errNotReached is a connector that no carrier reached in time.
var errNotReached = fmt.Errorf("the connector of this app cannot be reached: %w", link.ErrNoCarrier)

// DeniedError is a refusal by policy.
type DeniedError struct{ Receipt *controlv1.Receipt }

// Error gives reason and receipt.
func (e *DeniedError) Error() string {
	return fmt.Sprintf("access denied: %s (receipt %s)", e.Receipt.GetReason(), e.Receipt.GetId())
}

// explain turns an error of the Authorize call into one of ours. Whatever is unknown is
// no permission.
func explain(err error) error {
	var ce *connect.Error
	if !errors.As(err, &ce) || !connect.IsWireError(err) {
		return fmt.Errorf("%w: %w", ErrBroker, err)
	}
	if known := byReason(err); known != nil {
		return fmt.Errorf("%w: %s", known, ce.Message())
	}
	switch ce.Code() {
	case connect.CodeNotFound:
		return ErrUnknownApp
	case connect.CodeFailedPrecondition:
		return ErrSignedOut
	case connect.CodeUnauthenticated, connect.CodePermissionDenied:
		return fmt.Errorf("%w: %s", ErrBlocked, ce.Message())
	case connect.CodeUnavailable:
		return fmt.Errorf("%w: %s", ErrNoConnector, ce.Message())
	default:
		return fmt.Errorf("%w: %s", ErrBroker, ce.Message())
	}
}

// byReason returns our error for the broker's reason; nil leaves it to the code, as does a
// broker that is older than reasons.
func byReason(err error) error {
	switch control.ReasonOf(err) {
	case controlv1.Reason_REASON_BLOCKED:
		return ErrBlocked
	case controlv1.Reason_REASON_REMOVED:
		return ErrRemoved
	case controlv1.Reason_REASON_NOT_RECORDED, controlv1.Reason_REASON_WITHDRAWN, controlv1.Reason_REASON_TOO_OFTEN:
		return ErrNotGiven
	default:
		return nil
	}
}
