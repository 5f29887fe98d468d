package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	cedar "github.com/cedar-policy/cedar-go"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"
)

// Limits of a document. They bound the time of a compilation and of a decision.
const (
	maxRules     = 20_000
	maxSchedules = 64 // one bit each in a candidate's mask
	maxAges      = 64
	maxAttrs     = 64
	maxListed    = 256 // users, groups, apps, tags of one rule
	maxTests     = 32  // attribute tests and networks of one rule
	maxText      = 256 // bytes of a name or an owner
	maxDescribed = 4096
	maxCedar     = 16 << 10
	maxDocument  = 32 << 20
)

// Problem is one thing wrong with a document.
type Problem struct {
	Rule    string `json:"rule,omitempty"` // id, empty for the document
	Message string `json:"message"`
}

// CompileError lists what is wrong with a document, at most maxProblems of it.
type CompileError struct{ Problems []Problem }

const maxProblems = 100

// Error returns the problems, one per line.
func (e *CompileError) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.Message
		if p.Rule != "" {
			lines[i] = "rule " + p.Rule + ": " + p.Message
		}
	}
	return "policy does not compile: " + strings.Join(lines, "\n")
}

// compiled is one policy of a revision: a rule or a row of the baseline.
type compiled struct {
	id        string
	index     int
	policy    *cedar.Policy
	rule      *Rule // nil for the baseline
	deny      bool
	verbs     uint8 // bit per entry of Verbs()
	reqs      []requirement
	opaque    bool   // Cedar text: conditions are not known as requirements
	schedules uint64 // bit per entry of scheduleNames
	keys      scopeKeys
	obliges   Obligations
}

type attrKey struct {
	of   Subject
	name string
}

func (a attrKey) compare(b attrKey) int {
	return cmp.Or(cmp.Compare(a.of, b.of), cmp.Compare(a.name, b.name))
}

// compiler carries the state of one compilation.
type compiler struct {
	doc           Document
	attrs         map[attrKey]AttributeDecl
	scheduleNames []string
	schedules     []*schedule
	mfaAges       []Duration
	sessionAges   []Duration
	validator     *validate.Validator
	schema        string
	policies      []*compiled
	problems      []Problem
	warnings      []Problem
}

func (c *compiler) problem(rule string, err error) {
	if len(c.problems) < maxProblems {
		c.problems = append(c.problems, Problem{Rule: rule, Message: err.Error()})
	}
}

func (c *compiler) warn(rule, format string, args ...any) {
	if len(c.warnings) < maxProblems {
		c.warnings = append(c.warnings, Problem{Rule: rule, Message: fmt.Sprintf(format, args...)})
	}
}

// run compiles the document. The order matters: attributes, schedules and ages make the
// schema, the schema checks the policies.
func (c *compiler) run() error {
	steps := []func(){c.checkDocument, c.loadSchedules, c.declareAttributes, c.checkRules, c.collectAges, c.buildSchema,
		c.compileBaseline, c.compileRules}
	for _, step := range steps {
		step()
		if len(c.problems) > 0 {
			return &CompileError{Problems: c.problems}
		}
	}
	return nil
}

func (c *compiler) checkDocument() {
	if c.doc.Version != DocumentVersion {
		c.problem("", fmt.Errorf("document version %d is not supported, want %d", c.doc.Version, DocumentVersion))
	}
	if len(c.doc.Rules) > maxRules {
		c.problem("", fmt.Errorf("more than %d rules", maxRules))
	}
	if err := c.doc.Baseline.Validate(); err != nil {
		c.problem("", err)
	}
	if err := c.doc.Trust.Validate(); err != nil {
		c.problem("", err)
	}
}

func (c *compiler) loadSchedules() {
	if len(c.doc.Schedules) > maxSchedules {
		c.problem("", fmt.Errorf("more than %d schedules", maxSchedules))
		return
	}
	c.scheduleNames = slices.Sorted(maps.Keys(c.doc.Schedules))
	for _, name := range c.scheduleNames {
		s, err := c.doc.Schedules[name].compile()
		if err == nil && !isName(name) {
			err = fmt.Errorf("a name has letters, digits, . _ - only")
		}
		if err != nil {
			c.problem("", fmt.Errorf("schedule %.64q: %w", name, err))
		}
		c.schedules = append(c.schedules, s)
	}
}

// isName accepts what may stand unescaped in quotes in the schema.
func isName(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r)) {
			return false
		}
	}
	return true
}

func (c *compiler) collectAges() {
	c.mfaAges, c.sessionAges = standardAges(), standardAges()
	for _, row := range c.doc.Baseline {
		c.mfaAges, c.sessionAges = append(c.mfaAges, row.MFAMaxAge), append(c.sessionAges, row.SessionMaxAge)
	}
	for _, r := range c.doc.Rules {
		c.mfaAges = append(c.mfaAges, r.Conditions.MFAMaxAge)
		c.sessionAges = append(c.sessionAges, r.Conditions.SessionMaxAge)
	}
	c.mfaAges, c.sessionAges = ages(c.mfaAges), ages(c.sessionAges)
	if len(c.mfaAges) > maxAges || len(c.sessionAges) > maxAges {
		c.problem("", fmt.Errorf("more than %d different age limits", maxAges))
	}
}

// ages sorts, drops duplicates and zero.
func ages(l []Duration) []Duration {
	slices.Sort(l)
	l = slices.Compact(l)
	return slices.DeleteFunc(l, func(d Duration) bool { return d == 0 })
}

func (c *compiler) buildSchema() {
	c.schema = c.schemaText()
	v, err := newValidator(c.schema)
	if err != nil {
		c.problem("", err)
	}
	c.validator = v
}

// compileRules turns every enabled rule into a policy. A disabled rule is checked as well, so
// that enabling it cannot fail.
func (c *compiler) compileRules() {
	for i := range c.doc.Rules {
		r := &c.doc.Rules[i]
		p, err := c.compileRule(r)
		if err != nil {
			c.problem(string(r.ID), err)
			continue
		}
		if !r.Disabled {
			c.add(p)
		}
	}
}

func (c *compiler) compileRule(r *Rule) (*compiled, error) {
	var p *compiled
	var err error
	if r.Cedar != "" {
		p, err = c.raw(r)
	} else {
		p, err = c.form(r)
	}
	if err != nil {
		return nil, err
	}
	p.rule, p.id = r, string(r.ID)
	return p, c.validate(p)
}

func (c *compiler) validate(p *compiled) error {
	if err := c.validator.Policy(p.id, (*xast.Policy)(p.policy.AST())); err != nil {
		return fmt.Errorf("check against the schema: %w", err)
	}
	return nil
}

func (c *compiler) add(p *compiled) {
	p.index = len(c.policies)
	c.policies = append(c.policies, p)
}
