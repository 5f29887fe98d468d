// Package attach is the holder's side of a relay: how a client reaches a connector
// through it and how a connector stands ready there. Both carriers use it.
//
//	TCP  client     DialTCP(ctx, cfg, ticket)            -> raw conn to the connector
//	     connector  Serve(ctx, cfg, tickets, onCall)     standing, re-attaches by itself
//	UDP  either     BindUDP(ctx, cfg, tickets)           -> *Binding, kept alive, re-bound
//	                Binding.Path(link) / Binding.Accept  -> *Path, the packets of one link
//
// What comes out is not authenticated end to end: the caller runs the inner TLS or QUIC
// (netstack/peer) over it before trusting a byte. It must not know grants or flows, and
// cannot read tickets. Everything is safe for concurrent use unless it says otherwise.
package attach

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/postern-zt/postern/netstack/relay/wire"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/ticket"
)

// RelayInfo is what the broker says about a relay.
type RelayInfo struct {
	ID ids.RelayID
	// TCP and UDP are the relay's addresses, host:port, in order of preference.
	TCP, UDP []string
	// TLS verifies the relay's certificate (RootCAs and ServerName, or the broker's pin in
	// VerifyConnection). ALPN and version are set here; nil is an error.
	TLS *tls.Config
}

// Ticket is what the broker handed over: the sealed ticket and what its holder must know.
type Ticket struct {
	Sealed  []byte
	Role    ticket.Role
	Handle  ticket.Handle
	MACKey  ticket.MACKey
	Expires time.Time
}

// Tickets returns a ticket that is valid now; it is asked again for each attempt and
// before the present one ends.
type Tickets func(ctx context.Context) (Ticket, error)

// Fixed returns the Tickets of a caller that has a single one.
func Fixed(t Ticket) Tickets { return func(context.Context) (Ticket, error) { return t, nil } }

// Dialer opens TCP connections; *net.Dialer and ProxyDialer are ones.
type Dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// Config is common to all ways of attaching.
type Config struct {
	Relay RelayInfo
	// Dialer opens the TCP connections; nil means a plain net.Dialer.
	Dialer Dialer
	// Log is required by Serve and BindUDP.
	Log *slog.Logger
	// Now is the clock for ticket expiry; nil means time.Now.
	Now func() time.Time
	// OnAttached is called by Serve each time the connector stands at the relay; it must
	// not block. Optional: a good moment for Binding.Rebind, the relay may have restarted.
	OnAttached func()
}

func (c Config) now() time.Time {
	if c.Now == nil {
		return time.Now()
	}
	return c.Now()
}

// ErrAddress says that RelayInfo names no usable address.
var ErrAddress = errors.New("relay has no address")

// RefusedError is a relay's refusal.
type RefusedError struct{ Code wire.Code }

// Error names the code.
func (e *RefusedError) Error() string { return fmt.Sprintf("relay refused: %s", e.Code) }

// Is makes two refusals of one code equal for errors.Is.
func (e *RefusedError) Is(target error) bool {
	t, ok := target.(*RefusedError)
	return ok && t.Code == e.Code
}
