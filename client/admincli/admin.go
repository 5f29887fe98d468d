// Package admincli is `postern admin`: the commands by which an owner administers a broker,
// and the client of admin/v1 behind them. The main of postern embeds Admin and gives it an
// Env. It decides nothing: the broker does, and answers with figures that are shown here.
//
// Which broker is asked: --socket, else POSTERN_ADMIN_SOCKET, else the broker of `admin
// login` over the control plane with this device's certificate, else the local socket of a
// broker on this machine, which answers root and the user who runs it.
//
// People get tables, programs --json: the message of the API as it is. What comes from the
// broker may have been named by anybody, so control characters never reach the terminal.
//
// A command runs once, in one goroutine.
package admincli

import (
	"context"
	"io"
	"time"

	"github.com/alecthomas/kong"
)

// Admin is the command tree.
type Admin struct {
	Socket string `help:"Local socket of the broker." placeholder:"PATH"`
	JSON   bool   `name:"json" help:"Print JSON."`

	Login  loginCmd  `cmd:"" help:"Administer the broker at URL from this device." example:"postern admin login 'https://broker.example:8443/#pin=3f1c...'"`
	Logout logoutCmd `cmd:"" help:"Forget the broker of login." example:"postern admin logout"`

	User      userCmd      `cmd:"" help:"People: list, add, invite, disable, enable, sign out."`
	Group     groupCmd     `cmd:"" help:"Groups and who is in them."`
	Issuer    issuerCmd    `cmd:"" help:"OpenID providers whose people may sign in."`
	Site      siteCmd      `cmd:"" help:"Places with private apps."`
	Token     tokenCmd     `cmd:"" help:"Join tokens for connectors and relays."`
	App       appCmd       `cmd:"" help:"Published private apps, and what connectors propose."`
	Rule      ruleCmd      `cmd:"" help:"Who may use which app."`
	Policy    policyCmd    `cmd:"" help:"All rules together: revisions, and what they decide."`
	Device    deviceCmd    `cmd:"" help:"Devices: list, block, remove."`
	Session   sessionCmd   `cmd:"" help:"Who is signed in where."`
	Grant     grantCmd     `cmd:"" help:"What is open right now."`
	Audit     auditCmd     `cmd:"" help:"The tamper-evident record."`
	Connector connectorCmd `cmd:"" help:"Connectors: list, block, remove."`
	Relay     relayCmd     `cmd:"" help:"Relays: list, remove."`
	Suffix    suffixCmd    `cmd:"" help:"What app names end in."`
	System    systemCmd    `cmd:"" help:"The broker itself: status, backup."`
}

// Help says how the commands end.
func (Admin) Help() string {
	return "On the broker's host run it as root, or as the user who runs the broker; elsewhere sign in " +
		"with `postern up URL`, then `postern admin login URL`.\n\nExit codes: 0 done, 1 error, 2 wrong input, " +
		"3 refused or denied, 4 not found, 5 no broker answers."
}

// Env is what the commands need of the process. All fields but Now are required.
type Env struct {
	Environ []string
	In      io.Reader
	Out     io.Writer
	// Now is time.Now when nil.
	Now func() time.Time
}

// Bind gives the commands what their Run methods ask for.
func Bind(ctx context.Context, kctx *kong.Context, e *Env) {
	if e.Now == nil {
		e.Now = time.Now
	}
	kctx.BindTo(ctx, (*context.Context)(nil))
	kctx.Bind(e)
}

// Examples is the option by which the help of each command shows its example tag.
func Examples() kong.Option {
	return kong.PostBuild(func(k *kong.Kong) error {
		return kong.Visit(k.Model, func(v kong.Visitable, next kong.Next) error {
			if n, ok := v.(*kong.Node); ok && n.Tag != nil && n.Tag.Has("example") && n.Detail == "" {
				n.Detail = "Example:\n    " + n.Tag.Get("example")
			}
			return next(nil)
		})
	})
}
