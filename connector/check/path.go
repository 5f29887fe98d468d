package check

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/relay/attach"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/control/v1/controlv1connect"
)

const (
	// warnOffset and maxOffset are how far the clocks may lie apart (decisions rule 10).
	warnOffset = 2 * time.Second
	maxOffset  = 5 * time.Minute
	// fewFiles and wantedFiles: one open file per flow, and some for the process.
	fewFiles    = 256
	wantedFiles = 8192
)

// name resolves the broker's name, unless a proxy does.
func (c *checker) name(ctx context.Context) Result {
	host, _, err := net.SplitHostPort(c.cfg.Broker.Address)
	if err != nil {
		return fail(err.Error(), "copy the broker's URL as the broker printed it")
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return ok(host + " is an address")
	}
	if c.cfg.Proxy != "" {
		return ok(host + " is looked up by the proxy")
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return fail("the name "+host+" is not found: "+reason(err), "make the DNS server of this machine know "+host)
	}
	return ok(fmt.Sprintf("%s is %s", host, addrs[0].Unmap()))
}

// proxy opens a connection through the proxy, where there is one.
func (c *checker) proxy(ctx context.Context) Result {
	if c.cfg.Proxy == "" {
		return ok("none is set for the broker (HTTPS_PROXY, NO_PROXY)")
	}
	conn, err := c.dial(ctx)
	if err == nil {
		conn.Close()
		return ok(c.cfg.Proxy + " lets us through")
	}
	var pe *attach.ProxyError
	switch {
	case errors.As(err, &pe) && pe.Status == http.StatusProxyAuthRequired:
		return fail("the proxy wants a user and a password", "put them into HTTPS_PROXY, as http://user:password@"+c.cfg.Proxy)
	case errors.As(err, &pe):
		return fail(fmt.Sprintf("the proxy refuses: status %d", pe.Status), "allow CONNECT to "+c.cfg.Broker.Address+" on the proxy")
	default:
		return fail("the proxy "+c.cfg.Proxy+" cannot be used: "+reason(err), "correct HTTPS_PROXY, or exempt the broker with NO_PROXY")
	}
}

func (c *checker) dial(ctx context.Context) (net.Conn, error) {
	if c.cfg.Dialer != nil {
		return c.cfg.Dialer.DialContext(ctx, "tcp", c.cfg.Broker.Address)
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", c.cfg.Broker.Address)
}

func (c *checker) tcp(ctx context.Context) Result {
	conn, err := c.dial(ctx)
	at := c.cfg.Broker.Address
	switch {
	case err == nil:
		conn.Close()
		return ok(at + " accepts connections")
	case errors.Is(err, syscall.ECONNREFUSED):
		return fail(at+" refuses connections", "start the broker there, or correct the port in the URL")
	default:
		return fail(at+" cannot be reached: "+reason(err), "let this machine out to TCP "+at)
	}
}

// interception looks at who ends TLS: the pinned broker or somebody between.
func (c *checker) interception(ctx context.Context) Result {
	conn, err := c.dial(ctx)
	if err != nil {
		return fail(reason(err), "let this machine out to TCP "+c.cfg.Broker.Address)
	}
	defer conn.Close()
	tc := tls.Client(conn, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{control.ALPN}, InsecureSkipVerify: true, // judged below
	})
	if err := tc.HandshakeContext(ctx); err != nil {
		return fail("TLS does not come about: "+reason(err), "exempt "+c.cfg.Broker.Address+" from TLS inspection in the firewall")
	}
	cs := tc.ConnectionState()
	err = control.VerifyServer(cs, c.cfg.Broker.Pin, control.KindBroker, "", c.cfg.Now())
	switch {
	case errors.Is(err, control.ErrClock):
		return warn("the certificate is the broker's, but not valid at this time")
	case err != nil:
		return fail(err.Error()+shows(cs), "exempt "+c.cfg.Broker.Address+" from TLS inspection, or copy the URL again if the broker was installed anew")
	}
	return ok("nobody between: TLS ends at the pinned broker")
}

// shows names who signed what came instead.
func shows(cs tls.ConnectionState) string {
	if len(cs.PeerCertificates) == 0 {
		return ""
	}
	issuer := cs.PeerCertificates[0].Issuer.String()
	if issuer == "" {
		return ""
	}
	return "; its certificate was issued by " + issuer
}

// client returns an RPC client that believes the broker about the time, so that a wrong
// clock shows as such.
func (c *checker) client() *http.Client {
	cfg := control.ClientConfig{Broker: c.cfg.Broker, Dialer: c.cfg.Dialer, Now: c.cfg.Now}
	if c.cfg.Member != nil {
		cfg.Certificate = c.cfg.Member.Certificate
	}
	return control.NewClient(cfg)
}

func (c *checker) clock(ctx context.Context) Result {
	hc := c.client()
	defer hc.CloseIdleConnections()
	client := controlv1connect.NewEnrollServiceClient(hc, c.cfg.Broker.BaseURL(), connect.WithReadMaxBytes(1<<20))
	const fix = "set the clock of this machine: timedatectl set-ntp true"
	hello, err := client.Hello(ctx, connect.NewRequest(&controlv1.HelloRequest{Role: "connector"}))
	if errors.Is(err, control.ErrClock) {
		return fail(err.Error(), fix)
	}
	if err != nil {
		return fail("the broker does not answer: "+reason(err), "look at the log of the broker")
	}
	offset := c.cfg.Now().Sub(time.UnixMilli(hello.Msg.TimeMs)).Round(time.Millisecond)
	switch {
	case offset.Abs() > maxOffset:
		return fail(fmt.Sprintf("this machine's clock is %s off the broker's", offset), fix)
	case offset.Abs() > warnOffset:
		return warn(fmt.Sprintf("this machine's clock is %s off the broker's; up to 5 minutes work", offset))
	default:
		return ok(fmt.Sprintf("%s off the broker's", offset))
	}
}

func (c *checker) files(context.Context) Result {
	n := c.cfg.Files
	switch {
	case n == 0:
		return warn("the limit on open files is not known")
	case n < fewFiles:
		return fail(fmt.Sprintf("only %d files may be open at a time", n), "raise the limit: ulimit -n 65536, or LimitNOFILE= in the service")
	case n < wantedFiles:
		return warn(fmt.Sprintf("%d files may be open at a time, one for each flow", n))
	default:
		return ok(fmt.Sprintf("%d may be open at a time", n))
	}
}

// reason is the innermost text of a network error, without the addresses around it.
func reason(err error) string {
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return dns.Err
	}
	var errno syscall.Errno
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	case errors.As(err, &errno):
		return errno.Error()
	default:
		return strings.TrimSpace(err.Error())
	}
}
