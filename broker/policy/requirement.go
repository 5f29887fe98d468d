package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/postern-zt/postern/broker/trust"
)

// requirement is one condition in two forms: the node that decides, and a check that only
// explains. They must agree; TestRequirementsExplain compares them.
type requirement struct {
	code   Code
	detail map[string]string
	node   ast.Node // zero for selectors, whose node stands elsewhere
	holds  func(*state) bool
	auth   bool // authenticating again may make it hold
}

func (q requirement) reason() Reason { return Reason{Code: q.code, Detail: q.detail} }

// requirements lists what must hold, the selectors aside.
func requirements(c Conditions) []requirement {
	var out []requirement
	for _, f := range c.Facts {
		out = append(out, factReq(f))
	}
	if c.MinLevel > 0 {
		out = append(out, levelReq(c.MinLevel))
	}
	if c.MinScore > 0 {
		out = append(out, scoreReq(c.MinScore))
	}
	if c.MFAMaxAge > 0 {
		out = append(out, mfaReq(c.MFAMaxAge))
	}
	if len(c.AuthMethods) > 0 {
		out = append(out, methodsReq(c.AuthMethods))
	}
	if c.SessionMaxAge > 0 {
		out = append(out, sessionReq(c.SessionMaxAge))
	}
	return out
}

func factReq(f trust.FactName) requirement {
	return requirement{
		code: CodeDeviceFact, detail: map[string]string{"fact": string(f)},
		node:  ast.Context().Access("facts").Access(types.String(f)).Access("state").Equal(ast.String("pass")),
		holds: func(s *state) bool { return s.passes(f) },
	}
}

func levelReq(l trust.Level) requirement {
	return requirement{
		code: CodeDeviceLevel, detail: map[string]string{"need": l.String()},
		node:  device("level").GreaterThanOrEqual(ast.Long(int64(l))),
		holds: func(s *state) bool { return s.trust.Level >= l },
		auth:  l == trust.LevelKnown,
	}
}

func scoreReq(n int) requirement {
	return requirement{
		code: CodeDeviceScore, detail: map[string]string{"need": strconv.Itoa(n)},
		node:  device("score").GreaterThanOrEqual(ast.Long(int64(n))),
		holds: func(s *state) bool { return s.trust.Score >= n },
	}
}

func device(field types.String) ast.Node { return ast.Context().Access("device").Access(field) }

func mfaReq(age Duration) requirement {
	return requirement{
		code: CodeMFARequired, detail: map[string]string{"need": readable(age)},
		node:  ast.Context().Access("mfa_within").Access(types.String(age.String())),
		holds: func(s *state) bool { return s.mfaWithin(age) }, auth: true,
	}
}

func sessionReq(age Duration) requirement {
	return requirement{
		code: CodeSessionAge, detail: map[string]string{"need": readable(age)},
		node:  ast.Context().Access("session_within").Access(types.String(age.String())),
		holds: func(s *state) bool { return s.sessionWithin(age) }, auth: true,
	}
}

// readable drops the zero parts: "12h", not "12h0m0s".
func readable(d Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func methodsReq(methods []string) requirement {
	nodes := make([]ast.Node, len(methods))
	for i, m := range methods {
		nodes[i] = ast.String(m)
	}
	return requirement{
		code: CodeAuthMethod, detail: map[string]string{"need": strings.Join(methods, ", ")},
		node: ast.Context().Access("auth").Access("amr").ContainsAll(ast.Set(nodes...)),
		holds: func(s *state) bool {
			return !slices.ContainsFunc(methods, func(m string) bool { return !slices.Contains(s.in.Identity.AMR, m) })
		},
		auth: true,
	}
}

func scheduleReq(name string, bit int) requirement {
	return requirement{
		code: CodeSchedule, detail: map[string]string{"schedule": name},
		holds: func(s *state) bool { return s.open&(1<<bit) != 0 },
	}
}

func networkReq(nets []netip.Prefix) requirement {
	return requirement{
		code: CodeNetwork,
		holds: func(s *state) bool {
			return slices.ContainsFunc(nets, func(n netip.Prefix) bool { return n.Contains(s.in.Context.Source.Unmap()) })
		},
	}
}

func (c *compiler) attributeReq(t AttributeTest) requirement {
	decl := c.attrs[attrKey{t.Of, t.Attribute}]
	return requirement{
		code: CodeAttribute, detail: map[string]string{"attribute": fmt.Sprintf("%s.%s", t.Of, t.Attribute)},
		holds: func(s *state) bool {
			have := s.in.Identity.Attributes
			if t.Of == OfApp {
				have = s.in.App.Attributes
			}
			return t.holds(decl, have[t.Attribute])
		},
	}
}

// holds explains an attribute test outside Cedar. A value of another type than declared is missing.
func (t AttributeTest) holds(decl AttributeDecl, have Value) bool {
	_, err := cedarValue(decl, have)
	missing := err != nil
	switch {
	case t.Operator == Exists:
		return !missing
	case t.Operator == NotExists:
		return missing
	case missing:
		return false
	}
	switch t.Operator {
	case Equals:
		return have.Equal(t.Value)
	case NotEquals:
		return !have.Equal(t.Value)
	case In:
		return slices.Contains(t.Value.v.([]string), have.String())
	case Contains:
		return slices.Contains(have.v.([]string), t.Value.String())
	case Matches:
		return pattern(t.Value.String()).Match(types.String(have.String()))
	}
	return orderHolds(t.Operator, rank(decl, have), rank(decl, t.Value))
}

func rank(decl AttributeDecl, v Value) int64 {
	c, _ := cedarValue(decl, v) // both sides were converted before: compile and the caller
	n, _ := c.(types.Long)
	return int64(n)
}

func orderHolds(op Operator, a, b int64) bool {
	switch op {
	case LessThan:
		return a < b
	case GreaterThan:
		return a > b
	case AtMost:
		return a <= b
	case AtLeast:
		return a >= b
	default:
		return false
	}
}

// clockSkew is how far in the future a sign-in may lie before it counts as unknown.
const clockSkew = 5 * time.Minute

// riskStepUpMFA is how fresh a second factor must be to pass the risk limit of a class.
const riskStepUpMFA = Duration(5 * time.Minute)
