//go:build linux

package bench

import (
	"fmt"
	"strings"

	"github.com/postern-zt/postern/test/netns"
)

// checkCongestion reads the congestion control of every established connection of these
// machines back from the kernel, those of the programs under test among them.
func checkCongestion(hosts ...*netns.Host) error {
	for _, h := range hosts {
		out, err := h.Output("ss", "-tinHO", "state", "established")
		if err != nil {
			return fmt.Errorf("list connections of %s: %w: %s", h.Name, err, out)
		}
		for line := range strings.Lines(out) {
			if !strings.Contains(line, " "+congestion+" ") {
				return fmt.Errorf("a connection of %s does not use %s: %s", h.Name, congestion, strings.TrimSpace(line))
			}
		}
	}
	return nil
}
