package netmon

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// The kernel's tables as text. thread-self is the network namespace of the caller;
// plain /proc/net would be that of the process's first thread.
const (
	routesV4 = "/proc/thread-self/net/route"
	routesV6 = "/proc/thread-self/net/ipv6_route"
)

// groups are the netlink groups of what changes a network.
const groups = unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR |
	unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE

// watch delivers one event for one or many messages of the kernel. What the
// messages say is not read: the state is. wait returns when the reader has ended,
// which it does after ctx.
func watch(ctx context.Context, _ string) (events <-chan struct{}, wait func(), err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return nil, nil, errors.Join(os.NewSyscallError("bind", err), unix.Close(fd))
	}
	f := os.NewFile(uintptr(fd), "netlink") // non-blocking: Close ends a blocked Read
	stop := context.AfterFunc(ctx, func() { _ = f.Close() })
	out := make(chan struct{}, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(out)
		forward(f, out)
	})
	return out, func() { stop(); wg.Wait() }, nil
}

func forward(f *os.File, out chan<- struct{}) {
	buf := make([]byte, 64<<10)
	for {
		if _, err := f.Read(buf); err != nil && !errors.Is(err, unix.ENOBUFS) { // ENOBUFS: messages lost, so something changed
			return
		}
		select {
		case out <- struct{}{}:
		default: // one is waiting already
		}
	}
}

// current finds the default route with the lowest metric, IPv4 first.
func current(ignore string) (Network, error) {
	for _, table := range []struct {
		path  string
		parse func(fields []string) (candidate, bool)
	}{{routesV4, parseV4}, {routesV6, parseV6}} {
		best, err := defaultRoute(table.path, ignore, table.parse)
		if err != nil {
			return Network{}, err
		}
		if best.iface != "" {
			return Network{Interface: best.iface, Gateway: best.gateway, Subnet: subnetOf(best)}, nil
		}
	}
	return Network{}, nil
}

type candidate struct {
	iface   string
	gateway netip.Addr
	metric  uint64
}

func defaultRoute(path, ignore string, parse func([]string) (candidate, bool)) (candidate, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return candidate{}, nil // no IPv6 in this kernel
	}
	if err != nil {
		return candidate{}, err
	}
	defer f.Close()
	return bestRoute(f, ignore, parse)
}

func bestRoute(r io.Reader, ignore string, parse func([]string) (candidate, bool)) (candidate, error) {
	var best candidate
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		c, ok := parse(strings.Fields(lines.Text()))
		if ok && c.iface != ignore && c.iface != "lo" && (best.iface == "" || c.metric < best.metric) {
			best = c
		}
	}
	return best, lines.Err()
}

// parseV4 reads a line of /proc/net/route:
// Iface Destination Gateway Flags RefCnt Use Metric Mask ...
// Addresses are hexadecimal in the byte order of the machine.
func parseV4(f []string) (candidate, bool) {
	if len(f) < 8 || f[1] != "00000000" || f[7] != "00000000" {
		return candidate{}, false
	}
	gateway, err := strconv.ParseUint(f[2], 16, 32)
	if err != nil {
		return candidate{}, false
	}
	metric, err := strconv.ParseUint(f[6], 10, 32)
	if err != nil {
		return candidate{}, false
	}
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], uint32(gateway))
	return candidate{f[0], netip.AddrFrom4(b), metric}, true
}

// parseV6 reads a line of /proc/net/ipv6_route:
// dst dst_len src src_len next_hop metric refcnt use flags device
func parseV6(f []string) (candidate, bool) {
	if len(f) < 10 || f[1] != "00" || strings.Trim(f[0], "0") != "" {
		return candidate{}, false
	}
	hop, err := hex.DecodeString(f[4])
	if err != nil || len(hop) != 16 {
		return candidate{}, false
	}
	metric, err := strconv.ParseUint(f[5], 16, 64)
	if err != nil {
		return candidate{}, false
	}
	flags, err := strconv.ParseUint(f[8], 16, 64)
	if err != nil || flags&unix.RTF_REJECT != 0 || flags&unix.RTF_UP == 0 {
		return candidate{}, false
	}
	return candidate{f[9], netip.AddrFrom16([16]byte(hop)), metric}, true
}

// subnetOf returns the prefix of the interface that holds the gateway, or its first
// one.
func subnetOf(c candidate) netip.Prefix {
	link, err := net.InterfaceByName(c.iface)
	if err != nil {
		return netip.Prefix{}
	}
	addrs, err := link.Addrs()
	if err != nil {
		return netip.Prefix{}
	}
	var first netip.Prefix
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || p.Addr().Is4() != c.gateway.Is4() {
			continue
		}
		if p.Contains(c.gateway) {
			return p.Masked()
		}
		if !first.IsValid() {
			first = p.Masked()
		}
	}
	return first
}
