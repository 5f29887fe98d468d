package policy

import (
	"strconv"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/types"
)

// compileBaseline turns the table into forbids. Forbid wins, so no rule can weaken a row.
func (c *compiler) compileBaseline() {
	c.addBase("baseline/app_level", ast.Forbid(), anything, requirement{
		code: CodeDeviceLevel, detail: map[string]string{"need": "app"},
		node:  device("level").GreaterThanOrEqual(ast.Resource().Access("min_level")),
		holds: func(s *state) bool { return s.trust.Level >= s.in.App.MinLevel },
	})
	c.addBase("baseline/app_score", ast.Forbid(), anything, requirement{
		code: CodeDeviceScore, detail: map[string]string{"need": "app"},
		node:  device("score").GreaterThanOrEqual(ast.Resource().Access("min_score")),
		holds: func(s *state) bool { return s.trust.Score >= s.in.App.MinScore },
	})
	c.addBase("baseline/identity_fresh", ast.Forbid(), anything, requirement{
		code: CodeIdentityStale, node: ast.Context().Access("identity_fresh"),
		holds: func(s *state) bool { return s.fresh }, auth: true,
	})
	for _, class := range Classes() {
		row := c.doc.Baseline[class]
		for _, q := range row.requirements() {
			scope := ast.Forbid().ResourceIn(uid(typeClass, class))
			c.addBase("baseline/"+string(class)+"/"+string(q.code), scope, "c:"+string(class), q)
		}
	}
}

func (c *compiler) addBase(id string, scope *ast.Policy, resource string, q requirement) {
	p := &compiled{id: id, deny: true, verbs: verbMask(nil), reqs: []requirement{q},
		policy: cedar.NewPolicyFromAST(scope.Unless(q.node)),
		keys:   scopeKeys{principals: []string{anyone}, resources: []string{resource}}}
	if err := c.validate(p); err != nil {
		c.problem(id, err)
		return
	}
	c.add(p)
}

func (r ClassDefaults) requirements() []requirement {
	out := requirements(Conditions{MinLevel: r.MinLevel, MinScore: r.MinScore, MFAMaxAge: r.MFAMaxAge, SessionMaxAge: r.SessionMaxAge})
	return append(out, riskReq(CodeRiskCritical, r.RiskTerminate), riskStepUpReq(r.RiskStepUp))
}

func riskReq(code Code, limit int) requirement {
	return requirement{
		code: code, detail: map[string]string{"need": strconv.Itoa(limit)},
		node:  ast.Context().Access("risk").LessThan(ast.Long(int64(limit))),
		holds: func(s *state) bool { return s.in.Risk.Score < limit },
	}
}

// riskStepUpReq: a high risk is answered by showing a second factor now.
func riskStepUpReq(limit int) requirement {
	q := riskReq(CodeRiskHigh, limit)
	low := q.holds
	q.node = q.node.Or(ast.Context().Access("mfa_within").Access(types.String(riskStepUpMFA.String())))
	q.holds = func(s *state) bool { return low(s) || s.mfaWithin(riskStepUpMFA) }
	q.auth = true
	return q
}
