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
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"time"
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
	want   Config     // zero: nothing is set; guarded by mu
	status Status     // guarded by mu
}

// New checks cfg. It does not touch the host.
func New(cfg HostConfig) (*Host, error) {
	if cfg.Log == nil {
		return nil, errors.New("log: not set")
	}
	if cfg.ResolvConf == "" {
		cfg.ResolvConf = "/etc/resolv.conf"
	}
	return &Host{cfg: cfg, log: cfg.Log.With("component", "dns")}, nil
}

// Status returns what is in place now.
func (h *Host) Status() Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.status
}

// Set makes the host ask cfg.Server for cfg.Domains, by the first rung that works.
// After an error Check and Run try again; CleanUp ends that.
func (h *Host) Set(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.setLocked(ctx, cfg)
}

func (h *Host) setLocked(ctx context.Context, cfg Config) error {
	h.want = cfg
	status, err := h.climb(ctx, cfg)
	if err != nil {
		h.status = Status{}
		return err
	}
	if status.Rung != h.status.Rung {
		h.log.Info("host resolver set", "rung", string(status.Rung))
	}
	h.status = status
	return nil
}

// CleanUp gives the host's own configuration back. It may be called at any time,
// also by a process that did not call Set: that is how the leftovers of a killed
// one are found. iface may be gone.
func (h *Host) CleanUp(ctx context.Context, iface string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.want, h.status = Config{}, Status{}
	return h.restore(ctx, iface)
}

// Check puts our configuration back when somebody else has overwritten it. Run
// calls it; it does nothing before Set.
func (h *Host) Check(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.want.Interface == "" || h.inPlace(ctx) {
		return nil
	}
	return h.setLocked(ctx, h.want)
}

// checkInterval is how long others' changes go unnoticed. Reading one small file
// costs nothing, and works where a watch does not (bind mounts in containers).
const checkInterval = 5 * time.Second

// Run keeps our configuration in place until ctx ends. It does not clean up.
func (h *Host) Run(ctx context.Context) error {
	ticker := time.NewTicker(checkInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			if err := h.Check(ctx); err != nil && ctx.Err() == nil {
				h.log.Warn("host resolver not set", "error", err)
			}
		}
	}
}
