package check

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/netstack/control"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
)

// membership hears what the broker wants of this connector.
func (c *checker) membership(ctx context.Context) Result {
	if c.cfg.Site == nil {
		return warn("this machine has not joined; start it with: postern-connector run --join URL")
	}
	site, err := c.cfg.Site(ctx)
	switch {
	case control.ReasonOf(err) == controlv1.Reason_REASON_REMOVED:
		return fail("an administrator has removed this connector", "join again: postern-connector leave --force, then run --join URL with a new token")
	case control.ReasonOf(err) == controlv1.Reason_REASON_BLOCKED:
		return fail("an administrator has blocked this connector", "ask an administrator: postern admin connector unblock NAME")
	case connect.CodeOf(err) == connect.CodeUnauthenticated:
		return fail("the broker does not accept this connector's certificate", "join again: postern-connector leave --force, then run --join URL with a new token")
	case connect.CodeOf(err) == connect.CodePermissionDenied:
		return fail("the broker has blocked or removed this connector", "ask an administrator: postern admin connector unblock NAME, or join again")
	case err != nil:
		return fail("the broker says nothing to this connector: "+reason(err), "look at the log of the broker")
	}
	c.site = site
	return ok("the broker knows this connector as " + string(c.cfg.Connector))
}

// relays judges one transport: one relay that is up is enough to serve.
func (c *checker) relays(transport string) func(context.Context) Result {
	return func(context.Context) Result {
		var up, down []string
		for _, r := range c.site.Relays {
			switch {
			case r.Transport != transport:
			case r.Up:
				up = append(up, r.ID)
			default:
				down = append(down, r.ID+": "+r.Problem)
			}
		}
		return judgeRelays(transport, up, down)
	}
}

func judgeRelays(transport string, up, down []string) Result {
	missing := strings.Join(down, "; ")
	switch {
	case len(up) == 0 && len(down) == 0:
		return fail("the broker names no relay", "start a relay: postern-broker relay, or set relay: true in the broker's configuration")
	case len(up) == 0 && transport == "udp":
		return warn("no relay answers over UDP, everything goes over TCP: " + missing)
	case len(up) == 0:
		return fail("no relay can be reached: "+missing, "let this machine out to the TCP port of the relay")
	case len(down) > 0:
		return warn(fmt.Sprintf("%d of %d relays: %s", len(up), len(up)+len(down), missing))
	default:
		return ok(fmt.Sprintf("attached at %d", len(up)))
	}
}

// target dials one assigned target as the connector would.
func target(ctx context.Context, t Target) Result {
	var d net.Dialer
	conn, err := d.DialContext(ctx, t.Network, t.Address)
	if err == nil {
		conn.Close()
		if t.Network == "udp" {
			return ok(fmt.Sprintf("%s at %s has a route; whether it answers over UDP only its clients know", t.App, t.Address))
		}
		return ok(t.App + " at " + t.Address + " accepts connections")
	}
	var dns *net.DNSError
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fail(t.App+" at "+t.Address+" refuses connections", "start the app there, or correct its target at the broker")
	case errors.As(err, &dns):
		return fail(t.App+": the name in "+t.Address+" is not found", "make the DNS server of this machine know it, or correct the target at the broker")
	default:
		return fail(t.App+" at "+t.Address+" cannot be reached: "+reason(err), "let this machine reach "+t.Address)
	}
}
