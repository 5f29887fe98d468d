// Package relay forwards between clients and connectors without seeing what: datagrams
// by the handle in their header, TCP connections by joining two sockets. The broker runs
// it on its own ports, `postern-broker relay` as a process of its own; it needs the
// broker's public keys, its own ticket key and the revocations, and shares no state with
// other relays (decisions rules 12 to 14).
//
// Nothing is forwarded for an address or a connection before a ticket of the broker and
// the proof of its key; over UDP nothing else is answered at all. The package must not
// know users, grants or apps, nor decrypt a byte of what it forwards.
//
// A Relay is safe for concurrent use. ServeConn and ServeUDP own the goroutines that
// they start and return after them.
package relay

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/postern-zt/postern/netstack/relay/wire"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
	"github.com/postern-zt/postern/proto/ticket"
)

// Config makes a Relay.
type Config struct {
	// ID is this relay's name in tickets.
	ID ids.RelayID
	// Key opens tickets.
	Key ticket.PrivateKey
	// BrokerKeys are the keys that sign tickets at present; asked for each ticket.
	BrokerKeys func() seal.Keys
	// Limits; zero fields take the defaults.
	Limits Limits
	Log    *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Limits bound what strangers and holders can make a relay do.
type Limits struct {
	// Greetings is how many TCP connections may stand before `ready` at a time.
	Greetings int
	// PendingCalls is how many calls may wait for a connector's answer.
	PendingCalls int
	// Controls is how many connectors may be attached.
	Controls int
	// FlowsPerHandle is how many joined connections a link may have when its ticket does
	// not say.
	FlowsPerHandle int
	// Bindings is how many addresses may be bound over UDP.
	Bindings int
	// BindsPerSecond is how many bind datagrams have their ticket verified: about 200
	// microseconds of one core each.
	BindsPerSecond int
	// BytesPerSecond bounds each direction of each link when its ticket does not; zero is
	// no limit.
	BytesPerSecond uint64
	// Revocations is how many holders, and how many handles, are remembered one by one.
	// With more holders every ticket older than the overflow is refused; of handles the
	// oldest are forgotten.
	Revocations int
}

func (l Limits) withDefaults() Limits {
	def := Limits{Greetings: 1024, PendingCalls: 1024, Controls: 16384, FlowsPerHandle: 64,
		Bindings: 131072, BindsPerSecond: 2000, Revocations: 65536}
	pick := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	pick(&l.Greetings, def.Greetings)
	pick(&l.PendingCalls, def.PendingCalls)
	pick(&l.Controls, def.Controls)
	pick(&l.FlowsPerHandle, def.FlowsPerHandle)
	pick(&l.Bindings, def.Bindings)
	pick(&l.BindsPerSecond, def.BindsPerSecond)
	pick(&l.Revocations, def.Revocations)
	return l
}

// Relay is one relay.
type Relay struct {
	cfg     Config
	log     *slog.Logger
	drops   drops
	usage   usageBook
	revoked *revocations

	// UDP
	bindings  *table[binding]
	cookies   cookieKey
	bindRate  *rate.Limiter
	proveRate *rate.Limiter

	// TCP
	greetings chan struct{}
	mu        sync.Mutex // guards the fields below
	controls  map[ticket.Handle]*control
	arrived   chan struct{} // closed and replaced when a control connection arrives
	calls     map[wire.CallID]*call
	links     map[ticket.Handle]*link
}

// New checks cfg and returns a relay that serves nothing yet.
func New(cfg Config) (*Relay, error) {
	switch {
	case cfg.ID == "":
		return nil, errors.New("relay: no id")
	case cfg.Key.IsZero():
		return nil, errors.New("relay: no ticket key")
	case cfg.BrokerKeys == nil:
		return nil, errors.New("relay: no broker keys")
	case cfg.Log == nil:
		return nil, errors.New("relay: no logger")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Limits = cfg.Limits.withDefaults()
	binds := cfg.Limits.BindsPerSecond
	return &Relay{
		cfg:       cfg,
		log:       cfg.Log.With("component", "relay"),
		revoked:   newRevocations(cfg.Limits.Revocations),
		bindings:  newTable[binding](),
		cookies:   newCookieKey(),
		bindRate:  rate.NewLimiter(rate.Limit(binds), binds),
		proveRate: rate.NewLimiter(rate.Limit(binds), binds),
		greetings: make(chan struct{}, cfg.Limits.Greetings),
		controls:  make(map[ticket.Handle]*control),
		arrived:   make(chan struct{}),
		calls:     make(map[wire.CallID]*call),
		links:     make(map[ticket.Handle]*link),
	}, nil
}

// accept opens a ticket and refuses what has been revoked.
func (r *Relay) accept(sealed []byte) (ticket.Ticket, Reason) {
	t, err := ticket.Open(r.cfg.Key, r.cfg.BrokerKeys(), r.cfg.ID, sealed, r.cfg.Now())
	if err != nil {
		return ticket.Ticket{}, ticketReason(err)
	}
	if r.revoked.covers(t) {
		return ticket.Ticket{}, DropRevoked
	}
	return t, OK
}
