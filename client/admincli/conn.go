package admincli

import (
	"context"
	"net/http"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/platform/ipc"
	"github.com/postern-zt/postern/platform/paths"
	"github.com/postern-zt/postern/proto/admin/v1/adminv1connect"
)

const (
	// callTimeout bounds one call; publishing a policy replays recorded decisions.
	callTimeout = time.Minute
	// socketVariable names the local socket for a shell.
	socketVariable = "POSTERN_ADMIN_SOCKET"
	// localURL stands for the socket in requests; its host means nothing.
	localURL = "http://broker"
)

// Conn is the way to one broker. Kong makes it for the commands that ask for it.
type Conn struct {
	user      adminv1connect.UserServiceClient
	group     adminv1connect.GroupServiceClient
	issuer    adminv1connect.IssuerServiceClient
	site      adminv1connect.SiteServiceClient
	token     adminv1connect.TokenServiceClient
	app       adminv1connect.AppServiceClient
	rule      adminv1connect.RuleServiceClient
	policy    adminv1connect.PolicyServiceClient
	device    adminv1connect.DeviceServiceClient
	session   adminv1connect.SessionServiceClient
	audit     adminv1connect.AuditServiceClient
	connector adminv1connect.ConnectorServiceClient
	system    adminv1connect.SystemServiceClient
	// where names the broker in messages.
	where string
	print printer
}

// ProvideConn finds the broker that is to be asked. Nothing is dialled yet.
func (a *Admin) ProvideConn(e *Env) (*Conn, error) {
	hc, base, where, err := a.way(e)
	if err != nil {
		return nil, err
	}
	return newConn(hc, base, where, printer{out: e.Out, json: a.JSON, now: e.Now()}), nil
}

func newConn(hc *http.Client, base, where string, p printer) *Conn {
	return &Conn{
		user:      adminv1connect.NewUserServiceClient(hc, base),
		group:     adminv1connect.NewGroupServiceClient(hc, base),
		issuer:    adminv1connect.NewIssuerServiceClient(hc, base),
		site:      adminv1connect.NewSiteServiceClient(hc, base),
		token:     adminv1connect.NewTokenServiceClient(hc, base),
		app:       adminv1connect.NewAppServiceClient(hc, base),
		rule:      adminv1connect.NewRuleServiceClient(hc, base),
		policy:    adminv1connect.NewPolicyServiceClient(hc, base),
		device:    adminv1connect.NewDeviceServiceClient(hc, base),
		session:   adminv1connect.NewSessionServiceClient(hc, base),
		audit:     adminv1connect.NewAuditServiceClient(hc, base),
		connector: adminv1connect.NewConnectorServiceClient(hc, base),
		system:    adminv1connect.NewSystemServiceClient(hc, base),
		where:     where,
		print:     p,
	}
}

// way chooses the broker: what was said first, what was stored second, this machine last.
func (a *Admin) way(e *Env) (hc *http.Client, base, where string, err error) {
	if path := a.socket(e); path != "" {
		return local(path)
	}
	stored, err := loadLogin(e)
	if err != nil {
		return nil, "", "", err
	}
	if stored.URL != "" {
		return remote(e, stored.URL)
	}
	path, err := defaultSocket(e)
	if err != nil {
		return nil, "", "", err
	}
	return local(path)
}

func local(path string) (hc *http.Client, base, where string, err error) {
	return &http.Client{Transport: ipc.Transport(path)}, localURL, path, nil
}

// socket is the one that was named, empty for none.
func (a *Admin) socket(e *Env) string {
	return either(a.Socket, variable(e, socketVariable))
}

// variable reads the environment that main handed in, as a shell would.
func variable(e *Env, name string) string {
	for i := len(e.Environ) - 1; i >= 0; i-- {
		if v, ok := strings.CutPrefix(e.Environ[i], name+"="); ok {
			return v
		}
	}
	return ""
}

// defaultSocket is that of a broker which this user runs, else that of the machine's.
func defaultSocket(e *Env) (string, error) {
	if set, err := paths.User(paths.Broker, e.Environ); err == nil && os.Geteuid() != 0 {
		if _, err := os.Stat(set.Socket); err == nil {
			return set.Socket, nil
		}
	}
	set, err := paths.System(paths.Broker, e.Environ)
	return set.Socket, err
}

// method is a unary call of a generated client.
type method[Req, Resp any] func(context.Context, *connect.Request[Req]) (*connect.Response[Resp], error)

// ask makes one call.
func ask[Req, Resp any](ctx context.Context, c *Conn, do method[Req, Resp], msg *Req) (*Resp, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := do(ctx, connect.NewRequest(msg))
	if err != nil {
		return nil, explain(c.where, err)
	}
	return resp.Msg, nil
}
