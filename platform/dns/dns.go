// Package dns tells the host to ask our server for published names, and for
// nothing else where the host can tell the difference. The client's root package
// uses it.
//
// It is a ladder: Set takes the first rung that works on this host, says which
// one it is, and leaves everybody else's configuration alone. Set is declarative
// and idempotent; CleanUp restores the host byte for byte, also after kill -9. It
// must not answer questions itself: client/resolve does.
//
// A Host may be used from several goroutines; calls run one after the other.
package dns

import (
	"errors"
	"log/slog"
	"net/netip"
	"sync"
)

// Config is the whole wanted state.
type Config struct {
	// Interface is the tunnel interface.
	Interface string
	// Server answers for the domains.
	Server netip.AddrPort
	// Domains are the declared suffixes, such as "corp.internal".
	Domains []string
}

// Validate says what is wrong with the configuration.
func (c Config) Validate() error {
	switch {
	case c.Interface == "":
		return errors.New("interface: name is empty")
	case !c.Server.IsValid():
		return errors.New("server: address is not set")
	case len(c.Domains) == 0:
		return errors.New("domains: none given")
	}
	return nil
}

// Rung names a way to reach the host's resolver.
type Rung string

// The rungs of the ladder, best first. RungNone means that nothing is set.
const (
	RungNone       Rung = ""
	RungResolved   Rung = "systemd-resolved"
	RungResolvConf Rung = "resolv.conf"
)

// Status says what is in place.
type Status struct {
	Rung Rung
	// Sentence is for people: postern status prints it.
	Sentence string
	// Upstreams are the host's own servers, to which our server must forward
	// when the rung sends it every question. Empty on a rung that does not.
	Upstreams []netip.AddrPort
}

// HostConfig says what a Host works on. The zero value is the real system.
type HostConfig struct {
	// ResolvConf is the file of the last rung; empty means /etc/resolv.conf.
	ResolvConf string
	// StateDir keeps the original while ours is in place, so that it can be
	// restored after a crash; empty means /var/lib/postern/client.
	StateDir string
	// BusAddress is the D-Bus address; empty means the system bus. "none" leaves
	// out the rung of systemd-resolved.
	BusAddress string
	Log        *slog.Logger
}

// Host is the resolver configuration of this machine.
type Host struct {
	cfg HostConfig
	log *slog.Logger

	mu     sync.Mutex // one change at a time
	want   Config     // guarded by mu
	status Status     // guarded by mu
}
