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
	tree := ast.Permit() // the schema knows no principal but users and no resource but apps
	if p.deny {
		tree = ast.Forbid()
	}
	var scopes [3]ast.Node // what the scope cannot say; last, as the index has mostly seen to it
	tree, scopes[0] = whoScope(tree, r.Who, p.deny)
	tree, scopes[1] = appScope(tree, r.Apps)
	tree, scopes[2] = verbScope(tree, r.Verbs)
	selects, err := c.selectors(r, p)
	if err != nil {
		return nil, err
	}
	for _, n := range append(selects, scopes[:]...) {
		if n.AsIsNode() != nil {
			tree = tree.When(n)
		}
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

// whoScope adds the people. For a deny, a user whose groups are not all known is in the group.
// Several names are tested by set membership, because "in" a set allocates at each evaluation.
func whoScope(tree *ast.Policy, w Who, deny bool) (*ast.Policy, ast.Node) {
	switch {
	case w.SignedIn:
		return tree, ast.Node{}
	case len(w.Users) == 1 && len(w.Groups) == 0:
		return tree.PrincipalEq(uid(typeUser, w.Users[0])), ast.Node{}
	case len(w.Users) == 0 && len(w.Groups) == 1 && !deny:
		return tree.PrincipalIn(uid(typeGroup, w.Groups[0])), ast.Node{}
	}
	var any []ast.Node
	if len(w.Users) > 0 {
		any = append(any, set(typeUser, w.Users).Contains(ast.Principal()))
	}
	if len(w.Groups) > 0 {
		any = append(any, ast.Principal().Access("groups").ContainsAny(set(typeGroup, w.Groups)))
		if deny {
			any = append(any, ast.Principal().Access("groups_incomplete"))
		}
	}
	return tree, or(any)
}

func appScope(tree *ast.Policy, a Apps) (*ast.Policy, ast.Node) {
	switch {
	case a.Any:
		return tree, ast.Node{}
	case len(a.IDs) == 1 && len(a.Tags)+len(a.Classes) == 0:
		return tree.ResourceEq(uid(typeApp, a.IDs[0])), ast.Node{}
	case len(a.Tags) == 1 && len(a.IDs)+len(a.Classes) == 0:
		return tree.ResourceIn(uid(typeTag, a.Tags[0])), ast.Node{}
	case len(a.Classes) == 1 && len(a.IDs)+len(a.Tags) == 0:
		return tree.ResourceIn(uid(typeClass, a.Classes[0])), ast.Node{}
	}
	var any []ast.Node
	if len(a.IDs) > 0 {
		any = append(any, set(typeApp, a.IDs).Contains(ast.Resource()))
	}
	if len(a.Tags) > 0 {
		any = append(any, ast.Resource().Access("tags").ContainsAny(set(typeTag, a.Tags)))
	}
	if len(a.Classes) > 0 {
		any = append(any, set(typeClass, a.Classes).Contains(ast.Resource().Access("class")))
	}
	return tree, or(any)
}

// verbScope leaves the action open when the rule speaks about every verb.
func verbScope(tree *ast.Policy, verbs []Verb) (*ast.Policy, ast.Node) {
	switch len(verbs) {
	case 0, len(Verbs()):
		return tree, ast.Node{}
	case 1:
		return tree.ActionEq(uid(typeAction, verbs[0])), ast.Node{}
	}
	return tree, set(typeAction, verbs).Contains(ast.Action())
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
	for _, t := range r.Conditions.Attributes {
		n, err := c.attribute(t, p.deny)
		if err != nil {
			return nil, err
		}
		add(n, c.attributeReq(t))
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
