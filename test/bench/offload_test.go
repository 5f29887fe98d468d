//go:build linux

package bench

import (
	"bytes"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Commands and layouts of the ethtool ioctl, from linux/ethtool.h.
const (
	ethtoolStrings     = 0x1b
	ethtoolStringCount = 0x37
	ethtoolFeatures    = 0x3a
	ethtoolSetFeatures = 0x3b

	featureStrings = 4  // ETH_SS_FEATURES
	nameSize       = 32 // ETH_GSTRING_LEN
	wordBits       = 32
)

// wire is what makes a virtual cable behave as a real one: packets cross it in wire size,
// and the receiver merges them as a network card's driver does.
func wire() map[string]bool {
	return map[string]bool{
		"tx-tcp-segmentation": false, "tx-tcp-ecn-segmentation": false, "tx-tcp-mangleid-segmentation": false,
		"tx-tcp6-segmentation": false, "tx-udp-segmentation": false, "rx-gro": true,
	}
}

// setOffloads switches features of an interface of this thread's namespace, and reads back
// what became of them.
func setOffloads(iface string, want map[string]bool) error {
	names, err := featureNames(iface)
	if err != nil {
		return err
	}
	words := (len(names) + wordBits - 1) / wordBits
	set := make([]uint32, 2+2*words) // command, words, {valid, requested} per word
	set[0], set[1] = ethtoolSetFeatures, uint32(words)
	for i, name := range names {
		on, named := want[name]
		if !named {
			continue
		}
		set[2+2*(i/wordBits)] |= 1 << (i % wordBits)
		if on {
			set[3+2*(i/wordBits)] |= 1 << (i % wordBits)
		}
	}
	if err := ethtool(iface, unsafe.Pointer(&set[0])); err != nil {
		return fmt.Errorf("set offloads of %s: %w", iface, err)
	}
	return checkOffloads(iface, names, want)
}

func checkOffloads(iface string, names []string, want map[string]bool) error {
	words := (len(names) + wordBits - 1) / wordBits
	got := make([]uint32, 2+4*words) // command, words, {available, requested, active, never changed}
	got[0], got[1] = ethtoolFeatures, uint32(words)
	if err := ethtool(iface, unsafe.Pointer(&got[0])); err != nil {
		return fmt.Errorf("read offloads of %s: %w", iface, err)
	}
	seen := 0
	for i, name := range names {
		on, named := want[name]
		if !named {
			continue
		}
		seen++
		if active := got[4+4*(i/wordBits)]>>(i%wordBits)&1 == 1; active != on {
			return fmt.Errorf("%s: %s is %t, want %t", iface, name, active, on)
		}
	}
	if seen != len(want) {
		return fmt.Errorf("%s knows %d of the %d offloads to set", iface, seen, len(want))
	}
	return nil
}

func featureNames(iface string) ([]string, error) {
	count := [5]uint32{ethtoolStringCount, 0, 1 << featureStrings} // mask is 64 bits
	if err := ethtool(iface, unsafe.Pointer(&count[0])); err != nil {
		return nil, fmt.Errorf("count offloads of %s: %w", iface, err)
	}
	n := int(count[4])
	table := make([]uint32, 3+n*nameSize/4)
	table[0], table[1], table[2] = ethtoolStrings, featureStrings, uint32(n)
	if err := ethtool(iface, unsafe.Pointer(&table[0])); err != nil {
		return nil, fmt.Errorf("name offloads of %s: %w", iface, err)
	}
	text := unsafe.Slice((*byte)(unsafe.Pointer(&table[3])), n*nameSize)
	names := make([]string, n)
	for i := range names {
		name, _, _ := bytes.Cut(text[i*nameSize:(i+1)*nameSize], []byte{0})
		names[i] = string(name)
	}
	return names, nil
}

// ethtool runs one command; data is its request and its answer.
func ethtool(iface string, data unsafe.Pointer) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	req := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // the rest of struct ifreq
	}{data: data}
	copy(req.name[:unix.IFNAMSIZ-1], iface)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	runtime.KeepAlive(data)
	if errno != 0 {
		return errno
	}
	return nil
}
