package policy

import (
	"fmt"
	"net/netip"
	"slices"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/types"
)

// Entity types of the schema.
const (
	typeUser   = types.EntityType("User")
	typeGroup  = types.EntityType("Group")
	typeApp    = types.EntityType("App")
	typeTag    = types.EntityType("Tag")
	typeClass  = types.EntityType("Class")
	typeAction = types.EntityType("Action")
)

func uid[S ~string](t types.EntityType, id S) types.EntityUID {
	return types.NewEntityUID(t, types.String(id))
}

// form compiles the form of a rule. Values enter as nodes of the syntax tree, never as text.
func (c *compiler) form(r *Rule) (*compiled, error) {
	p := &compiled{deny: r.Effect == Deny, verbs: verbMask(r.Verbs), keys: formKeys(r), obliges: r.Obligations}
	tree := ast.Permit()
	if p.deny {
		tree = ast.Forbid()
	}
	tree = appScope(whoScope(tree.PrincipalIs(typeUser), r.Who, p.deny), r.Apps)
	tree = tree.ActionInSet(actions(r.Verbs)...)
	selects, err := c.selectors(r, p)
	if err != nil {
		return nil, err
	}
	for _, n := range selects {
		tree = tree.When(n)
	}
	p.reqs = append(p.reqs, requirements(r.Conditions)...)
	p.policy = cedar.NewPolicyFromAST(withRequirements(tree, requirements(r.Conditions), p.deny))
	return p, nil
}

// withRequirements: an allow holds when all of them hold, a deny unless all of them hold.
func withRequirements(tree *ast.Policy, reqs []requirement, deny bool) *ast.Policy {
	if len(reqs) == 0 {
		return tree
	}
	all := reqs[0].node
	for _, q := range reqs[1:] {
		all = all.And(q.node)
	}
	if deny {
		return tree.Unless(all)
	}
	return tree.When(all)
}

func verbMask(verbs []Verb) uint8 {
	if len(verbs) == 0 {
		verbs = Verbs()
	}
	var m uint8
	for _, v := range verbs {
		if i := slices.Index(Verbs(), v); i >= 0 {
			m |= 1 << i
		}
	}
	return m
}

func actions(verbs []Verb) []types.EntityUID {
	if len(verbs) == 0 {
		verbs = Verbs()
	}
	out := make([]types.EntityUID, len(verbs))
	for i, v := range verbs {
		out[i] = uid(typeAction, v)
	}
	return out
}

// whoScope adds the people. For a deny, a user whose groups are not all known is in the group.
func whoScope(tree *ast.Policy, w Who, deny bool) *ast.Policy {
	if w.SignedIn {
		return tree
	}
	var any []ast.Node
	if len(w.Users) > 0 {
		any = append(any, ast.Principal().In(set(typeUser, w.Users)))
	}
	if len(w.Groups) > 0 {
		any = append(any, ast.Principal().In(set(typeGroup, w.Groups)))
		if deny {
			any = append(any, ast.Principal().Access("groups_incomplete"))
		}
	}
	return tree.When(or(any))
}

func appScope(tree *ast.Policy, a Apps) *ast.Policy {
	if a.Any {
		return tree.ResourceIs(typeApp)
	}
	if len(a.IDs) == 1 && len(a.Tags)+len(a.Classes) == 0 {
		return tree.ResourceEq(uid(typeApp, a.IDs[0]))
	}
	var any []ast.Node
	if len(a.IDs) > 0 {
		any = append(any, ast.Resource().In(set(typeApp, a.IDs)))
	}
	if len(a.Tags) > 0 {
		any = append(any, ast.Resource().In(set(typeTag, a.Tags)))
	}
	if len(a.Classes) > 0 {
		any = append(any, ast.Resource().In(set(typeClass, a.Classes)))
	}
	return tree.ResourceIs(typeApp).When(or(any))
}

func set[S ~string](t types.EntityType, names []S) ast.Node {
	nodes := make([]ast.Node, len(names))
	for i, n := range names {
		nodes[i] = ast.Value(uid(t, n))
	}
	return ast.Set(nodes...)
}

func or(nodes []ast.Node) ast.Node {
	out := nodes[0]
	for _, n := range nodes[1:] {
		out = out.Or(n)
	}
	return out
}

// selectors are the conditions that choose which requests a rule speaks about. For an allow
// they are requirements as well: the receipt names them.
func (c *compiler) selectors(r *Rule, p *compiled) ([]ast.Node, error) {
	var out []ast.Node
	add := func(n ast.Node, q requirement) {
		out = append(out, n)
		if !p.deny {
			p.reqs = append(p.reqs, q)
		}
	}
	if s := r.Conditions.Schedule; s != "" {
		i := slices.Index(c.scheduleNames, s)
		p.schedules |= 1 << i
		add(ast.Context().Access("schedules").Access(types.String(s)), scheduleReq(s, i))
	}
	if nets, err := prefixes(r.Conditions.Networks); err != nil {
		return nil, err
	} else if len(nets) > 0 {
		add(sourceIn(nets, p.deny), networkReq(nets))
	}
	for _, t := range r.Conditions.Attributes {
		n, err := c.attribute(t, p.deny)
		if err != nil {
			return nil, err
		}
		add(n, c.attributeReq(t))
	}
	return out, nil
}

func prefixes(texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range texts {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("network %.64q is not a CIDR prefix", s)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// sourceIn tests the source address; an unknown one is in no allowed and in every denied network.
func sourceIn(nets []netip.Prefix, deny bool) ast.Node {
	var any []ast.Node
	for _, n := range nets {
		any = append(any, ast.Context().Access("source").IsInRange(ast.IPExtensionCall(ast.String(n.String()))))
	}
	return guarded(ast.Context().Has("source"), or(any), deny)
}

// guarded reads a value that may be missing: missing fails an allow and meets a deny.
func guarded(has, test ast.Node, deny bool) ast.Node {
	if deny {
		return ast.IfThenElse(has, test, ast.True())
	}
	return has.And(test)
}
