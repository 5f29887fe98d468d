package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cedar-policy/cedar-go/x/exp/schema"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"
	"github.com/postern-zt/postern/broker/trust"
)

// schemaHead and schemaTail frame the parts that depend on the document: attributes,
// schedules and age limits. `facts` is total: every known fact is always there.
const (
	schemaHead = `entity Group;
entity Tag;
entity Class;
type Fact = { state: String, age_s: Long, source: String };
`
	schemaTail = `action "connect", "http:read", "http:write" appliesTo {
	principal: [User], resource: [App], context: Context
};
`
)

// standardAges are the age limits that Cedar text may name without a form naming them.
func standardAges() []Duration {
	const m, h = Duration(time.Minute), Duration(time.Hour)
	return []Duration{5 * m, 15 * m, h, 4 * h, 8 * h, 12 * h, 24 * h, 7 * 24 * h}
}

// schemaText writes the Cedar schema of a document.
func (c *compiler) schemaText() string {
	var b strings.Builder
	b.WriteString(schemaHead)
	fmt.Fprintf(&b, "entity User in [Group] = { groups: Set<Group>, groups_incomplete: Bool, attrs: { %s } };\n", c.attrFields(OfUser))
	fmt.Fprintf(&b, "entity App in [Tag, Class] = { class: Class, tags: Set<Tag>, name: String, protocol: String, "+
		"min_level: Long, min_score: Long, attrs: { %s } };\n", c.attrFields(OfApp))
	b.WriteString("type Context = {\n")
	b.WriteString("\tdevice: { id: String, registered: Bool, level: Long, score: Long },\n")
	b.WriteString("\tauth: { acr: String, amr: Set<String> },\n")
	b.WriteString("\tidentity_fresh: Bool,\n\tsource?: ipaddr,\n\tnetwork: String,\n\trisk: Long,\n")
	fmt.Fprintf(&b, "\tfacts: { %s },\n", fields(factNames(), "Fact"))
	fmt.Fprintf(&b, "\tmfa_within: { %s },\n", fields(ageNames(c.mfaAges), "Bool"))
	fmt.Fprintf(&b, "\tsession_within: { %s },\n", fields(ageNames(c.sessionAges), "Bool"))
	fmt.Fprintf(&b, "\tschedules: { %s }\n};\n", fields(c.scheduleNames, "Bool"))
	b.WriteString(schemaTail)
	return b.String()
}

func fields(names []string, typ string) string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = fmt.Sprintf("%q: %s", n, typ) // names are of a checked alphabet: nothing to escape
	}
	return strings.Join(out, ", ")
}

func factNames() []string {
	var out []string
	for _, n := range trust.FactNames() {
		out = append(out, string(n))
	}
	return out
}

func ageNames(ages []Duration) []string {
	out := make([]string, len(ages))
	for i, a := range ages {
		out[i] = a.String()
	}
	return out
}

func (c *compiler) attrFields(of Subject) string {
	types := map[AttributeType]string{TypeString: "String", TypeNumber: "Long", TypeBool: "Bool",
		TypeList: "Set<String>", TypeOrdered: "Long"}
	var out []string
	for _, k := range slices.SortedFunc(maps.Keys(c.attrs), attrKey.compare) {
		if k.of == of {
			out = append(out, fmt.Sprintf("%q?: %s", k.name, types[c.attrs[k].Type]))
		}
	}
	return strings.Join(out, ", ")
}

// newValidator parses a schema text. It wraps the only use of the unstable schema packages.
func newValidator(text string) (*validate.Validator, error) {
	var s schema.Schema
	if err := s.UnmarshalCedar([]byte(text)); err != nil {
		return nil, fmt.Errorf("parse schema: %w", err)
	}
	resolved, err := s.Resolve()
	if err != nil {
		return nil, fmt.Errorf("resolve schema: %w", err)
	}
	return validate.New(resolved, validate.WithStrict()), nil
}
