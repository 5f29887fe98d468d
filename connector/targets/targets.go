// Package targets dials apps: the only place in the connector that opens a connection
// towards the private network. It resolves names itself, at every dial, and refuses an
// address that is not in the signed assignment, so that neither a client nor a rebound
// name leads anywhere else (requirement S2). Its answers are the truth about the app:
// refused, unreachable, timed out, name not found.
//
// A Dialer is safe for concurrent use and keeps nothing between dials.
package targets

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/grant"
)

const (
	// DefaultTimeout is how long one dial may take in all.
	DefaultTimeout = 10 * time.Second
	// maxAddresses bounds how many answers of one name are tried.
	maxAddresses = 8
)

// Resolver looks up names; *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Dialer dials the targets of an assignment.
type Dialer struct {
	// Resolver is net.DefaultResolver when nil.
	Resolver Resolver
	// Timeout is DefaultTimeout when zero.
	Timeout time.Duration
}

// Dial connects to the first of the targets that answers. Published is the port that the
// client asked for. Any code but OK comes with a nil connection.
func (d *Dialer) Dial(ctx context.Context, a *grant.Assignment, ts []grant.Target, n grant.Network, published uint16) (net.Conn, frame.Code) {
	timeout := d.Timeout
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	code := frame.NotAssigned
	for _, t := range ts {
		var conn net.Conn
		if conn, code = d.dialTarget(ctx, a, t, n, published); code == frame.OK {
			return conn, frame.OK
		}
	}
	return nil, code
}

func (d *Dialer) dialTarget(ctx context.Context, a *grant.Assignment, t grant.Target, n grant.Network, published uint16) (net.Conn, frame.Code) {
	addrs, code := d.addresses(ctx, t.Host)
	if code != frame.OK {
		return nil, code
	}
	code = frame.NameLeftAssignment
	for _, addr := range addrs {
		if !a.Permits(t, addr) {
			continue
		}
		var nd net.Dialer
		conn, err := nd.DialContext(ctx, n.String(), netip.AddrPortFrom(addr.Unmap(), t.Port(published)).String())
		if err == nil {
			return conn, frame.OK
		}
		code = dialCode(err)
	}
	return nil, code
}

func (d *Dialer) addresses(ctx context.Context, host string) ([]netip.Addr, frame.Code) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{addr}, frame.OK
	}
	var r Resolver = net.DefaultResolver
	if d.Resolver != nil {
		r = d.Resolver
	}
	addrs, err := r.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, lookupCode(err)
	}
	return addrs[:min(len(addrs), maxAddresses)], frame.OK
}

func lookupCode(err error) frame.Code {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return frame.NameNotFound
	case errors.As(err, &dns) && dns.IsTimeout, errors.Is(err, context.DeadlineExceeded):
		return frame.Timeout
	default:
		return frame.NameNotFound
	}
}

// dialCode is the truth about the app in the words of the wire.
func dialCode(err error) frame.Code {
	var ne net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return frame.Refused
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return frame.Unreachable
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &ne) && ne.Timeout():
		return frame.Timeout
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.EADDRNOTAVAIL):
		return frame.NotDialled
	default:
		return frame.Unreachable
	}
}

// Address writes host and port of a target for status and logs at debug level.
func Address(t grant.Target) string { return net.JoinHostPort(t.Host, strconv.Itoa(int(t.Base))) }
