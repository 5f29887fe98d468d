// Package tun creates the tunnel interface through which programs on this host
// reach published apps. The root package of the client opens it and hands it to
// netstack/stack, which sees only the batch methods.
//
// It must not set addresses, routes or DNS: platform/route and platform/dns do.
// The returned Device has one reader and one writer at a time; Close may come from
// any goroutine and ends a blocked Read.
package tun

import "errors"

const (
	// DefaultName is the interface name used when Config.Name is empty.
	DefaultName = "postern0"
	// DefaultMTU makes super-packets of plain ones: TCP ends on this host, so no
	// packet of this size ever meets a real network.
	DefaultMTU = 65000
)

// Errors that Open wraps; the message beside them says what to do.
var (
	ErrNoDriver   = errors.New("this host offers no TUN device")
	ErrPermission = errors.New("not allowed to create a tunnel interface")
	ErrInUse      = errors.New("tunnel interface is in use by another process")
)

// Config says which interface to create.
type Config struct {
	// Name of the interface; empty means DefaultName.
	Name string
	// MTU of the interface; zero means DefaultMTU.
	MTU int
}

func (c Config) withDefaults() Config {
	if c.Name == "" {
		c.Name = DefaultName
	}
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	return c
}
