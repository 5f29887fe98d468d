//go:build linux

package bench

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/postern-zt/postern/test/netns"
)

// mostPacket is the largest datagram or segment that the kernel counts as one.
const mostPacket = 64 << 10

// counters are the packets that ended at a machine's own sockets.
type counters struct{ tcp, udp uint64 }

// readCounters reads them in h's namespace: the kernel's word for what a relay carried.
func readCounters(h *netns.Host) (c counters, err error) {
	err = h.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		if c.tcp, err = counter(string(text), "Tcp:", "InSegs"); err != nil {
			return err
		}
		c.udp, err = counter(string(text), "Udp:", "InDatagrams")
		return err
	})
	return c, err
}

// counter finds a value in the pairs of lines of /proc/net/snmp.
func counter(text, protocol, name string) (uint64, error) {
	var names []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != protocol {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, n := range names {
			if n == name && i < len(fields) {
				return strconv.ParseUint(fields[i], 10, 64)
			}
		}
	}
	return 0, fmt.Errorf("no %s %s in the kernel's counters", protocol, name)
}

// carried checks that n bytes passed the relay by a carrier ("tls", "quic"), or passed its
// router alone (""). The others may have a little: control connections go on.
func (c counters) carried(since counters, via string, n uint64) error {
	least, most := n/mostPacket, n/mostPacket/10+1000
	tcp, udp := c.tcp-since.tcp, c.udp-since.udp
	ok := map[string]bool{
		"":     tcp < most && udp < most,
		"tls":  tcp >= least && udp < most,
		"quic": udp >= least && tcp < most,
	}
	if !ok[via] {
		return fmt.Errorf("the relay's sockets took %d segments and %d datagrams for %d bytes, which is not %q", tcp, udp, n, via)
	}
	return nil
}
