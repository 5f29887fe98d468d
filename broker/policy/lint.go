package policy

import (
	"errors"
	"fmt"

	"github.com/cedar-policy/cedar-go/types"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"
)

// Errors of the lint of Cedar text.
var (
	errFactUse = errors.New(`a policy may test a fact only as context.facts.NAME.state == "pass"`)
	errFactNot = errors.New(`a fact that does not pass may not open a door: a permit tests == "pass", a forbid says unless { ... == "pass" }`)
	errPlain   = errors.New("context, context.schedules, context.mfa_within, context.session_within and context.facts may only be read field by field")
	errGroupIn = errors.New("a forbid names groups in its scope (principal in Group::...), not in its conditions")
)

// lintTree checks what the schema cannot: facts are tested for pass alone and only in the
// direction in which unknown is the safe side.
func lintTree(p *xast.Policy, deny bool) error {
	for _, cond := range p.Conditions {
		helps := bool(cond.Condition) == xast.ConditionWhen
		if deny {
			helps = !helps // in a forbid, what stands under unless helps the user
		}
		if err := lintNode(cond.Body, helps); err != nil {
			return err
		}
		if err := lintUses(cond.Body, deny); err != nil {
			return err
		}
	}
	return nil
}

// lintNode walks the boolean structure. helps says whether this node being true speaks for
// access.
func lintNode(n xast.IsNode, helps bool) error {
	switch x := n.(type) {
	case xast.NodeTypeAnd:
		return errors.Join(lintNode(x.Left, helps), lintNode(x.Right, helps))
	case xast.NodeTypeOr:
		return errors.Join(lintNode(x.Left, helps), lintNode(x.Right, helps))
	case xast.NodeTypeNot:
		return lintNode(x.Arg, !helps)
	case xast.NodeTypeIfThenElse:
		return errors.Join(noFacts(x.If), lintNode(x.Then, helps), lintNode(x.Else, helps))
	case xast.NodeTypeEquals:
		return lintEquals(x.BinaryNode, helps)
	case xast.NodeTypeNotEquals:
		return lintEquals(x.BinaryNode, !helps)
	default:
		return noFacts(n)
	}
}

func lintEquals(n xast.BinaryNode, helps bool) error {
	if !isFactState(n.Left) {
		return errors.Join(noFacts(n.Left), noFacts(n.Right))
	}
	v, ok := n.Right.(xast.NodeValue)
	if !ok || v.Value != types.String("pass") {
		return errFactUse
	}
	if !helps {
		return errFactNot
	}
	return nil
}

// isFactState matches context.facts.NAME.state.
func isFactState(n xast.IsNode) bool {
	state, ok := n.(xast.NodeTypeAccess)
	if !ok || state.Value != "state" {
		return false
	}
	fact, ok := state.Arg.(xast.NodeTypeAccess)
	return ok && isContextField(fact.Arg, "facts")
}

func isContextField(n xast.IsNode, field types.String) bool {
	a, ok := n.(xast.NodeTypeAccess)
	return ok && a.Value == field && isContext(a.Arg)
}

func isContext(n xast.IsNode) bool {
	v, ok := n.(xast.NodeTypeVariable)
	return ok && v.Name == "context"
}

// noFacts refuses any use of facts below n.
func noFacts(n xast.IsNode) error {
	var err error
	xast.Inspect(xast.NewNode(n), func(n xast.IsNode) bool {
		if isContextField(n, "facts") {
			err = errFactUse
		}
		return err == nil
	})
	return err
}

// lintUses refuses whole records (they would hide a fact, or a schedule from the re-evaluation
// time) and groups in the conditions of a forbid (they would hide it from incomplete groups).
func lintUses(n xast.IsNode, deny bool) error {
	var err error
	xast.Inspect(xast.NewNode(n), func(n xast.IsNode) bool {
		if err != nil {
			return false
		}
		switch x := n.(type) {
		case xast.NodeTypeIn:
			if deny && mentionsGroup(x.Right) {
				err = errGroupIn
			}
		case xast.NodeTypeIsIn:
			if deny && mentionsGroup(x.Entity) {
				err = errGroupIn
			}
		case xast.NodeTypeAccess:
			if deny && x.Value == "groups" {
				err = errGroupIn
			}
		case xast.NodeTypeHas:
			path, ok := contextPath(x.Arg)
			if ok && len(path) > 0 {
				err = plain(append(path, x.Value)[:1])
			}
			return !ok
		}
		if path, ok := contextPath(n); ok && err == nil {
			err = plain(path)
			return false
		}
		return err == nil
	})
	return err
}

// contextPath returns the fields of an access chain that starts at context.
func contextPath(n xast.IsNode) ([]types.String, bool) {
	if isContext(n) {
		return nil, true
	}
	a, ok := n.(xast.NodeTypeAccess)
	if !ok {
		return nil, false
	}
	path, ok := contextPath(a.Arg)
	return append(path, a.Value), ok
}

// plain refuses context itself and its total records as values.
func plain(path []types.String) error {
	if len(path) == 0 {
		return errPlain
	}
	switch path[0] {
	case "facts", "schedules", "mfa_within", "session_within":
		if len(path) == 1 {
			return errPlain
		}
	}
	return nil
}

func mentionsGroup(n xast.IsNode) bool {
	found := false
	xast.Inspect(xast.NewNode(n), func(n xast.IsNode) bool {
		if v, ok := n.(xast.NodeValue); ok {
			if e, ok := v.Value.(types.EntityUID); ok && e.Type == typeGroup {
				found = true
			}
		}
		return !found
	})
	return found
}

// lintDocument warns of rules that compile but cannot mean what they say.
func (c *compiler) lintDocument() {
	for i := range c.doc.Rules {
		r := &c.doc.Rules[i]
		if r.Disabled || r.Cedar != "" {
			continue
		}
		for _, w := range r.suspicions() {
			c.warn(string(r.ID), "%s", w)
		}
	}
}

// suspicions lists what is odd about a form.
func (r *Rule) suspicions() []string {
	var out []string
	if r.Effect == Deny && r.Who.SignedIn && r.Apps.Any && len(r.Verbs) == 0 && r.Conditions.isEmpty() {
		out = append(out, "denies everybody everything")
	}
	seen := map[attrKey]Value{}
	for _, t := range r.Conditions.Attributes {
		if t.Operator != Equals {
			continue
		}
		k := attrKey{t.Of, t.Attribute}
		if v, ok := seen[k]; ok && !v.Equal(t.Value) {
			out = append(out, fmt.Sprintf("can never match: %s.%s equals two different values", t.Of, t.Attribute))
		}
		seen[k] = t.Value
	}
	if !r.ExpiresAt.IsZero() && r.ExpiresAt.Year() < 2000 {
		out = append(out, "can never match: it expired long ago")
	}
	return out
}
