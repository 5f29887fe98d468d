// Package posture reads the facts of this machine that trust is built on: the
// version of the operating system, whether its vendor still supports it, and
// whether a host firewall filters what comes in.
//
// The client collects them on a schedule and reports them. The package judges
// nothing beyond the fact itself: what cannot be read is unknown with the reason,
// never pass. It changes nothing on the machine.
//
// A Collector is safe for concurrent use.
package posture

import (
	"fmt"
	"io/fs"
	"os"
	"time"
)

// State is what is known of a fact. Its zero value is Unknown.
type State int

// The states of a fact.
const (
	Unknown State = iota
	Fail
	Pass
)

// String gives the state's word on the wire.
func (s State) String() string {
	switch s {
	case Pass:
		return "pass"
	case Fail:
		return "fail"
	default:
		return "unknown"
	}
}

// Names of the facts that this package reads.
const (
	OSVersion   = "os_version"
	OSSupported = "os_supported"
	Firewall    = "firewall"
)

// Fact is one observation.
type Fact struct {
	// Name is one of the names above, or one that the caller adds.
	Name string
	// State is Unknown when the fact could not be read; Evidence says why.
	State State
	// Data is the value of facts that have one, such as "debian 12.11".
	Data string
	// Evidence says in a few words what was seen, for people.
	Evidence string
	// Observed is when it was seen.
	Observed time.Time
}

// Config says where to look. Its zero value means this machine.
type Config struct {
	// Root is the file system with /etc, /proc and /run; nil means the real one.
	Root fs.FS
	// Rules reads the packet filter in force; nil means the kernel's.
	Rules func() (Ruleset, error)
	// OwnInterface is the name of our tunnel, whose addresses need no firewall:
	// nothing enters through it but answers.
	OwnInterface string
}

// Collector reads the facts of one machine.
type Collector struct {
	root fs.FS
	own  string
	list func() (Ruleset, error)
}

// New gives a collector; it reads nothing yet.
func New(cfg Config) *Collector {
	c := &Collector{root: cfg.Root, own: cfg.OwnInterface, list: cfg.Rules}
	if c.root == nil {
		c.root = os.DirFS("/")
	}
	if c.list == nil {
		c.list = kernelRules
	}
	return c
}

// Collect reads all facts. Each has the time now; the order is fixed.
func (c *Collector) Collect(now time.Time) []Fact {
	facts := c.collect(now)
	for i := range facts {
		facts[i].Observed = now
	}
	return facts
}

func unknown(name, format string, args ...any) Fact {
	return Fact{Name: name, State: Unknown, Evidence: fmt.Sprintf(format, args...)}
}
