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
// It does not watch the interface: the state of it is our own doing, and watching
// costs a wake-up each second.
func Open(cfg Config) (*Device, error) {
	cfg = cfg.withDefaults()
	fd, err := openDriver(devicePath)
	if err != nil {
		return nil, err
	}
	if err := attach(fd, cfg); err != nil {
		return nil, errors.Join(explain(cfg.Name, err), unix.Close(fd))
	}
	dev, name, err := wgtun.CreateUnmonitoredTUNFromFD(fd) // owns fd from here on
	if err != nil {
		return nil, fmt.Errorf("set up interface %s: %w", cfg.Name, err)
	}
	return &Device{Device: dev, name: name, mtu: cfg.MTU}, nil
}

func openDriver(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return -1, fmt.Errorf("%w: %s is missing; load the module (modprobe tun), or start the container with --device %s", ErrNoDriver, path, path)
	case errors.Is(err, fs.ErrPermission):
		return -1, fmt.Errorf("%w: cannot open %s; run as root, or use the proxy, which needs no rights (postern proxy)", ErrPermission, path)
	default:
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
}

// attach makes the interface behind fd and sets its MTU.
func attach(fd int, cfg Config) error {
	request, err := unix.NewIfreq(cfg.Name)
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return os.NewSyscallError("TUNSETIFF", err)
	}
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	request.SetUint32(uint32(cfg.MTU))
	err = os.NewSyscallError("SIOCSIFMTU", unix.IoctlIfreq(socket, unix.SIOCSIFMTU, request))
	return errors.Join(err, unix.Close(socket))
}

// InterfaceName returns the name that the kernel gave the interface.
func (d *Device) InterfaceName() string { return d.name }

// MTU returns what Open set. It does not ask the kernel, which would answer for the
// network namespace of the calling thread.
func (d *Device) MTU() (int, error) { return d.mtu, nil }

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
