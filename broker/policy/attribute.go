package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/types"
)

// declareAttributes takes the document's declarations, then infers the rest from the forms.
func (c *compiler) declareAttributes() {
	c.attrs = map[attrKey]AttributeDecl{}
	for _, d := range c.doc.Attributes {
		if err := d.validate(); err != nil {
			c.problem("", err)
			continue
		}
		k := attrKey{d.Of, d.Name}
		if _, twice := c.attrs[k]; twice {
			c.problem("", fmt.Errorf("attribute %s.%s is declared twice", d.Of, d.Name))
		}
		c.attrs[k] = d
	}
	declared := len(c.attrs)
	for i := range c.doc.Rules {
		for _, t := range c.doc.Rules[i].Conditions.Attributes {
			c.inferAttribute(string(c.doc.Rules[i].ID), t)
		}
	}
	if len(c.attrs) > maxAttrs {
		c.problem("", fmt.Errorf("more than %d attributes (%d declared)", maxAttrs, declared))
	}
}

func (d AttributeDecl) validate() error {
	if (d.Of != OfUser && d.Of != OfApp) || !isName(d.Name) {
		return fmt.Errorf("attribute %.64q of %.16q: malformed name or subject", d.Name, d.Of)
	}
	switch d.Type {
	case TypeString, TypeNumber, TypeBool, TypeList:
		return nil
	case TypeOrdered:
		if len(d.Order) < 2 || len(d.Order) > 64 {
			return fmt.Errorf("attribute %s.%s: an order has 2 to 64 entries", d.Of, d.Name)
		}
		return nil
	default:
		return fmt.Errorf("attribute %s.%s: unknown type %.16q", d.Of, d.Name, d.Type)
	}
}

// inferAttribute gives an undeclared attribute the type that its first test implies; later
// tests must agree, which the strict check of the policies holds up.
func (c *compiler) inferAttribute(rule string, t AttributeTest) {
	k := attrKey{t.Of, t.Attribute}
	if (t.Of != OfUser && t.Of != OfApp) || !isName(t.Attribute) {
		c.problem(rule, fmt.Errorf("attribute %.64q of %.16q: malformed name or subject", t.Attribute, t.Of))
		return
	}
	have, known := c.attrs[k]
	typ, ok := t.implies()
	if known || !ok {
		if !known {
			c.attrs[k] = AttributeDecl{Of: t.Of, Name: t.Attribute, Type: TypeString}
		}
		return
	}
	have = AttributeDecl{Of: t.Of, Name: t.Attribute, Type: typ}
	c.attrs[k] = have
}

func (t AttributeTest) implies() (AttributeType, bool) {
	if t.Operator == Contains {
		return TypeList, true
	}
	switch t.Value.v.(type) {
	case int64:
		return TypeNumber, true
	case bool:
		return TypeBool, true
	case string, []string:
		return TypeString, true
	default:
		return "", false
	}
}

// attribute compiles one test.
func (c *compiler) attribute(t AttributeTest, deny bool) (ast.Node, error) {
	decl := c.attrs[attrKey{t.Of, t.Attribute}]
	attrs := ast.Principal().Access("attrs")
	if t.Of == OfApp {
		attrs = ast.Resource().Access("attrs")
	}
	has := attrs.Has(types.String(t.Attribute))
	switch t.Operator {
	case Exists:
		return has, nil
	case NotExists:
		return ast.Not(has), nil
	}
	test, err := compare(attrs.Access(types.String(t.Attribute)), decl, t)
	if err != nil {
		return ast.Node{}, fmt.Errorf("attribute %s.%s %s: %w", t.Of, t.Attribute, t.Operator, err)
	}
	return guarded(has, test, deny), nil
}

func compare(left ast.Node, decl AttributeDecl, t AttributeTest) (ast.Node, error) {
	switch t.Operator {
	case In:
		return oneOf(left, decl, t.Value)
	case Contains:
		s, ok := t.Value.v.(string)
		if !ok || decl.Type != TypeList {
			return ast.Node{}, fmt.Errorf("needs a list attribute and a text value")
		}
		return left.Contains(ast.String(s)), nil
	case Matches:
		s, ok := t.Value.v.(string)
		if !ok || decl.Type != TypeString {
			return ast.Node{}, fmt.Errorf("needs a text attribute and a text value")
		}
		return left.Like(pattern(s)), nil
	}
	right, err := literal(decl, t.Value)
	if err != nil {
		return ast.Node{}, err
	}
	return ordered(left, right, decl, t.Operator)
}

func ordered(left, right ast.Node, decl AttributeDecl, op Operator) (ast.Node, error) {
	switch op {
	case Equals:
		return left.Equal(right), nil
	case NotEquals:
		return left.NotEqual(right), nil
	}
	if decl.Type != TypeNumber && decl.Type != TypeOrdered {
		return ast.Node{}, fmt.Errorf("needs a number or an attribute with a declared order")
	}
	switch op {
	case LessThan:
		return left.LessThan(right), nil
	case GreaterThan:
		return left.GreaterThan(right), nil
	case AtMost:
		return left.LessThanOrEqual(right), nil
	case AtLeast:
		return left.GreaterThanOrEqual(right), nil
	default:
		return ast.Node{}, fmt.Errorf("unknown operator")
	}
}

func oneOf(left ast.Node, decl AttributeDecl, v Value) (ast.Node, error) {
	list, ok := v.v.([]string)
	if !ok || len(list) == 0 || len(list) > maxListed || decl.Type == TypeList {
		return ast.Node{}, fmt.Errorf("needs a list of 1 to %d texts", maxListed)
	}
	nodes := make([]ast.Node, len(list))
	for i, s := range list {
		n, err := literal(decl, Text(s))
		if err != nil {
			return ast.Node{}, err
		}
		nodes[i] = n
	}
	return ast.Set(nodes...).Contains(left), nil
}

// literal writes a value of the rule as the attribute's type.
func literal(decl AttributeDecl, v Value) (ast.Node, error) {
	c, err := cedarValue(decl, v)
	if err != nil {
		return ast.Node{}, err
	}
	return ast.Value(c), nil
}

// cedarValue converts a value to the declared type, or fails. Ordered values become ranks.
func cedarValue(decl AttributeDecl, v Value) (types.Value, error) {
	switch x := v.v.(type) {
	case string:
		if decl.Type == TypeString {
			return types.String(x), nil
		}
		if i := slices.Index(decl.Order, x); decl.Type == TypeOrdered && i >= 0 {
			return types.Long(i), nil
		}
	case int64:
		if decl.Type == TypeNumber {
			return types.Long(x), nil
		}
	case bool:
		if decl.Type == TypeBool {
			return types.Boolean(x), nil
		}
	case []string:
		if decl.Type == TypeList {
			return stringSet(x), nil
		}
	}
	return nil, fmt.Errorf("value %.64q is not of type %s", v.String(), decl.Type)
}

func stringSet[S ~string](l []S) types.Set {
	out := make([]types.Value, len(l))
	for i, s := range l {
		out[i] = types.String(s)
	}
	return types.NewSet(out...)
}

func pattern(s string) types.Pattern {
	var parts []any
	for i, piece := range strings.Split(s, "*") {
		if i > 0 {
			parts = append(parts, types.Wildcard{})
		}
		if piece != "" {
			parts = append(parts, piece)
		}
	}
	return types.NewPattern(parts...)
}
