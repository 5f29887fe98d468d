package posture

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// Ruleset is the packet filter in force, reduced to what the question "what
// happens to a packet that no rule names?" needs.
type Ruleset struct {
	Chains []Chain
}

// Family is the address family of a table.
type Family int

// The families that see traffic to this machine.
const (
	IPv4 Family = iota + 1
	IPv6
	BothFamilies
)

// Chain is one chain of a table.
type Chain struct {
	Table  string
	Name   string
	Family Family
	// Input marks a filter chain that the kernel calls for traffic to this
	// machine; Drop is then its policy.
	Input bool
	Drop  bool
	Rules []Rule
}

// Rule is one rule. Rules with a condition decide about some packets only and do
// not count.
type Rule struct {
	Unconditional bool
	Verdict       Verdict
	// Target is the chain of a jump or goto.
	Target string
}

// Verdict is what a rule does.
type Verdict int

// The verdicts that matter.
const (
	Continue Verdict = iota // no decision: count, log
	Accept
	Drop // also reject
	Jump
	Goto
	Return
)

// maxJumps bounds the walk through chains that call each other.
const maxJumps = 16

// filters tells whether a packet of one family that no rule names is dropped.
// Every input chain is asked, and one drop is final.
func (r Ruleset) filters(f Family) (Chain, bool) {
	for _, c := range r.Chains {
		if c.Input && (c.Family == f || c.Family == BothFamilies) && r.endsIn(c, 0) == Drop {
			return c, true
		}
	}
	return Chain{}, false
}

// endsIn gives what happens in a chain to a packet that meets no condition:
// Accept, Drop, or Return when the caller goes on.
func (r Ruleset) endsIn(c Chain, depth int) Verdict {
	if depth > maxJumps {
		return Accept // cannot be followed: does not count as protection
	}
	for _, rule := range c.Rules {
		if !rule.Unconditional {
			continue
		}
		switch rule.Verdict {
		case Accept, Drop:
			return rule.Verdict
		case Return:
			return c.ending()
		case Jump, Goto:
			end := r.follow(c, rule, depth)
			if end == Return && rule.Verdict == Goto {
				return c.ending()
			}
			if end != Return {
				return end
			}
		}
	}
	return c.ending()
}

func (r Ruleset) follow(from Chain, rule Rule, depth int) Verdict {
	for _, c := range r.Chains {
		if c.Table == from.Table && c.Family == from.Family && c.Name == rule.Target {
			return r.endsIn(c, depth+1)
		}
	}
	return Return
}

func (c Chain) ending() Verdict {
	switch {
	case !c.Input:
		return Return
	case c.Drop:
		return Drop
	default:
		return Accept
	}
}

// firewall gives the fact firewall: from the rules in force when they can be
// read, else from what the two common front ends say.
func (c *Collector) firewall() Fact {
	rules, err := c.list()
	legacy := c.legacyTables()
	if err == nil && !legacy {
		return c.judge(rules)
	}
	if by := c.frontEnd(); by != "" {
		return Fact{Name: Firewall, State: Pass, Evidence: by + "; rules not readable"}
	}
	if err == nil {
		return unknown(Firewall, "rules are kept in legacy iptables, which is not read")
	}
	return unknown(Firewall, "rules not readable: %v", err)
}

func (c *Collector) judge(rules Ruleset) Fact {
	by4, ok4 := rules.filters(IPv4)
	by6, ok6 := rules.filters(IPv6)
	needs6, err := c.hasIPv6()
	switch {
	case !ok4:
		return Fact{Name: Firewall, State: Fail, Evidence: c.whyOpen("IPv4", rules)}
	case ok6:
		return Fact{Name: Firewall, State: Pass, Evidence: fmt.Sprintf("inbound is dropped by default in %s, IPv6 in %s", by4.place(), by6.place())}
	case err != nil:
		return unknown(Firewall, "IPv6 addresses not readable: %v", err)
	case needs6:
		return Fact{Name: Firewall, State: Fail, Evidence: c.whyOpen("IPv6", rules)}
	default:
		return Fact{Name: Firewall, State: Pass, Evidence: fmt.Sprintf("inbound is dropped by default in %s, no IPv6 address", by4.place())}
	}
}

func (c Chain) place() string { return strconv.Quote(c.Table + " " + c.Name) }

func (c *Collector) whyOpen(family string, rules Ruleset) string {
	for _, ch := range rules.Chains {
		if ch.Input {
			return family + " inbound is accepted by default"
		}
	}
	if by := c.frontEnd(); by != "" {
		return "no inbound filter in force, although " + by
	}
	return "no inbound filter in force"
}

// legacyTables tells whether the old iptables interface, which the kernel keeps
// apart, filters.
func (c *Collector) legacyTables() bool {
	for _, name := range []string{"proc/net/ip_tables_names", "proc/net/ip6_tables_names"} {
		data, err := c.read(name)
		if err == nil && bytes.Contains(data, []byte("filter")) {
			return true
		}
	}
	return false
}

// hasIPv6 tells whether the machine has an IPv6 address that others can reach,
// from /proc/net/if_inet6: address, index, prefix length, scope, flags, name.
func (c *Collector) hasIPv6() (bool, error) {
	data, err := c.read("proc/net/if_inet6")
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // the kernel has no IPv6
	}
	if err != nil {
		return false, err
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		const scope, name, fields = 3, 5, 6
		f := strings.Fields(lines.Text())
		if len(f) == fields && f[scope] == "00" && f[name] != "lo" && f[name] != c.own {
			return true, nil
		}
	}
	return false, lines.Err()
}

// frontEnd tells which known front end says that it protects this machine.
func (c *Collector) frontEnd() string {
	if c.ufwEnabled() {
		return "ufw is enabled"
	}
	if c.firewalldRuns() {
		return "firewalld runs"
	}
	return ""
}

// ufwEnabled wants the switch and a default that refuses.
func (c *Collector) ufwEnabled() bool {
	conf, err := c.read("etc/ufw/ufw.conf")
	if err != nil || !strings.EqualFold(assignments(conf)["ENABLED"], "yes") {
		return false
	}
	defaults, err := c.read("etc/default/ufw")
	if err != nil {
		return false
	}
	switch strings.ToUpper(assignments(defaults)["DEFAULT_INPUT_POLICY"]) {
	case "DROP", "REJECT":
		return true
	default:
		return false
	}
}

// firewalldRuns checks that the process in the pid file is firewalld.
func (c *Collector) firewalldRuns() bool {
	text, err := c.read("run/firewalld.pid")
	if err != nil {
		return false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 0 {
		return false
	}
	line, err := c.read(path.Join("proc", strconv.Itoa(pid), "cmdline"))
	return err == nil && bytes.Contains(line, []byte("firewalld"))
}
