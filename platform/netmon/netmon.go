// Package netmon tells when the network of this host changes and gives each
// network a stable name. The client uses it to probe carriers again after a
// change, and to remember per network which carrier works.
//
// It only watches: it must not change anything on the host. A Monitor is run by
// one goroutine; OnChange is called from that goroutine, one call at a time.
package netmon

import (
	"context"
	"log/slog"
	"net/netip"
	"time"
)

// defaultDebounce is long enough for the burst of messages that one change gives,
// and short against the patience of a person.
const defaultDebounce = 250 * time.Millisecond

// Network describes how this host is attached.
type Network struct {
	// Fingerprint is stable for one network and differs between networks. It is
	// a hash: it may be logged and stored. "none" means no default route.
	Fingerprint string
	// Interface, Gateway and Subnet belong to the default route.
	Interface string
	Gateway   netip.Addr
	Subnet    netip.Prefix
}

// Config says what to watch.
type Config struct {
	// OnChange gets the state after each change of the network, and once at the
	// start. It must return soon.
	OnChange func(ctx context.Context, n Network)
	// Ignore is the tunnel interface, whose changes are our own doing.
	Ignore string
	// Debounce is the quiet time after the last message; zero means 250 ms.
	Debounce time.Duration
	Log      *slog.Logger
}
