package demo

import (
	"context"
	"net"
	"net/netip"
)

// loopback is all three machines on this one: no root is needed.
type loopback struct{ ports [3]netip.AddrPort }

// newLoopback finds free ports, the same for TCP and UDP.
func newLoopback() (*loopback, error) {
	var l loopback
	for i := range l.ports {
		var err error
		if l.ports[i], err = freePort(); err != nil {
			return nil, err
		}
	}
	return &l, nil
}

func freePort() (netip.AddrPort, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer l.Close()
	return netip.ParseAddrPort(l.Addr().String())
}

func (l *loopback) describe() string {
	return "everything on loopback, the employee uses the proxy (no root)"
}

func (l *loopback) place(machine) place { return place{dial: (&net.Dialer{}).DialContext} }

func (l *loopback) broker() netip.AddrPort       { return l.ports[0] }
func (l *loopback) wiki() netip.AddrPort         { return l.ports[1] }
func (l *loopback) payroll() netip.AddrPort      { return l.ports[2] }
func (l *loopback) remove(context.Context) error { return nil }
