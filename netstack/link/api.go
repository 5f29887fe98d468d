package link

import (
	"context"
	"log/slog"
	"time"

	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/flow"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/ids"
)

// Dialer is one way to the connector.
type Dialer struct {
	// Name tells ways apart in status and in a Chooser's memory ("quic rly_...").
	Name string
	Kind carrier.Kind
	// Dial returns an authenticated carrier. Its errors are retried.
	Dial func(ctx context.Context) (carrier.Carrier, error)
}

// Events are the client's hooks; nil ones are skipped. They are called from the link's
// goroutines and must not block.
type Events struct {
	// CarrierUp and CarrierDown report every carrier.
	CarrierUp   func(c CarrierStatus)
	CarrierDown func(name string, err error)
	// GrantClosed says that the connector closed the micro-tunnel of ref.
	GrantClosed func(ref GrantRef, code frame.Code)
	// Draining says that the connector takes no new flows.
	Draining func()
	// Resumed says how long flows stood still before they went on.
	Resumed func(flows int, stalled time.Duration)
}

// ClientConfig makes a Client.
type ClientConfig struct {
	// Instance is one per process start.
	Instance frame.InstanceID
	// Kind is what we are; zero means a device.
	Kind frame.PeerKind
	// Peer is the connector's identity key; a carrier to anyone else is closed.
	Peer ids.KeyID
	// Dial lists the ways, best first.
	Dial []Dialer
	// Chooser remembers which way worked on the present network; optional.
	Chooser *Chooser
	// Memory is the process's budget for flows.
	Memory *flow.Memory
	// DetachFor is how long a flow waits for a carrier; zero means DefaultDetachFor.
	DetachFor time.Duration
	Events    Events
	Log       *slog.Logger
}

// CarrierStatus describes one live carrier.
type CarrierStatus struct {
	Name   string
	Kind   carrier.Kind
	Path   string
	RTT    time.Duration
	Active bool
	Since  time.Time
}

// Status is a snapshot of a client's link.
type Status struct {
	Carriers []CarrierStatus
	Flows    int
	Detached int
	Grants   int
	// Sent and Received count the payload of ended and living flows.
	Sent, Received uint64
	Draining       bool
}

// ServerConfig makes a Server.
type ServerConfig struct {
	Handler Handler
	// Memory is the process's budget for flows.
	Memory *flow.Memory
	Limits Limits
	Log    *slog.Logger
}
