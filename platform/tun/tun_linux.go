package tun

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

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
// No goroutine watches the interface; Read notices when somebody removes it.
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
	if err := dev.File().SetReadDeadline(time.Now().Add(lookEvery)); err != nil {
		return nil, errors.Join(fmt.Errorf("set up interface %s: %w", cfg.Name, err), dev.Close())
	}
	return &Device{Device: dev, name: name, mtu: cfg.MTU}, nil
}

// lookEvery is how often a reader without packets makes sure that the interface is still
// there: the kernel wakes readers before it takes the interface away, and that wake-up can
// be lost.
const lookEvery = 5 * time.Second

// Read reads packets as the driver does. It ends with os.ErrClosed soon after somebody
// has removed the interface.
func (d *Device) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for {
		n, err := d.Device.Read(bufs, sizes, offset)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		if err := d.attached(); err != nil {
			return 0, err
		}
		if err := d.File().SetReadDeadline(time.Now().Add(lookEvery)); err != nil {
			return 0, err
		}
	}
}

// attached fails when the interface behind the descriptor is gone.
func (d *Device) attached() error {
	raw, err := d.File().SyscallConn()
	if err != nil {
		return err
	}
	request, err := unix.NewIfreq(d.name)
	if err != nil {
		return err
	}
	var gone error
	err = raw.Control(func(fd uintptr) { gone = unix.IoctlIfreq(int(fd), unix.TUNGETIFF, request) })
	if gone != nil {
		gone = fmt.Errorf("interface %s was removed: %w", d.name, os.ErrClosed)
	}
	return errors.Join(err, gone)
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
