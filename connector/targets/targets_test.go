package targets_test

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/postern-zt/postern/connector/targets"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/grant"
)

// names is a resolver whose answers the test sets.
type names map[string][]netip.Addr

func (n names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	if a, ok := n[host]; ok {
		return a, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

// slow is a resolver that never answers.
type slow struct{}

func (slow) LookupNetIP(ctx context.Context, _, _ string) ([]netip.Addr, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func listener(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

// closedPort returns a port that was just free.
func closedPort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

func to(host string, port uint16) []grant.Target {
	return []grant.Target{{Ports: grant.Ports{Network: grant.TCP, First: 80, Last: 80}, Host: host, Base: port}}
}

func TestDialTellsTheTruth(t *testing.T) {
	open, closed := listener(t), closedPort(t)
	a := &grant.Assignment{Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
	resolver := names{
		"rebound.internal":  {netip.MustParseAddr("127.0.0.1")},
		"metadata.internal": {netip.MustParseAddr("169.254.169.254")},
		"outside.internal":  {netip.MustParseAddr("192.0.2.1")},
	}
	cases := map[string]struct {
		targets []grant.Target
		want    frame.Code
	}{
		"listening":             {to("127.0.0.1", open), frame.OK},
		"refused":               {to("127.0.0.1", closed), frame.Refused},
		"first refused, second": {append(to("127.0.0.1", closed), to("127.0.0.1", open)...), frame.OK},
		"no such name":          {to("gone.internal", open), frame.NameNotFound},
		"rebound to loopback":   {to("rebound.internal", open), frame.NameLeftAssignment},
		"rebound to metadata":   {to("metadata.internal", open), frame.NameLeftAssignment},
		"outside the networks":  {to("outside.internal", open), frame.NameLeftAssignment},
		"no target":             {nil, frame.NotAssigned},
	}
	for name, c := range cases {
		d := targets.Dialer{Resolver: resolver}
		conn, code := d.Dial(t.Context(), a, c.targets, grant.TCP, 80)
		if code != c.want || (conn == nil) != (code != frame.OK) {
			t.Errorf("%s: Dial = %v, %v, want %v", name, conn, code, c.want)
		}
		if conn != nil {
			conn.Close()
		}
	}
}

func TestDialHasADeadline(t *testing.T) {
	d := targets.Dialer{Resolver: slow{}, Timeout: 20 * time.Millisecond}
	if _, code := d.Dial(t.Context(), &grant.Assignment{}, to("slow.internal", 80), grant.TCP, 80); code != frame.Timeout {
		t.Errorf("Dial = %v, want timeout", code)
	}
}
