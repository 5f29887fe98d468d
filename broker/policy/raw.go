package policy

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/types"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"
)

// raw compiles a rule written as Cedar text: exactly one policy, its obligations as
// annotations.
func (c *compiler) raw(r *Rule) (*compiled, error) {
	if len(r.Cedar) > maxCedar {
		return nil, fmt.Errorf("cedar text is longer than %d bytes", maxCedar)
	}
	if err := checkNesting(r.Cedar); err != nil {
		return nil, err
	}
	list, err := cedar.NewPolicyListFromBytes("rule", []byte(r.Cedar))
	if err != nil {
		return nil, fmt.Errorf("parse cedar: %w", err)
	}
	if len(list) != 1 {
		return nil, fmt.Errorf("want exactly one cedar policy, have %d", len(list))
	}
	tree := (*xast.Policy)(list[0].AST())
	p := &compiled{deny: list[0].Effect() == cedar.Forbid, opaque: true, keys: treeKeys(tree)}
	if p.obliges, err = annotations(list[0].Annotations()); err != nil {
		return nil, err
	}
	if err := lintTree(tree, p.deny); err != nil {
		return nil, err
	}
	p.verbs = scopeVerbs(tree.Action)
	p.schedules = c.namedSchedules(tree)
	p.policy = list[0]
	if p.deny && len(p.keys.principals) == 1 && p.keys.principals[0][0] == 'g' {
		p.policy = cedar.NewPolicyFromAST((*ast.Policy)(widenGroup(tree)))
		p.keys.principals = append(p.keys.principals, incomplete)
	}
	return p, nil
}

// maxNesting bounds the depth of brackets in Cedar text, because its parser recurses.
const maxNesting = 64

// checkNesting counts brackets without regard to strings: a bracket in a string only makes
// the bound stricter.
func checkNesting(text string) error {
	depth := 0
	for _, b := range []byte(text) {
		switch b {
		case '(', '[', '{', '!', '-':
			depth++
		case ')', ']', '}', ';':
			depth--
		}
		if depth > 4*maxNesting {
			return fmt.Errorf("cedar text nests deeper than %d", maxNesting)
		}
	}
	return nil
}

// widenGroup makes a forbid for a group concern users whose groups are not all known as well.
func widenGroup(p *xast.Policy) *xast.Policy {
	out := *p
	var group types.EntityUID
	switch s := p.Principal.(type) {
	case xast.ScopeTypeIn:
		group = s.Entity
	case xast.ScopeTypeIsIn:
		group = s.Entity
	case xast.ScopeTypeEq:
		group = s.Entity
	}
	body := ast.Principal().In(ast.Value(group)).Or(ast.Principal().Access("groups_incomplete"))
	out.Principal = xast.ScopeTypeIs{Type: typeUser}
	out.Conditions = append([]xast.ConditionType{{Condition: xast.ConditionWhen, Body: body.AsIsNode()}}, p.Conditions...)
	return &out
}

// scopeVerbs reads the action scope; one it does not understand covers every verb.
func scopeVerbs(scope xast.IsActionScopeNode) uint8 {
	var list []types.EntityUID
	switch s := scope.(type) {
	case xast.ScopeTypeEq:
		list = []types.EntityUID{s.Entity}
	case xast.ScopeTypeIn:
		list = []types.EntityUID{s.Entity}
	case xast.ScopeTypeInSet:
		list = s.Entities
	default:
		return verbMask(nil)
	}
	verbs := make([]Verb, len(list))
	for i, e := range list {
		verbs[i] = Verb(e.ID)
	}
	if len(verbs) == 0 {
		return 0
	}
	return verbMask(verbs)
}

// annotations reads the obligations. An annotation it does not know fails: a misspelt limit
// must not vanish.
func annotations(a cedar.Annotations) (Obligations, error) {
	var o Obligations
	for key, v := range a {
		var err error
		switch key {
		case "id", "name", "description", "owner":
		case "max_flows":
			o.MaxFlows, err = positive(v)
		case "open_rate":
			o.OpenRate, err = positive(v)
		case "rate_kbps":
			o.RateKbps, err = positive(v)
		case "hard_end":
			o.HardEnd, err = span(v)
		case "idle":
			o.Idle, err = span(v)
		case "re_verify":
			o.ReVerify, err = span(v)
		case "lease":
			o.Lease, err = span(v)
		default:
			err = fmt.Errorf("not known")
		}
		if err != nil {
			return o, fmt.Errorf("annotation @%.32s: %w", key, err)
		}
	}
	return o, nil
}

func positive(v types.String) (int, error) {
	n, err := strconv.Atoi(string(v))
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("want a positive whole number")
	}
	return n, nil
}

func span(v types.String) (Duration, error) {
	d, err := time.ParseDuration(string(v))
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("want a positive duration like 30m")
	}
	return Duration(d), nil
}

// namedSchedules collects the schedules that the conditions name.
func (c *compiler) namedSchedules(p *xast.Policy) uint64 {
	var mask uint64
	for _, cond := range p.Conditions {
		xast.Inspect(xast.NewNode(cond.Body), func(n xast.IsNode) bool {
			if a, ok := n.(xast.NodeTypeAccess); ok && isContextField(a.Arg, "schedules") {
				if i := slices.Index(c.scheduleNames, string(a.Value)); i >= 0 {
					mask |= 1 << i
				}
			}
			return true
		})
	}
	return mask
}
