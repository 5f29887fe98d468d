package tunnels

import (
	"errors"
	"fmt"

	"connectrpc.com/connect"

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
