package tun

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
	wgtun "golang.zx2c4.com/wireguard/tun"
)

const devicePath = "/dev/net/tun"

// Device is a tunnel interface. It goes away with the process.
type Device struct {
	wgtun.Device
	name string
	mtu  int
}

// Open creates the interface and sets it up for super-packets in both directions.
func Open(cfg Config) (*Device, error) {
	cfg = cfg.withDefaults()
	if err := probe(devicePath); err != nil {
		return nil, err
	}
	dev, err := wgtun.CreateTUN(cfg.Name, cfg.MTU)
	if err != nil {
		return nil, explain(cfg.Name, err)
	}
	name, err := dev.Name()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read interface name: %w", err), dev.Close())
	}
	return &Device{Device: dev, name: name, mtu: cfg.MTU}, nil
}

// InterfaceName returns the name that the kernel gave the interface.
func (d *Device) InterfaceName() string { return d.name }

// MTU returns what Open set. It does not ask the kernel, which would answer for the
// network namespace of the calling thread.
func (d *Device) MTU() (int, error) { return d.mtu, nil }

func probe(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	switch {
	case err == nil:
		return f.Close()
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: %s is missing; load the module (modprobe tun), or start the container with --device %s", ErrNoDriver, path, path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: cannot open %s; run as root, or use the proxy, which needs no rights (postern proxy)", ErrPermission, path)
	default:
		return fmt.Errorf("open %s: %w", path, err)
	}
}

func explain(name string, err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: creating %s needs CAP_NET_ADMIN; run as root, or start the container with --cap-add NET_ADMIN", ErrPermission, name)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %s; stop the other process (postern status shows it)", ErrInUse, name)
	default:
		return fmt.Errorf("create interface %s: %w", name, err)
	}
}
