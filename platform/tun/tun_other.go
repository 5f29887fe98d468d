//go:build !linux

package tun

import (
	"errors"
	"fmt"
)

// Device is a tunnel interface. There is none on this system yet.
type Device struct{}

// Open returns errors.ErrUnsupported on this system.
func Open(cfg Config) (*Device, error) {
	return nil, fmt.Errorf("tunnel interface %s: %w", cfg.withDefaults().Name, errors.ErrUnsupported)
}

// InterfaceName returns an empty string.
func (d *Device) InterfaceName() string { return "" }

// Read returns errors.ErrUnsupported.
func (d *Device) Read([][]byte, []int, int) (int, error) { return 0, errors.ErrUnsupported }

// Write returns errors.ErrUnsupported.
func (d *Device) Write([][]byte, int) (int, error) { return 0, errors.ErrUnsupported }

// MTU returns errors.ErrUnsupported.
func (d *Device) MTU() (int, error) { return 0, errors.ErrUnsupported }

// Close does nothing.
func (d *Device) Close() error { return nil }

// BatchSize returns 1.
func (d *Device) BatchSize() int { return 1 }
