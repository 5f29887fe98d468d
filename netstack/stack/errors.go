package stack

import "errors"

var (
	// ErrDecided is returned by the second verdict on one flow.
	ErrDecided = errors.New("flow has its verdict already")
	// ErrExpired is returned when the verdict came after the hold time.
	ErrExpired = errors.New("hold time is over")
	// ErrHandshake is what a HandshakeError is.
	ErrHandshake = errors.New("local program did not complete its handshake")
	// ErrTooLarge is returned for a datagram that fits no IP packet.
	ErrTooLarge = errors.New("datagram too large")
)

// HandshakeError says why the local program is not connected.
type HandshakeError struct {
	Detail string
}

func (e *HandshakeError) Error() string { return ErrHandshake.Error() + ": " + e.Detail }

// Is makes it an ErrHandshake.
func (e *HandshakeError) Is(target error) bool { return target == ErrHandshake }
