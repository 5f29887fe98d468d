package policy

import (
	"slices"
	"time"

	"github.com/cedar-policy/cedar-go/types"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"

	"github.com/postern-zt/postern/broker/trust"
)

// anyone and anything are the keys of policies whose scope does not narrow.
const (
	anyone     = "*"
	anything   = "*"
	incomplete = "?" // a deny by group: it concerns users whose groups are not all known
)

// scopeKeys says under which keys a policy is filed: it can match only a request that has one
// of the principals and one of the resources.
type scopeKeys struct{ principals, resources []string }

func formKeys(r *Rule) scopeKeys {
	var k scopeKeys
	for _, u := range r.Who.Users {
		k.principals = append(k.principals, "u:"+string(u))
	}
	for _, g := range r.Who.Groups {
		k.principals = append(k.principals, "g:"+string(g))
	}
	if r.Effect == Deny && len(r.Who.Groups) > 0 {
		k.principals = append(k.principals, incomplete)
	}
	if r.Who.SignedIn {
		k.principals = []string{anyone}
	}
	for _, a := range r.Apps.IDs {
		k.resources = append(k.resources, "a:"+string(a))
	}
	for _, t := range r.Apps.Tags {
		k.resources = append(k.resources, "t:"+t)
	}
	for _, c := range r.Apps.Classes {
		k.resources = append(k.resources, "c:"+string(c))
	}
	if r.Apps.Any {
		k.resources = []string{anything}
	}
	return k
}

// treeKeys reads the keys from the scope of a Cedar policy. A scope it does not understand is
// filed under everything: the index only saves work, Cedar decides.
func treeKeys(p *xast.Policy) scopeKeys {
	return scopeKeys{principals: []string{scopeKey(p.Principal, anyone)}, resources: []string{scopeKey(p.Resource, anything)}}
}

func scopeKey(scope xast.IsScopeNode, fallback string) string {
	var e types.EntityUID
	switch x := scope.(type) {
	case xast.ScopeTypeEq:
		e = x.Entity
	case xast.ScopeTypeIn:
		e = x.Entity
	case xast.ScopeTypeIsIn:
		e = x.Entity
	}
	prefix, ok := map[types.EntityType]string{typeUser: "u:", typeGroup: "g:", typeApp: "a:", typeTag: "t:", typeClass: "c:"}[e.Type]
	if !ok {
		return fallback
	}
	return prefix + string(e.ID)
}

// index files policies by resource, then by principal.
type index struct {
	byResource map[string]map[string][]*compiled
	count      int
}

func newIndex(policies []*compiled) *index {
	x := &index{byResource: map[string]map[string][]*compiled{}, count: len(policies)}
	for _, p := range policies {
		for _, r := range p.keys.resources {
			node := x.byResource[r]
			if node == nil {
				node = map[string][]*compiled{}
				x.byResource[r] = node
			}
			for _, w := range p.keys.principals {
				node[w] = append(node[w], p)
			}
		}
	}
	return x
}

// candidates returns the policies that may match, in no order, and moves end to the first
// expiry among them.
func (x *index) candidates(in *Input, end time.Time) ([]*compiled, time.Time) {
	c := collector{seen: make([]uint64, (x.count+63)/64), now: in.Time, end: end}
	who := principals(in)
	for _, r := range resources(in) {
		c.node(x.byResource[r], who)
	}
	return c.found, c.end
}

func principals(in *Input) []string {
	who := make([]string, 0, len(in.Identity.Groups)+3)
	who = append(who, anyone, "u:"+string(in.Identity.User))
	if in.Identity.GroupsIncomplete {
		who = append(who, incomplete)
	}
	for _, g := range in.Identity.Groups {
		who = append(who, "g:"+string(g))
	}
	return who
}

func resources(in *Input) []string {
	what := make([]string, 0, len(in.App.Tags)+3)
	what = append(what, anything, "a:"+string(in.App.ID), "c:"+string(in.App.Class))
	for _, t := range in.App.Tags {
		what = append(what, "t:"+t)
	}
	return what
}

// collector gathers policies once each.
type collector struct {
	seen  []uint64
	found []*compiled
	now   time.Time
	end   time.Time
}

// node walks whichever is shorter: the keys of the request or those of the node.
func (c *collector) node(node map[string][]*compiled, who []string) {
	if len(who) <= len(node) {
		for _, w := range who {
			c.take(node[w])
		}
		return
	}
	for k, policies := range node {
		if slices.Contains(who, k) {
			c.take(policies)
		}
	}
}

func (c *collector) take(policies []*compiled) {
	for _, p := range policies {
		bit := uint64(1) << (p.index & 63)
		if c.seen[p.index>>6]&bit != 0 || p.expired(c.now) {
			continue
		}
		c.seen[p.index>>6] |= bit
		c.found = append(c.found, p)
		if p.rule != nil && !p.rule.ExpiresAt.IsZero() {
			c.end = trust.First(c.end, p.rule.ExpiresAt)
		}
	}
}

func (p *compiled) expired(now time.Time) bool {
	return p.rule != nil && !p.rule.ExpiresAt.IsZero() && !now.Before(p.rule.ExpiresAt)
}
