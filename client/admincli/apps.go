package admincli

import (
	"context"
	"fmt"
	"io"
	"strings"

	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
)

type appCmd struct {
	List      appListCmd      `cmd:"" help:"List apps." example:"postern admin app list"`
	Show      appShowCmd      `cmd:"" help:"Show one app." example:"postern admin app show wiki"`
	Publish   appPublishCmd   `cmd:"" help:"Publish an app. Nobody may use it before a rule allows it." example:"postern admin app publish wiki 10.0.0.5:80 --class internal --owner it@corp.example"`
	Update    appUpdateCmd    `cmd:"" help:"Change an app; what is not named stays." example:"postern admin app update wiki --class confidential"`
	Retire    appRetireCmd    `cmd:"" help:"Take an app away; everything open ends." example:"postern admin app retire wiki"`
	Restore   appRestoreCmd   `cmd:"" help:"Publish a retired app again, as it was." example:"postern admin app restore wiki"`
	Proposals appProposalsCmd `cmd:"" help:"List what connectors propose." example:"postern admin app proposals"`
	Approve   appApproveCmd   `cmd:"" help:"Publish what a connector proposes." example:"postern admin app approve wiki"`
	Reject    appRejectCmd    `cmd:"" help:"Refuse what a connector proposes." example:"postern admin app reject wiki"`
}

type appListCmd struct{}

// Run lists apps.
func (*appListCmd) Run(ctx context.Context, c *Conn) error {
	all := &adminv1.ListAppsResponse{}
	for page := (&adminv1.Page{Size: pageSize}); ; page.Token = all.Next {
		part, err := ask(ctx, c, c.app.ListApps, &adminv1.ListAppsRequest{Page: page})
		if err != nil {
			return err
		}
		all.Apps, all.Next = append(all.Apps, part.Apps...), part.Next
		if all.Next == "" {
			break
		}
	}
	t := columns("APP", "ADDRESS", "PORTS", "CLASS", "VISIBLE TO", "TARGETS", "STATE", "HEALTH")
	for _, a := range all.Apps {
		t.add(a.Name, a.Fqdn, strings.Join(a.Ports, ", "), a.Class, a.Visibility, targetsOf(a), a.State, strings.Join(a.Health, "; "))
	}
	return c.print.table(all, "There are no apps yet. Publish one: postern admin app publish NAME HOST:PORT", t)
}

func targetsOf(a *adminv1.App) string {
	var all []string
	for _, p := range a.Placements {
		for _, t := range p.Targets {
			all = append(all, t+" at "+p.Site)
		}
	}
	return strings.Join(all, ", ")
}

type appRef struct {
	App string `arg:"" help:"Name or id."`
}

type appShowCmd struct{ appRef }

// Run shows an app.
func (s *appShowCmd) Run(ctx context.Context, c *Conn) error {
	a, err := ask(ctx, c, c.app.GetApp, &adminv1.AppRef{App: s.App})
	if err != nil {
		return err
	}
	return c.app1(a, "")
}

// app1 shows one app below a sentence.
func (c *Conn) app1(a *adminv1.App, done string) error {
	return c.print.show(a, func(w io.Writer) {
		if done != "" {
			fmt.Fprintln(w, clean(done))
		}
		pairs(w, "app", a.Name, "address", a.Fqdn, "ports", strings.Join(a.Ports, ", "), "targets", targetsOf(a),
			"class", a.Class, "visible to", a.Visibility, "owner", a.Owner, "tags", strings.Join(a.Tags, ", "),
			"in an outage", a.OutageMode, "state", a.State, "health", strings.Join(a.Health, "; "), "id", a.Id)
	})
}

// appFields are what publish and update share.
type appFields struct {
	Site       string   `help:"Site where the targets are (default: the only one)." placeholder:"SITE"`
	Class      string   `help:"public, internal, confidential or restricted." placeholder:"CLASS"`
	Visibility string   `help:"everyone, allowed or hidden: whose names resolve." placeholder:"WHO"`
	Owner      string   `help:"Who answers for the app." placeholder:"TEXT"`
	Tag        []string `help:"Tag, may be repeated; rules can name it." placeholder:"TAG"`
	Outage     string   `help:"Without the broker: cut, 'continue 15m' or 'hold 10m' (default: by class)." placeholder:"MODE"`
}

type appPublishCmd struct {
	Name    string   `arg:"" help:"Name of the app."`
	Targets []string `arg:"" name:"host:port" help:"Where it is, as the connector reaches it: HOST:PORT, HOST:FIRST-LAST, /udp behind it for UDP, PUBLISHED= before it for another port."`
	appFields
}

// Run publishes an app.
func (p *appPublishCmd) Run(ctx context.Context, c *Conn) error {
	a, err := ask(ctx, c, c.app.PublishApp, &adminv1.PublishAppRequest{
		Name: p.Name, Placements: []*adminv1.Placement{{Site: p.Site, Targets: p.Targets}}, Class: p.Class,
		Visibility: p.Visibility, Owner: p.Owner, Tags: p.Tag, OutageMode: p.Outage,
	})
	if err != nil {
		return err
	}
	return c.app1(a, "Published. Now say who may use it: postern admin rule allow WHO "+a.Name)
}

type appUpdateCmd struct {
	appRef
	Name   string   `help:"New name." placeholder:"NAME"`
	Target []string `help:"New targets, in place of those of the site; may be repeated." placeholder:"HOST:PORT"`
	appFields
}

// Run changes an app: it reads the present one, lays the flags over it and sends the
// version that it read, so that two admins do not undo each other.
func (u *appUpdateCmd) Run(ctx context.Context, c *Conn) error {
	old, err := ask(ctx, c, c.app.GetApp, &adminv1.AppRef{App: u.App})
	if err != nil {
		return err
	}
	fields, err := u.over(old)
	if err != nil {
		return err
	}
	a, err := ask(ctx, c, c.app.UpdateApp, &adminv1.UpdateAppRequest{App: old.Id, Version: old.Version, AppFields: fields})
	if err != nil {
		return err
	}
	return c.app1(a, "Changed.")
}

func (u *appUpdateCmd) over(old *adminv1.App) (*adminv1.PublishAppRequest, error) {
	placements, err := u.placements(old)
	if err != nil {
		return nil, err
	}
	tags := u.Tag
	if tags == nil {
		tags = old.Tags
	}
	return &adminv1.PublishAppRequest{
		Name: either(u.Name, old.Name), Placements: placements, Class: either(u.Class, old.Class),
		Visibility: either(u.Visibility, old.Visibility), Owner: either(u.Owner, old.Owner), Tags: tags,
		OutageMode: either(u.Outage, old.OutageMode),
	}, nil
}

// placements replaces the targets at one site, or adds a site.
func (u *appUpdateCmd) placements(old *adminv1.App) ([]*adminv1.Placement, error) {
	switch {
	case len(u.Target) == 0 && u.Site != "":
		return nil, usage("--site says where the --target is; give a --target too")
	case len(u.Target) == 0:
		return old.Placements, nil
	case u.Site == "" && len(old.Placements) > 1:
		return nil, usage("the app is at several sites; say with --site which one the --target replaces")
	case u.Site == "" && len(old.Placements) == 1:
		return []*adminv1.Placement{{Site: old.Placements[0].Site, Targets: u.Target}}, nil
	}
	placements, found := old.Placements, false
	for _, p := range placements {
		if p.Site == u.Site {
			p.Targets, found = u.Target, true
		}
	}
	if !found {
		placements = append(placements, &adminv1.Placement{Site: u.Site, Targets: u.Target})
	}
	return placements, nil
}

func either(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

type appRetireCmd struct{ appRef }

// Run retires an app.
func (r *appRetireCmd) Run(ctx context.Context, c *Conn) error {
	return act(ctx, c, c.app.RetireApp, &adminv1.AppRef{App: r.App}, "Retired "+r.App+".")
}

type appRestoreCmd struct{ appRef }

// Run publishes a retired app again.
func (r *appRestoreCmd) Run(ctx context.Context, c *Conn) error {
	a, err := ask(ctx, c, c.app.RestoreApp, &adminv1.AppRef{App: r.App})
	if err != nil {
		return err
	}
	return c.app1(a, "Published again. Rules that name it hold again.")
}

type appProposalsCmd struct{}

// Run lists proposals.
func (*appProposalsCmd) Run(ctx context.Context, c *Conn) error {
	all, err := ask(ctx, c, c.app.ListProposals, &adminv1.ListProposalsRequest{})
	if err != nil {
		return err
	}
	t := columns("PROPOSAL", "APP", "TARGETS")
	for _, p := range all.Proposals {
		t.add(p.Id, p.Name, strings.Join(p.Targets, ", "))
	}
	return c.print.table(all, "No connector proposes anything.", t)
}

type proposalRef struct {
	Proposal string `arg:"" help:"NAME, or CONNECTOR/NAME when several propose it."`
}

type appApproveCmd struct {
	proposalRef
	Class string `help:"public, internal, confidential or restricted." placeholder:"CLASS"`
}

// Run publishes a proposal.
func (p *appApproveCmd) Run(ctx context.Context, c *Conn) error {
	a, err := ask(ctx, c, c.app.ApproveProposal, &adminv1.ProposalRef{Proposal: p.Proposal, Class: p.Class})
	if err != nil {
		return err
	}
	return c.app1(a, "Published. Now say who may use it: postern admin rule allow WHO "+a.Name)
}

type appRejectCmd struct{ proposalRef }

// Run refuses a proposal.
func (p *appRejectCmd) Run(ctx context.Context, c *Conn) error {
	return act(ctx, c, c.app.RejectProposal, &adminv1.ProposalRef{Proposal: p.Proposal}, "Refused.")
}
