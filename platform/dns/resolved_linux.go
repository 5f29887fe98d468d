package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

const (
	// busNone as BusAddress leaves this rung out.
	busNone = "none"

	resolvedName      = "org.freedesktop.resolve1"
	resolvedPath      = dbus.ObjectPath("/org/freedesktop/resolve1")
	resolvedInterface = "org.freedesktop.resolve1.Manager."
	linkInterface     = "org.freedesktop.resolve1.Link"
	busInterface      = "org.freedesktop.DBus."

	// busTimeout bounds all calls of one change: the service is local and answers
	// in milliseconds, or hangs.
	busTimeout = 3 * time.Second
)

// Arguments of systemd-resolved as its D-Bus interface defines them
// (org.freedesktop.resolve1(5)).
type (
	linkDNS struct {
		Family  int32
		Address []byte
		Port    uint16
		Name    string
	}
	linkDomain struct {
		Name        string
		RoutingOnly bool
	}
)

// manager is systemd-resolved on the bus, for one interface.
type manager struct {
	conn  *dbus.Conn
	index int32
}

// dialResolved connects to a running systemd-resolved. It never starts one.
func (h *Host) dialResolved(ctx context.Context, iface string) (*manager, error) {
	link, err := net.InterfaceByName(iface)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", iface, err)
	}
	conn, err := dialBus(ctx, h.cfg.BusAddress)
	if err != nil {
		return nil, fmt.Errorf("connect to the system bus: %w", err)
	}
	var owned bool
	err = conn.BusObject().CallWithContext(ctx, busInterface+"NameHasOwner", 0, resolvedName).Store(&owned)
	if err == nil && !owned {
		err = errors.New("systemd-resolved does not run")
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &manager{conn: conn, index: int32(link.Index)}, nil
}

func dialBus(ctx context.Context, address string) (*dbus.Conn, error) {
	if address == "" {
		return dbus.ConnectSystemBus(dbus.WithContext(ctx))
	}
	return dbus.Connect(address, dbus.WithContext(ctx))
}

func (m *manager) call(ctx context.Context, method string, args ...any) error {
	args = append([]any{m.index}, args...)
	err := m.conn.Object(resolvedName, resolvedPath).CallWithContext(ctx, resolvedInterface+method, 0, args...).Err
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	return nil
}

// setResolved gives our interface its server and its domains, for routing only: no
// other name is ever asked there, and none of ours anywhere else.
func (h *Host) setResolved(ctx context.Context, cfg Config) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	m, err := h.dialResolved(ctx, cfg.Interface)
	if err != nil {
		return Status{}, err
	}
	defer m.conn.Close()
	if err := m.set(ctx, cfg); err != nil {
		return Status{}, errors.Join(err, m.call(ctx, "RevertLink"))
	}
	return Status{
		Rung:     RungResolved,
		Sentence: "systemd-resolved asks our server for " + strings.Join(cfg.Domains, ", ") + " and for nothing else",
	}, nil
}

func (m *manager) set(ctx context.Context, cfg Config) error {
	server := linkDNS{Family: unix.AF_INET, Address: cfg.Server.Addr().AsSlice(), Port: cfg.Server.Port()}
	if cfg.Server.Addr().Is6() {
		server.Family = unix.AF_INET6
	}
	for _, step := range []struct {
		method string
		arg    any
	}{
		{"SetLinkDNSEx", []linkDNS{server}},
		{"SetLinkDomains", routingDomains(cfg.Domains)},
		{"SetLinkDefaultRoute", false},
		{"SetLinkLLMNR", "no"},
		{"SetLinkMulticastDNS", "no"},
		{"SetLinkDNSSEC", "no"}, // a private zone has no signatures
		{"SetLinkDNSOverTLS", "no"},
	} {
		if err := m.call(ctx, step.method, step.arg); err != nil {
			return err
		}
	}
	return nil
}

func routingDomains(domains []string) []linkDomain {
	out := make([]linkDomain, 0, len(domains))
	for _, d := range domains {
		out = append(out, linkDomain{Name: strings.TrimSuffix(d, "."), RoutingOnly: true})
	}
	return out
}

// resolvedInPlace asks whether the service still has our domains: it forgets them
// when it is restarted.
func (h *Host) resolvedInPlace(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	m, err := h.dialResolved(ctx, h.want.Interface)
	if err != nil {
		return false
	}
	defer m.conn.Close()
	have, err := m.domains(ctx)
	return err == nil && slices.Equal(have, routingDomains(h.want.Domains))
}

func (m *manager) domains(ctx context.Context) ([]linkDomain, error) {
	var path dbus.ObjectPath
	call := m.conn.Object(resolvedName, resolvedPath).CallWithContext(ctx, resolvedInterface+"GetLink", 0, m.index)
	if err := call.Store(&path); err != nil {
		return nil, err
	}
	var value dbus.Variant
	call = m.conn.Object(resolvedName, path).CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, linkInterface, "Domains")
	if err := call.Store(&value); err != nil {
		return nil, err
	}
	var out []linkDomain
	return out, dbus.Store([]any{value.Value()}, &out)
}

// revertResolved forgets the settings of our interface. With the interface they
// are gone already, and without a bus nobody holds them.
func (h *Host) revertResolved(ctx context.Context, iface string) error {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	m, err := h.dialResolved(ctx, iface)
	if err != nil {
		return nil
	}
	defer m.conn.Close()
	return m.call(ctx, "RevertLink")
}
