// Package adminapi serves administration (proto/admin/v1): people, sites, tokens, apps,
// rules, machines, records. The CLI and automation use it, later the console. It decides
// nothing: it translates, calls the leaf that owns each thing, records who did what, and
// answers with what an act has ended.
//
// Who calls is put into the context by the door that the call came through (WithActor): the
// local socket for root on the broker's host, the control plane for a signed-in owner. A
// call without an actor is refused.
//
// An API has no state and is safe for concurrent use.
package adminapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
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
	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/session"
	"github.com/postern-zt/postern/broker/store"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	"github.com/postern-zt/postern/proto/admin/v1/adminv1connect"
	"github.com/postern-zt/postern/proto/chain"
	"github.com/postern-zt/postern/proto/ids"
)

// maxMessage bounds one request; the largest is a rule in Cedar.
const maxMessage = 1 << 20

// Live is who is connected, and how they are told; *controlapi.API has it.
type Live interface {
	Online() ([]ids.DeviceID, []ids.ConnectorID, []ids.RelayID)
	GrantsEndedBy(fx grants.Effect)
}

// Installation is what the broker knows of itself.
type Installation interface {
	URL() string
	NotReady(ctx context.Context) []string
	AuditTrust(ctx context.Context) (audit.Trust, error)
	Backup(ctx context.Context, name string) (path string, size int64, err error)
}

// Revisions lists published policies; *store.Store has it.
type Revisions interface {
	Revisions(ctx context.Context, before int64) ([]policy.StoredRevision, error)
	// Revision returns one with its document, which the list leaves out.
	Revision(ctx context.Context, id ids.RevisionID) (policy.StoredRevision, error)
}

// Config is what the API calls; all fields are required.
type Config struct {
	Identity     *identity.Service
	Directory    *directory.Directory
	Catalog      *catalog.Catalog
	Registry     *registry.Registry
	Enroller     *enroll.Enroller
	Sessions     *session.Sessions
	Ledger       *grants.Ledger
	Decisions    *decision.Service
	Revisions    Revisions
	Authorize    *authorize.Authorizer
	Audit        *audit.Log
	Live         Live
	Installation Installation
	BuiltinRelay ids.RelayID
	Broker       ids.BrokerID
	Version      string
	Now          func() time.Time
	Log          *slog.Logger
}

// API serves administration.
type API struct {
	cfg Config
	log *slog.Logger
}

// New returns an API.
func New(cfg Config) *API {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &API{cfg: cfg, log: cfg.Log.With("component", "admin")}
}

// Handler serves all admin services; Paths lists what it must be mounted under.
func (a *API) Handler() http.Handler {
	mux := http.NewServeMux()
	opts := connect.WithHandlerOptions(connect.WithReadMaxBytes(maxMessage), connect.WithInterceptors(guard{a}))
	mux.Handle(adminv1connect.NewUserServiceHandler(users{a}, opts))
	mux.Handle(adminv1connect.NewGroupServiceHandler(groups{a}, opts))
	mux.Handle(adminv1connect.NewSiteServiceHandler(sites{a}, opts))
	mux.Handle(adminv1connect.NewTokenServiceHandler(tokens{a}, opts))
	mux.Handle(adminv1connect.NewAppServiceHandler(apps{a}, opts))
	mux.Handle(adminv1connect.NewRuleServiceHandler(rules{a}, opts))
	mux.Handle(adminv1connect.NewPolicyServiceHandler(policies{a}, opts))
	mux.Handle(adminv1connect.NewDeviceServiceHandler(devices{a}, opts))
	mux.Handle(adminv1connect.NewSessionServiceHandler(sessions{a}, opts))
	mux.Handle(adminv1connect.NewAuditServiceHandler(records{a}, opts))
	mux.Handle(adminv1connect.NewConnectorServiceHandler(connectors{a}, opts))
	mux.Handle(adminv1connect.NewIssuerServiceHandler(issuers{a}, opts))
	mux.Handle(adminv1connect.NewSystemServiceHandler(system{a}, opts))
	return mux
}

// Prefix is the path prefix of all admin services.
const Prefix = "/postern.admin.v1."

// Actor is who administers.
type Actor struct {
	// User is set for a person who signed in; Local for root on the broker's host.
	User  ids.UserID
	Local bool
}

type actorKey struct{}

// WithActor puts the caller into the context, after the door has verified who it is.
func WithActor(ctx context.Context, a Actor) context.Context {
	return context.WithValue(ctx, actorKey{}, a)
}

func actorOf(ctx context.Context) (Actor, bool) {
	a, ok := ctx.Value(actorKey{}).(Actor)
	return a, ok && (a.Local || a.User != "")
}

// guard lets actors through and turns inner errors into wire errors.
type guard struct{ a *API }

func (g guard) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if _, ok := actorOf(ctx); !ok {
			return nil, errNoActor()
		}
		resp, err := next(ctx, req)
		if err != nil {
			return nil, g.a.wireError(ctx, req.Spec().Procedure, err)
		}
		return resp, nil
	}
}

func (g guard) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (g guard) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if _, ok := actorOf(ctx); !ok {
			return errNoActor()
		}
		if err := next(ctx, conn); err != nil {
			return g.a.wireError(ctx, conn.Spec().Procedure, err)
		}
		return nil
	}
}

func errNoActor() error {
	return connect.NewError(connect.CodePermissionDenied, errors.New("only an owner may administer"))
}

// wireError maps an error to a code with a sentence that an administrator can act on.
func (a *API) wireError(ctx context.Context, procedure string, err error) error {
	var ce *connect.Error
	if errors.As(err, &ce) {
		return err
	}
	code := codeOf(err)
	if code == connect.CodeInternal {
		a.log.ErrorContext(ctx, "call failed", "procedure", procedure, "error", err)
	}
	if errors.Is(err, directory.ErrExists) {
		// What the database says of it helps nobody.
		err = errors.New("a user or group with this name exists already")
	}
	return connect.NewError(code, err)
}

func codeOf(err error) connect.Code {
	var compile *policy.CompileError
	switch {
	case isAny(err, catalog.ErrNotFound, directory.ErrNotFound, registry.ErrNotFound, enroll.ErrNotFound, session.ErrNotFound, store.ErrNotFound, grants.ErrNotFound, identity.ErrNotFound):
		return connect.CodeNotFound
	case isAny(err, catalog.ErrConflict, store.ErrConflict):
		return connect.CodeAborted
	case isAny(err, catalog.ErrExists, directory.ErrExists, registry.ErrExists):
		return connect.CodeAlreadyExists
	case isAny(err, catalog.ErrInvalid, catalog.ErrUnsupported, directory.ErrInvalid, registry.ErrInvalid, enroll.ErrInvalid, identity.ErrIssuer, ids.ErrMalformed), errors.As(err, &compile):
		return connect.CodeInvalidArgument
	case isAny(err, directory.ErrLastOwner, registry.ErrRemoved):
		return connect.CodeFailedPrecondition
	default:
		return connect.CodeInternal
	}
}

func isAny(err error, targets ...error) bool {
	for _, t := range targets {
		if errors.Is(err, t) {
			return true
		}
	}
	return false
}

func badRequest(format string, args ...any) error {
	return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf(format, args...))
}

func notFound(format string, args ...any) error {
	return connect.NewError(connect.CodeNotFound, fmt.Errorf(format, args...))
}

// record writes what an administrator is about to do, before it is done: an act that
// gives something must not happen without its record.
func (a *API) record(ctx context.Context, e audit.Event) error {
	e.Kind = chain.Changed
	if act, ok := actorOf(ctx); ok {
		e.Actor = act.User
		if act.Local {
			e.Details = withDetail(e.Details, "actor", "root on the broker's host")
		}
	}
	_, err := a.cfg.Audit.Append(ctx, e)
	return err
}

func withDetail(d map[string]string, k, v string) map[string]string {
	if d == nil {
		d = map[string]string{}
	}
	d[k] = v
	return d
}

func what(parts ...string) audit.Event {
	d := map[string]string{"what": parts[0]}
	for i := 1; i+1 < len(parts); i += 2 {
		d[parts[i]] = parts[i+1]
	}
	return audit.Event{Details: d}
}

// revoke ends everything that a target names, tells who must know, and returns the figures.
func (a *API) revoke(ctx context.Context, t grants.Target, cause grants.Cause) *adminv1.EffectResponse {
	act, _ := actorOf(ctx)
	fx := a.cfg.Authorize.Revoke(t, cause, act.User)
	a.cfg.Live.GrantsEndedBy(fx)
	return &adminv1.EffectResponse{Grants: int32(len(fx.Grants)), Connectors: int32(len(fx.Connectors))}
}

func respond[T any](msg *T, err error) (*connect.Response[T], error) {
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(msg), nil
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}
