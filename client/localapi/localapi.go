// Package localapi is the local socket of a running client: the daemon's, or that of a
// person's own `postern proxy`. Server carries proto/local/v1 and raw streams to apps for
// `postern stdio`; Client is the command's end.
//
// Who calls is what the kernel says (platform/ipc). A Gate decides what a caller may do;
// the Backend does it. The package knows no policy of its own, and a caller that the Gate
// does not know is refused.
//
//	POST /postern.local.v1.LocalService/...   Connect RPC
//	GET  /stream?app=NAME&port=N              Upgrade: postern-stream, then raw bytes
//
// Server and Client are safe for concurrent use; Run owns every goroutine.
package localapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/client/tunnels"
	"github.com/postern-zt/postern/netstack/flow"
	"github.com/postern-zt/postern/platform/ipc"
	localv1 "github.com/postern-zt/postern/proto/local/v1"
	"github.com/postern-zt/postern/proto/local/v1/localv1connect"
)

const (
	// headerTimeout bounds a caller's request line; goodbye the drain at the end.
	headerTimeout = 5 * time.Second
	goodbye       = 2 * time.Second
	maxHeader     = 16 << 10
	maxMessage    = 64 << 10
)

// Backend does what callers ask for.
type Backend interface {
	Up(ctx context.Context, caller ipc.Peer, req *localv1.UpRequest, send func(*localv1.UpEvent) error) error
	Down(ctx context.Context) error
	Logout(ctx context.Context) error
	Status(ctx context.Context) *localv1.StatusResponse
	Apps(ctx context.Context) (*localv1.AppsResponse, error)
	Why(ctx context.Context, query string) (*localv1.WhyResponse, error)
	Ping(ctx context.Context, app string) (*localv1.PingResponse, error)
	OpenTCP(ctx context.Context, app string, port uint16) (*flow.Flow, error)
	// Code chooses the code and the safe sentence for an error.
	Code(err error) (connect.Code, string)
}

// Access is what a call does.
type Access int

// The accesses.
const (
	// Use covers everything that shows or uses the session of the owner.
	Use Access = iota
	// TakeOver is a sign-in.
	TakeOver
)

// Gate judges callers; an error refuses and is shown.
type Gate func(caller ipc.Peer, access Access) error

// Config is what a Server needs; all fields are required.
type Config struct {
	Listener *ipc.Listener
	Backend  Backend
	Gate     Gate
	Log      *slog.Logger
}

// Server serves one socket.
type Server struct {
	cfg  Config
	http *http.Server
}

// New returns a server; Run serves.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg}
	mux := http.NewServeMux()
	path, rpc := localv1connect.NewLocalServiceHandler(service{s}, connect.WithReadMaxBytes(maxMessage))
	mux.Handle(path, rpc)
	mux.HandleFunc("GET "+streamPath, s.stream)
	s.http = &http.Server{
		Handler: mux, ConnContext: ipc.ConnContext, ReadHeaderTimeout: headerTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: log.New(io.Discard, "", 0), // callers that went away
	}
	return s
}

// Run serves until ctx ends; raw streams end with their flows.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbye)
		defer cancel()
		if s.http.Shutdown(bye) != nil {
			s.http.Close()
		}
	})
	defer stop()
	if err := s.http.Serve(s.cfg.Listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// admit says who calls and whether that is allowed.
func (s *Server) admit(ctx context.Context, access Access) (ipc.Peer, error) {
	caller, ok := ipc.PeerFrom(ctx)
	if !ok {
		return ipc.Peer{}, connect.NewError(connect.CodePermissionDenied, errors.New("the caller is not known"))
	}
	if err := s.cfg.Gate(caller, access); err != nil {
		return ipc.Peer{}, connect.NewError(connect.CodePermissionDenied, err)
	}
	return caller, nil
}

// wire turns an error of the backend into one for the caller; a denial carries its receipt.
func (s *Server) wire(err error) error {
	if err == nil {
		return nil
	}
	code, text := s.cfg.Backend.Code(err)
	out := connect.NewError(code, errors.New(text))
	if denied, ok := errors.AsType[*tunnels.DeniedError](err); ok && denied.Receipt != nil {
		if d, err := connect.NewErrorDetail(denied.Receipt); err == nil {
			out.AddDetail(d)
		}
	}
	return out
}

// service is the Connect side.
type service struct{ *Server }

var _ localv1connect.LocalServiceHandler = service{}

func (s service) Up(ctx context.Context, req *connect.Request[localv1.UpRequest], out *connect.ServerStream[localv1.UpEvent]) error {
	caller, err := s.admit(ctx, TakeOver)
	if err != nil {
		return err
	}
	return s.wire(s.cfg.Backend.Up(ctx, caller, req.Msg, out.Send))
}

func (s service) Down(ctx context.Context, _ *connect.Request[localv1.DownRequest]) (*connect.Response[localv1.DownResponse], error) {
	return answer(s, ctx, func() (*localv1.DownResponse, error) {
		return &localv1.DownResponse{}, s.cfg.Backend.Down(ctx)
	})
}

func (s service) Logout(ctx context.Context, _ *connect.Request[localv1.LogoutRequest]) (*connect.Response[localv1.LogoutResponse], error) {
	return answer(s, ctx, func() (*localv1.LogoutResponse, error) {
		return &localv1.LogoutResponse{}, s.cfg.Backend.Logout(ctx)
	})
}

func (s service) Status(ctx context.Context, _ *connect.Request[localv1.StatusRequest]) (*connect.Response[localv1.StatusResponse], error) {
	return answer(s, ctx, func() (*localv1.StatusResponse, error) { return s.cfg.Backend.Status(ctx), nil })
}

func (s service) Apps(ctx context.Context, _ *connect.Request[localv1.AppsRequest]) (*connect.Response[localv1.AppsResponse], error) {
	return answer(s, ctx, func() (*localv1.AppsResponse, error) { return s.cfg.Backend.Apps(ctx) })
}

func (s service) Why(ctx context.Context, req *connect.Request[localv1.WhyRequest]) (*connect.Response[localv1.WhyResponse], error) {
	return answer(s, ctx, func() (*localv1.WhyResponse, error) { return s.cfg.Backend.Why(ctx, req.Msg.Query) })
}

func (s service) Ping(ctx context.Context, req *connect.Request[localv1.PingRequest]) (*connect.Response[localv1.PingResponse], error) {
	return answer(s, ctx, func() (*localv1.PingResponse, error) { return s.cfg.Backend.Ping(ctx, req.Msg.App) })
}

// answer is what all plain calls have in common.
func answer[T any](s service, ctx context.Context, do func() (*T, error)) (*connect.Response[T], error) {
	if _, err := s.admit(ctx, Use); err != nil {
		return nil, err
	}
	msg, err := do()
	if err != nil {
		return nil, s.wire(err)
	}
	return connect.NewResponse(msg), nil
}

// OwnerOnly is the Gate of a socket that belongs to one user; root may do the same.
func OwnerOnly(uid uint32) Gate {
	return func(caller ipc.Peer, _ Access) error {
		if caller.UID == uid || caller.UID == 0 {
			return nil
		}
		return fmt.Errorf("this client belongs to user %d", uid)
	}
}
