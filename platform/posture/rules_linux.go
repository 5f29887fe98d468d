package posture

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// listWait bounds the wait for the kernel.
const listWait = 2 * time.Second

// kernelRules reads nftables of the current network namespace. It needs
// CAP_NET_ADMIN.
func kernelRules() (Ruleset, error) {
	conn, err := nftables.New()
	if err != nil {
		return Ruleset{}, fmt.Errorf("open nftables: %w", err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		return Ruleset{}, fmt.Errorf("list chains: %w", err)
	}
	rules, err := dumpRules()
	if err != nil {
		return Ruleset{}, fmt.Errorf("list rules: %w", err)
	}
	var set Ruleset
	for _, c := range chains {
		if family, ok := familyOf(c.Table.Family); ok {
			key := chainKey{byte(c.Table.Family), c.Table.Name, c.Name}
			set.Chains = append(set.Chains, chainOf(c, family, rules[key]))
		}
	}
	return set, nil
}

func familyOf(f nftables.TableFamily) (Family, bool) {
	switch f {
	case nftables.TableFamilyIPv4:
		return IPv4, true
	case nftables.TableFamilyIPv6:
		return IPv6, true
	case nftables.TableFamilyINet:
		return BothFamilies, true
	default:
		return 0, false
	}
}

func chainOf(c *nftables.Chain, family Family, rules []Rule) Chain {
	return Chain{
		Table: c.Table.Name, Name: c.Name, Family: family, Rules: rules,
		Input: c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookInput && c.Type == nftables.ChainTypeFilter,
		Drop:  c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop,
	}
}

type chainKey struct {
	family       byte
	table, chain string
}

// dumpRules reads every rule with the names of all its expressions. The nftables
// package leaves expressions out that it does not know, which would make "drop if
// X" look like "drop".
func dumpRules() (map[chainKey][]Rule, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(listWait)); err != nil {
		return nil, err
	}
	answers, err := conn.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE,
			Flags: netlink.Request | netlink.Dump,
		},
		Data: []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0}, // struct nfgenmsg
	})
	if err != nil {
		return nil, err
	}
	rules := map[chainKey][]Rule{}
	for _, a := range answers {
		key, rule, err := decodeRule(a.Data)
		if err != nil {
			return nil, err
		}
		rules[key] = append(rules[key], rule)
	}
	return rules, nil
}

// decodeRule reads one rule: struct nfgenmsg, then attributes.
func decodeRule(data []byte) (chainKey, Rule, error) {
	const header = 4
	if len(data) < header {
		return chainKey{}, Rule{}, fmt.Errorf("rule of %d bytes", len(data))
	}
	key, rule := chainKey{family: data[0]}, Rule{Unconditional: true}
	err := attributes(data[header:], func(ad *netlink.AttributeDecoder) error {
		switch ad.Type() {
		case unix.NFTA_RULE_TABLE:
			key.table = ad.String()
		case unix.NFTA_RULE_CHAIN:
			key.chain = ad.String()
		case unix.NFTA_RULE_EXPRESSIONS:
			return attributes(ad.Bytes(), rule.addElement)
		}
		return nil
	})
	return key, rule, err
}

// attributes calls visit for each attribute.
func attributes(data []byte, visit func(*netlink.AttributeDecoder) error) error {
	ad, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return err
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		if err := visit(ad); err != nil {
			return err
		}
	}
	return ad.Err()
}

// addElement reads one expression of a rule. Everything but a counter, a log and
// the verdict itself is a condition.
func (r *Rule) addElement(ad *netlink.AttributeDecoder) error {
	var name string
	var data []byte
	err := attributes(ad.Bytes(), func(ad *netlink.AttributeDecoder) error {
		switch ad.Type() {
		case unix.NFTA_EXPR_NAME:
			name = ad.String()
		case unix.NFTA_EXPR_DATA:
			data = ad.Bytes()
		}
		return nil
	})
	if err != nil {
		return err
	}
	switch name {
	case "counter", "log":
		return nil
	case "reject":
		r.Verdict = Drop
		return nil
	case "immediate":
		return r.addImmediate(data)
	case "target":
		return r.addTarget(data)
	default:
		r.Unconditional = false
		return nil
	}
}

// addTarget reads a target of the iptables front end.
func (r *Rule) addTarget(data []byte) error {
	return attributes(data, func(ad *netlink.AttributeDecoder) error {
		if ad.Type() == unix.NFTA_TARGET_NAME && ad.String() == "REJECT" {
			r.Verdict = Drop
		}
		return nil
	})
}

// addImmediate reads a verdict; a value for another register is part of a
// condition or a change of the packet.
func (r *Rule) addImmediate(data []byte) error {
	register := uint32(unix.NFT_REG_1)
	var code int32
	var hasVerdict bool
	readVerdict := func(ad *netlink.AttributeDecoder) error {
		switch ad.Type() {
		case unix.NFTA_VERDICT_CODE:
			code, hasVerdict = int32(ad.Uint32()), true
		case unix.NFTA_VERDICT_CHAIN:
			r.Target = ad.String()
		}
		return nil
	}
	err := attributes(data, func(ad *netlink.AttributeDecoder) error {
		switch ad.Type() {
		case unix.NFTA_IMMEDIATE_DREG:
			register = ad.Uint32()
		case unix.NFTA_IMMEDIATE_DATA:
			return attributes(ad.Bytes(), func(ad *netlink.AttributeDecoder) error {
				if ad.Type() != unix.NFTA_DATA_VERDICT {
					return nil
				}
				return attributes(ad.Bytes(), readVerdict)
			})
		}
		return nil
	})
	if register != unix.NFT_REG_VERDICT || !hasVerdict {
		r.Unconditional = false
		return err
	}
	r.Verdict = verdictOf(code)
	return err
}

// verdictOf maps the codes of linux/netfilter.h and linux/netfilter/nf_tables.h.
func verdictOf(code int32) Verdict {
	const nfDrop, nfAccept, nfQueue = 0, 1, 3
	const actionMask = 0xff // the queue's number stands above it
	switch code {
	case unix.NFT_JUMP:
		return Jump
	case unix.NFT_GOTO:
		return Goto
	case unix.NFT_RETURN:
		return Return
	case nfDrop:
		return Drop
	case nfAccept:
		return Accept
	}
	if code > 0 && code&actionMask == nfQueue {
		return Accept // another program decides: no protection known here
	}
	return Continue
}
