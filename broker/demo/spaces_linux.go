package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	spacesDir = "/run/netns"
	etcDir    = "/etc/netns"
	tunDevice = "/dev/net/tun"
)

// Addresses of the namespaces. Nothing of them is seen outside.
var (
	brokerAddr  = netip.MustParseAddrPort("198.18.1.1:8443")
	wikiAddr    = netip.MustParseAddrPort("192.168.77.10:80")
	payrollAddr = netip.MustParseAddrPort("192.168.77.11:80")
)

// spaces is a network namespace for each machine:
//
//	laptop 198.18.1.2 --- 198.18.1.1 broker 198.18.2.1 --- 198.18.2.2 site (the apps)
//
// The broker forwards nothing: laptop and site reach the broker, and not each other.
type spaces struct{ prefix string }

// spacesSupported reports whether this system has network namespaces.
func spacesSupported() bool {
	_, err := exec.LookPath("ip")
	return err == nil
}

func newSpaces(ctx context.Context) (network, error) {
	tun, err := os.OpenFile(tunDevice, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	tun.Close()
	s := &spaces{prefix: fmt.Sprintf("postern-demo-%d-", os.Getpid())}
	if err := s.build(ctx); err != nil {
		return nil, errors.Join(err, s.remove(context.WithoutCancel(ctx)))
	}
	return s, nil
}

func (s *spaces) name(m machine) string { return s.prefix + string(m) }

// build makes the namespaces and the two cables.
func (s *spaces) build(ctx context.Context) error {
	b, l, k := s.name(brokerHost), s.name(laptop), s.name(siteHost)
	lines := []string{
		"netns add " + b, "netns add " + l, "netns add " + k,
		"link add laptop netns " + b + " type veth peer name eth0 netns " + l,
		"link add site netns " + b + " type veth peer name eth0 netns " + k,
		"-n " + b + " addr add 198.18.1.1/24 dev laptop", "-n " + l + " addr add 198.18.1.2/24 dev eth0",
		"-n " + b + " addr add 198.18.2.1/24 dev site", "-n " + k + " addr add 198.18.2.2/24 dev eth0",
		"-n " + k + " addr add 192.168.77.10/32 dev lo", "-n " + k + " addr add 192.168.77.11/32 dev lo",
		"-n " + b + " link set lo up", "-n " + l + " link set lo up", "-n " + k + " link set lo up",
		"-n " + b + " link set laptop up", "-n " + b + " link set site up", "-n " + l + " link set eth0 up", "-n " + k + " link set eth0 up",
		"-n " + k + " route add 198.18.1.1/32 via 198.18.2.1",
	}
	for _, line := range lines {
		if err := ip(ctx, strings.Fields(line)...); err != nil {
			return err
		}
	}
	// The daemon names its resolver in this file; commands there see it as /etc/resolv.conf.
	dir := filepath.Join(etcDir, l)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "resolv.conf"), nil, 0o644)
}

func ip(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

func (s *spaces) describe() string {
	return "broker, site and laptop in network namespaces of their own, the laptop with a tunnel interface"
}

func (s *spaces) place(m machine) place {
	return place{
		prefix: []string{"ip", "netns", "exec", s.name(m)},
		dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return dialIn(ctx, s.name(m), network, addr)
		},
	}
}

// dialIn opens a connection inside a namespace; the connection stays there.
func dialIn(ctx context.Context, space, network, addr string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() { // ends with the dial, which ctx bounds
		runtime.LockOSThread() // never unlocked: the thread ends here, in the wrong namespace
		if err := enter(space); err != nil {
			done <- result{err: err}
			return
		}
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, network, addr)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

func enter(space string) error {
	f, err := os.Open(filepath.Join(spacesDir, space))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter namespace %s: %w", space, err)
	}
	return nil
}

func (s *spaces) broker() netip.AddrPort  { return brokerAddr }
func (s *spaces) wiki() netip.AddrPort    { return wikiAddr }
func (s *spaces) payroll() netip.AddrPort { return payrollAddr }

// remove takes the namespaces away, with their interfaces.
func (s *spaces) remove(ctx context.Context) error {
	var errs []error
	for _, m := range []machine{brokerHost, siteHost, laptop} {
		if _, err := os.Stat(filepath.Join(spacesDir, s.name(m))); err != nil {
			continue // it was not made
		}
		errs = append(errs, ip(ctx, "netns", "del", s.name(m)), os.RemoveAll(filepath.Join(etcDir, s.name(m))))
	}
	_ = os.Remove(etcDir) // unless it holds something of others
	return errors.Join(errs...)
}
