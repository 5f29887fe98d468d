package client

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/postern-zt/postern/client/proxy"
	"github.com/postern-zt/postern/client/session"
	"github.com/postern-zt/postern/client/tunnels"
	"github.com/postern-zt/postern/netstack/link"
	"github.com/postern-zt/postern/platform/ipc"
	"github.com/postern-zt/postern/proto/frame"
)

// OutcomeOf says what a program is told about an error of Open. Unknown errors are no
// permission.
func OutcomeOf(err error) session.Outcome {
	if refusal, ok := errors.AsType[*frame.Error](err); ok {
		return session.OutcomeOf(refusal.Code)
	}
	switch {
	case errors.Is(err, tunnels.ErrNoConnector), errors.Is(err, tunnels.ErrBroker), errors.Is(err, tunnels.ErrNotGiven),
		errors.Is(err, link.ErrNoCarrier), errors.Is(err, tunnels.ErrUnknownApp), errors.Is(err, tunnels.ErrClosed), errors.Is(err, link.ErrClosed):
		return session.Unreachable
	case errors.Is(err, context.DeadlineExceeded):
		return session.TimedOut
	default:
		return session.NotAllowed
	}
}

// SOCKSReply is OutcomeOf in the words of SOCKS.
func SOCKSReply(err error) proxy.Reply {
	switch OutcomeOf(err) {
	case session.Refused:
		return proxy.ConnectionRefused
	case session.Unreachable:
		return proxy.HostUnreachable
	case session.TimedOut:
		return proxy.TTLExpired
	default:
		return proxy.NotAllowed
	}
}

// AdmitUser admits programs of one user; whose program it is the kernel says. Where the
// system cannot tell, the loopback address has to do.
func AdmitUser(uid uint32) func(program, proxy netip.AddrPort) error {
	return func(program, own netip.AddrPort) error {
		owner, err := ipc.Owner(ipc.TCP, program, own)
		switch {
		case errors.Is(err, errors.ErrUnsupported):
			return nil
		case err != nil:
			return err
		case owner != uid:
			return fmt.Errorf("user %d uses the tunnels of user %d", owner, uid)
		}
		return nil
	}
}
