// Package netmon tells when the network of this host changes and gives each
// network a stable name. The client uses it to probe carriers again after a
// change, and to remember per network which carrier works.
//
// It only watches: it must not change anything on the host. A Monitor is run by
// one goroutine; OnChange is called from that goroutine, one call at a time.
package netmon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"
)

// defaultDebounce is long enough for the burst of messages that one change gives,
// and short against the patience of a person.
const defaultDebounce = 250 * time.Millisecond

// Network describes how this host is attached.
type Network struct {
	// Fingerprint is stable for one network and differs between networks. It is
	// a hash: it may be logged and stored. "none" means no default route.
	Fingerprint string
	// Interface, Gateway and Subnet belong to the default route.
	Interface string
	Gateway   netip.Addr
	Subnet    netip.Prefix
}

// Config says what to watch.
type Config struct {
	// OnChange gets the state after each change of addresses, links or default
	// routes, and once at the start. It must return soon.
	OnChange func(ctx context.Context, n Network)
	// Ignore is the tunnel interface, whose changes are our own doing.
	Ignore string
	// Debounce is the quiet time after the last message; zero means 250 ms.
	Debounce time.Duration
	Log      *slog.Logger
}

// None is the fingerprint of a host without a default route.
const None = "none"

// Monitor watches the network of this host.
type Monitor struct {
	cfg Config
	log *slog.Logger
}

// New checks cfg. Nothing is watched before Run.
func New(cfg Config) (*Monitor, error) {
	if cfg.Log == nil || cfg.OnChange == nil {
		return nil, errors.New("log and on-change must be set")
	}
	if cfg.Debounce == 0 {
		cfg.Debounce = defaultDebounce
	}
	return &Monitor{cfg: cfg, log: cfg.Log.With("component", "netmon")}, nil
}

// Current reads the state of the network now.
func Current(ignore string) (Network, error) {
	n, err := current(ignore)
	if err != nil {
		return Network{}, fmt.Errorf("read network state: %w", err)
	}
	n.Fingerprint = fingerprint(n)
	return n, nil
}

// fingerprint hashes what a network is known by. Private address ranges repeat, so
// two networks with the same gateway, subnet and kind of interface look the same:
// what is remembered by it must be a hint only.
func fingerprint(n Network) string {
	if n.Interface == "" {
		return None
	}
	sum := sha256.Sum256([]byte(n.Interface + "|" + n.Gateway.String() + "|" + n.Subnet.String()))
	return hex.EncodeToString(sum[:8])
}

// Run reports the state at the start and after each change, until ctx ends.
func (m *Monitor) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, wait, err := watch(ctx, m.cfg.Ignore)
	if err != nil {
		return fmt.Errorf("watch the network: %w", err)
	}
	defer wait()
	defer cancel()
	return m.loop(ctx, events, m.report(ctx, ""))
}

// loop waits for quiet after the last of a burst of events. seen is the state that
// was reported last.
func (m *Monitor) loop(ctx context.Context, events <-chan struct{}, seen string) error {
	quiet := time.NewTimer(m.cfg.Debounce)
	quiet.Stop()
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-events:
			if !ok {
				return errWatch
			}
			quiet.Reset(m.cfg.Debounce)
		case <-quiet.C:
			seen = m.report(ctx, seen)
		}
	}
}

var errWatch = errors.New("the kernel stopped telling about the network")

// report calls OnChange if the state differs from seen, and returns the state. The
// tunnel interface is no part of it, so our own doing is not reported.
func (m *Monitor) report(ctx context.Context, seen string) string {
	n, err := Current(m.cfg.Ignore)
	if err != nil {
		m.log.Warn("network state unknown", "error", err)
		return seen
	}
	state := n.Fingerprint + "|" + attachments(m.cfg.Ignore)
	if state != seen {
		m.cfg.OnChange(ctx, n)
	}
	return state
}

// attachments lists the usable interfaces with their addresses.
func attachments(ignore string) string {
	links, err := net.Interfaces()
	if err != nil {
		return ""
	}
	var b strings.Builder
	for _, l := range links {
		if l.Name == ignore || l.Flags&net.FlagUp == 0 || l.Flags&net.FlagRunning == 0 {
			continue
		}
		addrs, _ := l.Addrs() // an interface that has just gone has none
		fmt.Fprintln(&b, l.Name, addrs)
	}
	return b.String()
}
