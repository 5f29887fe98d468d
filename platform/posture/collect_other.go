//go:build !linux

package posture

import (
	"errors"
	"runtime"
	"time"
)

func (c *Collector) collect(time.Time) []Fact {
	var facts []Fact
	for _, name := range []string{OSVersion, OSSupported, Firewall} {
		facts = append(facts, unknown(name, "not read on %s yet", runtime.GOOS))
	}
	return facts
}

func kernelRules() (Ruleset, error) { return Ruleset{}, errors.ErrUnsupported }
