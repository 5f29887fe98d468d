// Package controlapi serves the control plane: it authenticates devices, connectors and
// relays by their keys, calls the leaf that owns each question, and keeps one push stream
// per caller (proto/control/v1). It decides nothing by itself and holds no SQL.
//
// Every call but enrolment needs a certificate of the broker's CA whose row is active; the
// check is made for each call, so that a blocked machine is out at its next word and its
// stream ends at once. Errors that cross the wire are codes with a sentence for people;
// what is inside stays in the log (errors.go).
//
// An API is safe for concurrent use. Its streams end with their callers or with Drain.
package controlapi

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/broker/authorize"
	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/broker/decision"
	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/broker/enroll"
	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/identity"
	"github.com/postern-zt/postern/broker/keys"
	"github.com/postern-zt/postern/broker/push"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/session"
	"github.com/postern-zt/postern/broker/tickets"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/relay"
	"github.com/postern-zt/postern/proto/control/v1/controlv1connect"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/ticket"
)

const (
	// statementsPerLease is how often a connector hears the broker while a lease runs:
	// every 15 s (decisions rule 7).
	statementsPerLease = 4
	// heartbeatEvery is how often a device or relay hears something.
	heartbeatEvery = 30 * time.Second
	// maxMessage bounds one request: a batch of audit records is the largest.
	maxMessage = 8 << 20
	// maxStranger bounds a request of whoever has no certificate of ours, an enrolment;
	// maxMember one of a device or relay.
	maxStranger = 128 << 10
	maxMember   = 2 << 20
	// sessionMaxAge ends a session whatever the apps ask for.
	sessionMaxAge = 7 * 24 * time.Hour
)

// Relay is what controlapi does to the relay inside this broker; others hear by stream.
type Relay interface {
	Cut(handles ...ticket.Handle)
	Revoke(rv relay.Revocation)
}

// Config is what the API calls; all fields are required but those marked.
type Config struct {
	CA        *keys.CA
	Ring      *keys.Ring
	Identity  *identity.Service
	Directory *directory.Directory
	Registry  *registry.Registry
	Catalog   *catalog.Catalog
	Enroller  *enroll.Enroller
	Sessions  *session.Sessions
	Ledger    *grants.Ledger
	Decisions *decision.Service
	Authorize *authorize.Authorizer
	Audit     *audit.Log
	Tickets   *tickets.Minter
	// Relay is the relay inside this broker, nil without one; BuiltinRelay is its row.
	Relay        Relay
	BuiltinRelay ids.RelayID
	Version      string
	// Ready says whether an owner exists.
	Ready func(ctx context.Context) bool
	// Epoch is the restore epoch.
	Epoch func() uint64
	// RevocationSeen hears how long a connector took to apply a revocation; may be nil.
	RevocationSeen func(took time.Duration)
	// Lease is the ledger's; zero means grants.DefaultLease.
	Lease time.Duration
	Now   func() time.Time
	Log   *slog.Logger
}

// API serves the control plane of one broker.
type API struct {
	cfg        Config
	log        *slog.Logger
	devices    *push.Hub[ids.DeviceID]
	connectors *push.Hub[ids.ConnectorID]
	relays     *push.Hub[ids.RelayID]
	cuts       *cutLog
	seq        counter
	latency    latencies
	watchers   *watchers
	buckets    *buckets
	turns      *turns
}

// New returns an API without callers.
func New(cfg Config) *API {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Lease == 0 {
		cfg.Lease = grants.DefaultLease
	}
	if cfg.RevocationSeen == nil {
		cfg.RevocationSeen = func(time.Duration) {}
	}
	return &API{
		cfg: cfg, log: cfg.Log.With("component", "control"), devices: push.NewHub[ids.DeviceID](),
		connectors: push.NewHub[ids.ConnectorID](), relays: push.NewHub[ids.RelayID](),
		cuts: newCutLog(), watchers: newWatchers(), buckets: newBuckets(), turns: newTurns(),
	}
}

// Drain ends all streams after telling their callers when to come back. Safe twice.
func (a *API) Drain() {
	a.devices.MarkAll(push.Reconnect)
	a.connectors.MarkAll(push.Reconnect)
	a.relays.MarkAll(push.Reconnect)
}

// Online says who has a stream, for administration.
func (a *API) Online() (devices []ids.DeviceID, connectors []ids.ConnectorID, relays []ids.RelayID) {
	return a.devices.Keys(), a.connectors.Keys(), a.relays.Keys()
}

// Handler serves all control services. Paths below ownerPrefix go to owner, when the
// caller is an active device on which an owner is signed in.
func (a *API) Handler(ownerPrefix string, owner func(user ids.UserID, w http.ResponseWriter, r *http.Request)) http.Handler {
	mux := http.NewServeMux()
	opts := connect.WithHandlerOptions(connect.WithReadMaxBytes(maxMessage), connect.WithInterceptors(a.logErrors()))
	mux.Handle(controlv1connect.NewEnrollServiceHandler(enrollService{a}, opts))
	mux.Handle(controlv1connect.NewDeviceServiceHandler(deviceService{a}, opts))
	mux.Handle(controlv1connect.NewConnectorServiceHandler(connectorService{a}, opts))
	mux.Handle(controlv1connect.NewRelayServiceHandler(relayService{a}, opts))
	return withCaller(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.bound(w, r)
		if ownerPrefix == "" || !strings.HasPrefix(r.URL.Path, ownerPrefix) {
			mux.ServeHTTP(w, r)
			return
		}
		user, err := a.owner(r.Context())
		if err != nil {
			http.Error(w, "only an owner who is signed in on this device may administer", http.StatusForbidden)
			return
		}
		owner(user, w, r)
	}))
}

// bound limits what is read of a request before anybody has looked at its certificate:
// messages are taken into memory whole, and a stranger may send many at once.
func (a *API) bound(w http.ResponseWriter, r *http.Request) {
	limit := int64(maxStranger)
	if c := callerOf(r.Context()); c.cert != nil {
		if sub, err := a.cfg.CA.Verify(c.cert, 0); err == nil {
			limit = maxMember
			if sub.Kind == keys.Connector {
				limit = maxMessage
			}
		}
	}
	r.Body = http.MaxBytesReader(w, r.Body, limit)
}

// owner returns the owner who is signed in on the calling device.
func (a *API) owner(ctx context.Context) (ids.UserID, error) {
	d, err := a.device(ctx)
	if err != nil {
		return "", err
	}
	ses, err := a.session(ctx, d)
	if err != nil {
		return "", err
	}
	u, err := a.cfg.Directory.User(ctx, ses.User)
	if err != nil {
		return "", err
	}
	if u.Admin != directory.RoleOwner || !u.Usable() {
		return "", errors.New("not an owner")
	}
	return u.ID, nil
}

// caller is who stands at the other end of a request, as TLS has proved it.
type caller struct {
	cert *x509.Certificate
	key  ids.KeyID
	addr netip.Addr
}

type callerKey struct{}

// withCaller puts the TLS peer into the context of each request.
func withCaller(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var c caller
		if cert := control.PeerOf(r); cert != nil {
			c.cert, c.key = cert, ids.KeyIDOf(cert.RawSubjectPublicKeyInfo)
		}
		if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
			c.addr = ap.Addr().Unmap()
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, c)))
	})
}

func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

// subject verifies the caller's certificate for a kind of machine; an error is
// unauthenticated. grace is not zero at renewal only.
func (a *API) subject(ctx context.Context, kind keys.Kind, grace time.Duration) (keys.Subject, error) {
	c := callerOf(ctx)
	if c.cert == nil {
		return keys.Subject{}, unauthenticated("this call needs a certificate of the broker")
	}
	sub, err := a.cfg.CA.Verify(c.cert, grace)
	if err != nil {
		return keys.Subject{}, unauthenticated("the certificate is not accepted: %v", err)
	}
	if kind != "" && sub.Kind != kind {
		return keys.Subject{}, unauthenticated("this call is for a %s", kind)
	}
	return sub, nil
}

// device returns the calling device, which must be active and hold its key.
func (a *API) device(ctx context.Context) (registry.Device, error) {
	sub, err := a.subject(ctx, keys.Device, 0)
	if err != nil {
		return registry.Device{}, err
	}
	d, err := a.cfg.Registry.Device(ctx, ids.DeviceID(sub.ID))
	if err != nil {
		return registry.Device{}, err
	}
	if d.Identity.Key != sub.Key {
		return registry.Device{}, unauthenticated("the certificate is for another key")
	}
	return d, d.Usable()
}

// connector returns the calling connector, which must be active and hold its key.
func (a *API) connector(ctx context.Context) (registry.Connector, error) {
	sub, err := a.subject(ctx, keys.Connector, 0)
	if err != nil {
		return registry.Connector{}, err
	}
	c, err := a.cfg.Registry.Connector(ctx, ids.ConnectorID(sub.ID))
	if err != nil {
		return registry.Connector{}, err
	}
	if c.Identity.Key != sub.Key {
		return registry.Connector{}, unauthenticated("the certificate is for another key")
	}
	return c, c.Usable()
}

// relay returns the calling relay, which must be active and hold its key.
func (a *API) relay(ctx context.Context) (registry.Relay, error) {
	sub, err := a.subject(ctx, keys.Relay, 0)
	if err != nil {
		return registry.Relay{}, err
	}
	r, err := a.cfg.Registry.Relay(ctx, ids.RelayID(sub.ID))
	if err != nil {
		return registry.Relay{}, err
	}
	if r.Identity.Key != sub.Key {
		return registry.Relay{}, unauthenticated("the certificate is for another key")
	}
	return r, r.Usable()
}
