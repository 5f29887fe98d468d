package policy

import (
	"maps"
	"slices"
	"strings"
)

// whyNot explains a refused verb: what the matching forbids miss, or how far the nearest
// permit is.
func (s *state) whyNot(o outcome) []Reason {
	var out []Reason
	for _, c := range o.matched {
		out = append(out, s.whyForbidden(c)...)
	}
	if near := s.nearest(o.verb); near != nil {
		if near.opaque {
			return append(out, Reason{Code: CodeRuleCondition, Detail: ruleDetail(near)})
		}
		out = append(out, s.missing(near)...)
		if len(out) == 0 { // the explanation knows less than Cedar
			return []Reason{{Code: CodeRuleCondition, Detail: ruleDetail(near)}}
		}
		return out
	}
	if s.in.Identity.GroupsIncomplete {
		return append(out, Reason{Code: CodeGroupsIncomplete})
	}
	return append(out, Reason{Code: CodeNoRule})
}

// whyForbidden explains one forbid that matched.
func (s *state) whyForbidden(c *compiled) []Reason {
	if miss := s.missing(c); len(miss) > 0 {
		return miss
	}
	code := CodeForbiddenByRule
	if c.deny && s.in.Identity.GroupsIncomplete && !s.inScope(c) {
		code = CodeGroupsIncomplete
	}
	return []Reason{{Code: code, Detail: ruleDetail(c)}}
}

func ruleDetail(c *compiled) map[string]string {
	d := map[string]string{"rule": c.id}
	if c.rule != nil {
		d["name"] = c.rule.Name
	}
	return d
}

// inScope reports whether the user is named by the policy without the help of incomplete groups.
func (s *state) inScope(c *compiled) bool {
	for _, p := range principals(s.in) {
		if p != incomplete && slices.Contains(c.keys.principals, p) {
			return true
		}
	}
	return false
}

// missing lists the requirements of a policy that do not hold.
func (s *state) missing(c *compiled) []Reason {
	var out []Reason
	for _, q := range c.reqs {
		if !q.holds(s) {
			out = append(out, s.withHave(q))
		}
	}
	return out
}

func (s *state) countMissing(c *compiled) int {
	n := 0
	for i := range c.reqs {
		if !c.reqs[i].holds(s) {
			n++
		}
	}
	return n
}

// withHave adds what the device has to a reason about what it needs.
func (s *state) withHave(q requirement) Reason {
	r := q.reason()
	switch q.code {
	case CodeDeviceLevel:
		r.Detail = maps.Clone(r.Detail)
		r.Detail["have"] = s.trust.Level.String()
		if r.Detail["need"] == "app" {
			r.Detail["need"] = s.in.App.MinLevel.String()
		}
	case CodeDeviceScore:
		r.Detail = maps.Clone(r.Detail)
		r.Detail["have"] = itoa(s.trust.Score)
		if r.Detail["need"] == "app" {
			r.Detail["need"] = itoa(s.in.App.MinScore)
		}
	}
	return r
}

// nearest returns the permit for this verb that misses least, nil when none speaks for this
// user and app. Ties go to the smaller id, so that the order of rules does not show.
func (s *state) nearest(v Verb) *compiled {
	var best *compiled
	least := 0
	for _, c := range s.cands {
		if c.deny || c.verbs&verbMask([]Verb{v}) == 0 {
			continue
		}
		n := 1 // Cedar text: some condition of its own
		if !c.opaque {
			n = s.countMissing(c)
		}
		if best == nil || n < least || (n == least && c.id < best.id) {
			best, least = c, n
		}
	}
	return best
}

func detailText(d map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(d)) {
		b.WriteString(k + "=" + d[k] + ";")
	}
	return b.String()
}
