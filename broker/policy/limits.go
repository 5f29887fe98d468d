package policy

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/postern-zt/postern/broker/trust"
	"github.com/postern-zt/postern/proto/ids"
)

// checkRules checks the forms before anything is compiled from them.
func (c *compiler) checkRules() {
	seen := make(map[ids.RuleID]bool, len(c.doc.Rules))
	for i := range c.doc.Rules {
		r := &c.doc.Rules[i]
		if seen[r.ID] {
			c.problem(string(r.ID), fmt.Errorf("the id is used twice"))
		}
		seen[r.ID] = true
		if err := c.checkRule(r); err != nil {
			c.problem(string(r.ID), err)
		}
	}
}

func (c *compiler) checkRule(r *Rule) error {
	if _, err := ids.Parse[ids.RuleID](string(r.ID)); err != nil {
		return err
	}
	if r.Name == "" || !fits(maxText, r.Name, r.Owner) || !fits(maxDescribed, r.Description) {
		return fmt.Errorf("name is missing, or a text is too long or not UTF-8")
	}
	if r.Cedar != "" {
		return r.checkCedarAlone()
	}
	if r.Effect != Allow && r.Effect != Deny {
		return fmt.Errorf("effect is neither allow nor deny")
	}
	for _, check := range []func() error{r.Who.validate, r.Apps.validate, r.Obligations.validate} {
		if err := check(); err != nil {
			return err
		}
	}
	if err := validVerbs(r.Verbs); err != nil {
		return err
	}
	if r.Conditions.Schedule != "" && !slices.Contains(c.scheduleNames, r.Conditions.Schedule) {
		return fmt.Errorf("schedule %.64q is not defined", r.Conditions.Schedule)
	}
	return r.Conditions.validate()
}

// checkCedarAlone: with Cedar text, the form must be empty, or one of the two would lie.
func (r *Rule) checkCedarAlone() error {
	form := len(r.Who.Users)+len(r.Who.Groups)+len(r.Apps.IDs)+len(r.Apps.Tags)+len(r.Apps.Classes)+len(r.Verbs) > 0
	if form || r.Effect != "" || r.Who.SignedIn || r.Apps.Any || !r.Conditions.isEmpty() || r.Obligations != (Obligations{}) {
		return fmt.Errorf("a rule is either a form or cedar text, not both")
	}
	return nil
}

func (c Conditions) isEmpty() bool {
	return len(c.Facts)+len(c.AuthMethods)+len(c.Attributes)+len(c.Networks) == 0 && c.MinLevel == 0 &&
		c.MinScore == 0 && c.MFAMaxAge == 0 && c.SessionMaxAge == 0 && c.Schedule == ""
}

func (c Conditions) validate() error {
	for _, f := range c.Facts {
		if !slices.Contains(trust.FactNames(), f) {
			return fmt.Errorf("fact %.64q is not known", f)
		}
	}
	switch {
	case c.MinLevel > trust.MaxLevel:
		return fmt.Errorf("min_level is above %d", trust.MaxLevel)
	case c.MinScore < 0 || c.MinScore > trust.MaxScore:
		return fmt.Errorf("min_score is outside 0 to %d", trust.MaxScore)
	case c.MFAMaxAge < 0 || c.SessionMaxAge < 0:
		return fmt.Errorf("an age limit is negative")
	case len(c.Attributes) > maxTests || len(c.Networks) > maxTests || len(c.AuthMethods) > maxTests || len(c.Facts) > maxTests:
		return fmt.Errorf("more than %d tests of one kind", maxTests)
	case !fits(64, c.AuthMethods...) || slices.Contains(c.AuthMethods, ""):
		return fmt.Errorf("malformed auth method")
	}
	return validTests(c.Attributes)
}

func validTests(tests []AttributeTest) error {
	for _, t := range tests {
		switch t.Operator {
		case Exists, NotExists:
			if !t.Value.IsZero() {
				return fmt.Errorf("operator %s takes no value", t.Operator)
			}
		case Equals, NotEquals, In, Contains, LessThan, GreaterThan, AtMost, AtLeast, Matches:
			if t.Value.IsZero() || !t.Value.fits() {
				return fmt.Errorf("operator %s needs a value of reasonable size", t.Operator)
			}
		default:
			return fmt.Errorf("operator %.32q is not known", t.Operator)
		}
	}
	return nil
}

func (v Value) fits() bool {
	switch x := v.v.(type) {
	case string:
		return fits(maxText, x)
	case []string:
		return len(x) <= maxListed && fits(maxText, x...)
	default:
		return true
	}
}

func validVerbs(verbs []Verb) error {
	for _, v := range verbs {
		if !slices.Contains(Verbs(), v) {
			return fmt.Errorf("verb %.32q is not known", v)
		}
	}
	if len(verbs) > len(Verbs()) {
		return fmt.Errorf("a verb is listed twice")
	}
	return nil
}

func (w Who) validate() error {
	if !w.SignedIn && len(w.Users)+len(w.Groups) == 0 {
		return fmt.Errorf("the rule names nobody")
	}
	if w.SignedIn && len(w.Users)+len(w.Groups) > 0 {
		return fmt.Errorf("signed_in means everybody: leave out users and groups")
	}
	if len(w.Users) > maxListed || len(w.Groups) > maxListed {
		return fmt.Errorf("more than %d users or groups in one rule", maxListed)
	}
	if !fitIDs(w.Users) || !fitIDs(w.Groups) {
		return fmt.Errorf("malformed user or group id")
	}
	return nil
}

func (a Apps) validate() error {
	n := len(a.IDs) + len(a.Tags) + len(a.Classes)
	if !a.Any && n == 0 {
		return fmt.Errorf("the rule names no app")
	}
	if a.Any && n > 0 {
		return fmt.Errorf("any means every app: leave out ids, tags and classes")
	}
	if n > maxListed {
		return fmt.Errorf("more than %d apps, tags and classes in one rule", maxListed)
	}
	if !fitIDs(a.IDs) || !fitIDs(a.Tags) {
		return fmt.Errorf("malformed app id or tag")
	}
	for _, c := range a.Classes {
		if !slices.Contains(Classes(), c) {
			return fmt.Errorf("class %.32q is not known", c)
		}
	}
	return nil
}

func (o Obligations) validate() error {
	if o.MaxFlows < 0 || o.OpenRate < 0 || o.RateKbps < 0 || o.HardEnd < 0 || o.Idle < 0 || o.ReVerify < 0 || o.Lease < 0 {
		return fmt.Errorf("an obligation is negative")
	}
	return nil
}

// fitIDs checks ids where they are only compared: not empty, not long, clean text.
func fitIDs[S ~string](l []S) bool {
	for _, s := range l {
		if s == "" || !fits(128, string(s)) {
			return false
		}
	}
	return true
}

func fits(limit int, texts ...string) bool {
	for _, s := range texts {
		if len(s) > limit || !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
			return false
		}
	}
	return true
}
