package admincli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
)

// maxRule bounds a rule that is read from a file; the broker takes as much.
const maxRule = 1 << 19

type ruleCmd struct {
	List   ruleListCmd   `cmd:"" help:"List rules." example:"postern admin rule list"`
	Show   ruleShowCmd   `cmd:"" help:"Show one rule with its Cedar." example:"postern admin rule show rul_..."`
	Allow  ruleAllowCmd  `cmd:"" help:"Allow somebody an app." example:"postern admin rule allow @staff wiki --require firewall"`
	Deny   ruleDenyCmd   `cmd:"" help:"Deny somebody an app, whatever other rules allow." example:"postern admin rule deny ann all"`
	Cedar  ruleCedarCmd  `cmd:"" help:"Add a rule written in Cedar." example:"postern admin rule cedar night.cedar --name 'no production at night' --dry-run"`
	Delete ruleDeleteCmd `cmd:"" help:"Delete a rule." example:"postern admin rule delete rul_..."`
}

type ruleListCmd struct{}

// Run lists rules.
func (*ruleListCmd) Run(ctx context.Context, c *Conn) error {
	all, err := ask(ctx, c, c.rule.ListRules, &adminv1.ListRulesRequest{})
	if err != nil {
		return err
	}
	t := columns("RULE", "NAME", "EFFECT", "SAYS")
	for _, r := range all.Rules {
		t.add(r.Id, r.Name, r.Effect, r.Summary)
	}
	return c.print.table(all, "There are no rules: nobody may use anything. Allow something: postern admin rule allow WHO APP", t)
}

type ruleShowCmd struct {
	Rule string `arg:"" help:"Id or name."`
}

// Run shows one rule.
func (s *ruleShowCmd) Run(ctx context.Context, c *Conn) error {
	r, err := c.findRule(ctx, s.Rule)
	if err != nil {
		return err
	}
	return c.print.show(r, func(w io.Writer) {
		pairs(w, "rule", r.Id, "name", r.Name, "effect", r.Effect, "says", r.Summary, "form", r.Form)
		if r.Cedar != "" {
			fmt.Fprintf(w, "\n%s\n", cleanLines(r.Cedar))
		}
	})
}

func (c *Conn) findRule(ctx context.Context, text string) (*adminv1.Rule, error) {
	all, err := ask(ctx, c, c.rule.ListRules, &adminv1.ListRulesRequest{})
	if err != nil {
		return nil, err
	}
	var found []*adminv1.Rule
	for _, r := range all.Rules {
		if r.Id == text {
			return r, nil
		}
		if r.Name == text {
			found = append(found, r)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, &Error{Code: ExitNotFound, err: fmt.Errorf("no rule %q", text)}
	default:
		return nil, usage("%d rules are named %q; use the id", len(found), text)
	}
}

// change are the flags of everything that publishes a revision.
type change struct {
	DryRun bool `help:"Show whom it gives or takes what, and change nothing."`
}

// scope is who and what a rule is about.
type scope struct {
	Who     string   `arg:"" help:"Login, @GROUP or everyone."`
	App     string   `arg:"" help:"Name of an app, '#TAG' or all."`
	Name    string   `help:"Name of the rule." placeholder:"TEXT"`
	Expires moment   `help:"When it ends: a length like 8h or 30d, or a time." placeholder:"WHEN"`
	Require []string `help:"Fact that must pass, e.g. firewall; may be repeated." placeholder:"FACT"`
}

// request turns the words of the command line into a rule.
func (s *scope) request(c *Conn, effect string, dryRun bool) (*adminv1.PutRuleRequest, error) {
	m := &adminv1.PutRuleRequest{
		Name: either(s.Name, effect+" "+s.Who+" "+s.App), Effect: effect, Require: s.Require, DryRun: dryRun,
		ExpiresMs: s.Expires.after(c.print.now),
	}
	group, isGroup := strings.CutPrefix(s.Who, "@")
	tag, isTag := strings.CutPrefix(s.App, "#")
	switch {
	case s.Who == "everyone":
		m.AnyUser = true
	case isGroup && group != "":
		m.Groups = []string{group}
	case !isGroup && s.Who != "":
		m.Users = []string{s.Who}
	default:
		return nil, usage("%q names nobody; want a login, @GROUP or everyone", s.Who)
	}
	switch {
	case s.App == "all":
		m.AnyApp = true
	case isTag && tag != "":
		m.Tags = []string{tag}
	case !isTag && s.App != "":
		m.Apps = []string{s.App}
	default:
		return nil, usage("%q names no app; want a name, '#TAG' or all", s.App)
	}
	return m, nil
}

type ruleAllowCmd struct {
	scope
	MFA   length `name:"mfa" help:"A second factor at most this old, e.g. 12h." placeholder:"AGE"`
	Level int32  `help:"Trust level of the device, 0 to 3." placeholder:"N"`
	change
}

// Run allows.
func (a *ruleAllowCmd) Run(ctx context.Context, c *Conn) error {
	m, err := a.request(c, "allow", a.DryRun)
	if err != nil {
		return err
	}
	m.MfaAgeS, m.MinLevel = a.MFA.seconds(), a.Level
	return c.putRule(ctx, m, a.Who+" may use "+a.App+" now")
}

type ruleDenyCmd struct {
	scope
	change
}

// Run denies.
func (d *ruleDenyCmd) Run(ctx context.Context, c *Conn) error {
	m, err := d.request(c, "deny", d.DryRun)
	if err != nil {
		return err
	}
	return c.putRule(ctx, m, d.Who+" may not use "+d.App+" now")
}

func (c *Conn) putRule(ctx context.Context, m *adminv1.PutRuleRequest, done string) error {
	resp, err := ask(ctx, c, c.rule.PutRule, m)
	if err != nil {
		return err
	}
	return c.published(resp, done, m.DryRun)
}

// published shows a new revision, or the preview of one.
func (c *Conn) published(resp *adminv1.PutRuleResponse, done string, dryRun bool) error {
	return c.print.show(resp, func(w io.Writer) {
		switch {
		case dryRun:
			fmt.Fprintln(w, "Preview; nothing was changed.")
		case resp.Rule.GetId() != "":
			fmt.Fprintf(w, "%s (rule %s, policy revision %d).\n", clean(done), clean(resp.Rule.GetId()), resp.Revision)
		default:
			fmt.Fprintf(w, "%s (policy revision %d).\n", clean(done), resp.Revision)
		}
		for _, line := range resp.Changes {
			fmt.Fprintln(w, "  "+clean(line))
		}
		if text := effect(resp.Effect); text != "" {
			fmt.Fprintln(w, text)
		}
	})
}

type ruleCedarCmd struct {
	File string `arg:"" help:"File with the rule, - for stdin."`
	Name string `help:"Name of the rule (default: the file's)." placeholder:"TEXT"`
	change
}

// Run adds a rule in Cedar.
func (r *ruleCedarCmd) Run(ctx context.Context, c *Conn, e *Env) error {
	text, err := readFile(e, r.File)
	if err != nil {
		return err
	}
	return c.putRule(ctx, &adminv1.PutRuleRequest{Name: either(r.Name, r.File), Cedar: text, DryRun: r.DryRun}, "Added")
}

// readFile reads a file of the caller, or stdin.
func readFile(e *Env, name string) (string, error) {
	in := e.In
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return "", &Error{Code: ExitUsage, err: err}
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxRule+1))
	if err == nil && len(data) > maxRule {
		err = errors.New("too large for a rule")
	}
	if err != nil {
		return "", fmt.Errorf("read %s: %w", name, err)
	}
	return string(data), nil
}

type ruleDeleteCmd struct {
	Rule string `arg:"" help:"Id or name."`
}

// Run deletes a rule.
func (d *ruleDeleteCmd) Run(ctx context.Context, c *Conn) error {
	r, err := c.findRule(ctx, d.Rule)
	if err != nil {
		return err
	}
	resp, err := ask(ctx, c, c.rule.DeleteRule, &adminv1.RuleRef{Rule: r.Id})
	if err != nil {
		return err
	}
	return c.published(resp, "Deleted "+either(r.Name, r.Id), false)
}
