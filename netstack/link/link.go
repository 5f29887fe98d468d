// Package link is the association of one device and one connector over several
// carriers: it presents grants, opens flows, and moves every flow to another carrier
// when one dies or falls silent, so that nothing above sees it (decisions rules 15 to
// 19). client uses Client, connector uses Server; both give it carriers and get flows.
// It must not know how carriers are made, what is in a grant, or what policy says.
//
//	client                                   connector
//	Present(grant) --present-->  Handler.Present        verify, or a code
//	OpenTCP(ref)   --open----->  Handler.FlowOpened     the record, before the dial
//	                             Handler.Dial           the app
//	*flow.Flow     <-opened---                          a spliced app connection
//	carrier dies   --attach--->  same identities, instance, grant; higher epoch
//
// Client and Server are safe for concurrent use. Run, and Serve per carrier, own every
// goroutine they start.
package link

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/peer"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/ids"
)

// GrantRef is the client's own number for a grant that it presented on its link.
type GrantRef uint64

// MicroTunnel is one grant in use on a link, as Handler.Present accepted it.
type MicroTunnel struct {
	Grant ids.GrantID
	App   ids.AppID
	// DetachFor is how long a flow waits for a carrier; zero means the server's default.
	DetachFor time.Duration
	// Handle is the handler's own, handed back to it with every call.
	Handle any
}

// FlowOpen is one request for a flow under a micro-tunnel.
type FlowOpen struct {
	Peer     peer.Identity
	Instance frame.InstanceID
	Flow     uint64
	Network  frame.Network
	Port     uint16
	// Host selects a host of an app with several; empty for an app with one.
	Host string
	// Carrier and Path say how the request came.
	Carrier carrier.Kind
	Path    string
}

// FlowRecord is the account of one flow.
type FlowRecord struct {
	FlowOpen
	Tunnel  MicroTunnel
	Started time.Time
	// The fields below are set when the flow has ended.
	Ended time.Time
	// ToApp bytes were written to the app, FromApp bytes were read from it.
	ToApp, FromApp uint64
	// Cause is frame.OK for a flow that ended in both directions.
	Cause frame.Code
	// Dialled says whether the app was tried at all.
	Dialled bool
	// Handle is what FlowOpened returned.
	Handle any
}

// Handler is the connector's side of every decision on a link. Each method may be called
// concurrently.
type Handler interface {
	// Present verifies a grant for this peer. Anything but frame.OK refuses it, and ends
	// the flows of a grant that was accepted before: during an outage that the app's mode
	// rides out, a grant in use must still be accepted. It is called again when the client
	// re-presents on another carrier, and when a revocation came while it ran.
	Present(ctx context.Context, p peer.Identity, hello frame.Hello, envelope []byte) (MicroTunnel, frame.Code)
	// FlowOpened checks the open against the grant and writes the record, durable, before
	// the dial. Anything but frame.OK refuses the flow; then FlowClosed is not called.
	FlowOpened(ctx context.Context, rec FlowRecord) (handle any, code frame.Code)
	// Dial connects to the app; anything but frame.OK is passed to the client as it is.
	Dial(ctx context.Context, t MicroTunnel, open FlowOpen) (net.Conn, frame.Code)
	// FlowClosed is called exactly once for every flow that FlowOpened accepted.
	FlowClosed(rec FlowRecord)
}

// Limits bound what a peer may use; zero values mean the defaults.
type Limits struct {
	// FlowsPerPeer is the budget of flows of one device, detached ones included.
	FlowsPerPeer int
	// GrantsPerPeer bounds the grants presented on one link.
	GrantsPerPeer int
	// CarriersPerPeer bounds the carriers of one link.
	CarriersPerPeer int
	// DetachFor is how long a flow waits for a carrier (rule 17).
	DetachFor time.Duration
	// DialTimeout bounds Handler.Dial.
	DialTimeout time.Duration
	// PresentWithin is how long a peer may stay without a grant.
	PresentWithin time.Duration
	// UDPIdle ends a UDP flow on which nothing moves; port 53 gets DNSIdle.
	UDPIdle, DNSIdle time.Duration
}

// The default limits.
const (
	DefaultFlowsPerPeer    = 4096
	DefaultGrantsPerPeer   = 1024
	DefaultCarriersPerPeer = 8
	DefaultDetachFor       = 120 * time.Second
	DefaultDialTimeout     = 15 * time.Second
	DefaultPresentWithin   = 10 * time.Second
	DefaultUDPIdle         = 60 * time.Second
	DefaultDNSIdle         = 10 * time.Second
)

// tombstoneFor is how long the end of a flow is remembered: a late attach then learns
// "closed" and not "unknown" (rule 16).
const tombstoneFor = 2 * time.Minute

func (l Limits) withDefaults() Limits {
	orInt := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	orDuration := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	orInt(&l.FlowsPerPeer, DefaultFlowsPerPeer)
	orInt(&l.GrantsPerPeer, DefaultGrantsPerPeer)
	orInt(&l.CarriersPerPeer, DefaultCarriersPerPeer)
	orDuration(&l.DetachFor, DefaultDetachFor)
	orDuration(&l.DialTimeout, DefaultDialTimeout)
	orDuration(&l.PresentWithin, DefaultPresentWithin)
	orDuration(&l.UDPIdle, DefaultUDPIdle)
	orDuration(&l.DNSIdle, DefaultDNSIdle)
	return l
}

// Errors for errors.Is. Refusals by the connector are *frame.Error.
var (
	ErrClosed    = errors.New("link is closed")
	ErrNoCarrier = errors.New("no carrier to the connector")
	ErrProtocol  = errors.New("peer broke the link protocol")
)
