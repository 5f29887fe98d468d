package catalog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/postern-zt/postern/proto/ids"
)

// Publish handles a wish of a connector at a site. A connector that may publish creates an
// app that does not exist yet; an app that exists is never changed by a connector's word,
// because its own target would then draw the traffic of somebody else's app: that, and each
// wish of a connector that may not publish, becomes a proposal.
func (c *Catalog) Publish(ctx context.Context, connector ids.ConnectorID, site ids.SiteID, mayPublish bool, w Wish, now time.Time) (Outcome, error) {
	p := Proposal{Connector: connector, Site: site, Name: lowerName(w.Name), Protocol: or(w.Protocol, TCP), Target: w.Target, State: Pending, At: now}
	var out Outcome
	err := c.cfg.Store.Atomically(ctx, func(ctx context.Context) error {
		var err error
		out, err = c.publish(ctx, p, mayPublish, now)
		return err
	})
	return out, c.then(ctx, err)
}

func (c *Catalog) publish(ctx context.Context, p Proposal, mayPublish bool, now time.Time) (Outcome, error) {
	existing, err := c.appNamed(ctx, p.Name)
	switch {
	case errors.Is(err, ErrNotFound) && mayPublish:
		a, err := p.app()
		if err != nil {
			return "", err
		}
		_, err = c.createApp(ctx, a, now)
		return Published, err
	case errors.Is(err, ErrNotFound):
		return c.propose(ctx, p)
	case err != nil:
		return "", err
	case existing.Retired:
		return "", taken(p.Name, &existing)
	case existing.has(p):
		return Unchanged, nil
	default:
		return c.propose(ctx, p)
	}
}

// propose stores the proposal unless the same one was decided before.
func (c *Catalog) propose(ctx context.Context, p Proposal) (Outcome, error) {
	a, err := p.app()
	if err != nil {
		return "", err
	}
	if err := c.check(ctx, &a); err != nil {
		return "", err
	}
	known, err := c.cfg.Store.Proposal(ctx, p.Connector, p.Name)
	if err == nil && known.Target == p.Target && known.Protocol == p.Protocol && known.State != Approved {
		if known.State == Pending {
			return Proposed, nil
		}
		return Refused, nil
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return "", err
	}
	if err := c.roomFor(ctx, p.Connector); err != nil {
		return "", err
	}
	return Proposed, c.cfg.Store.PutProposal(ctx, p)
}

func (c *Catalog) roomFor(ctx context.Context, connector ids.ConnectorID) error {
	all, err := c.cfg.Store.Proposals(ctx)
	if err != nil {
		return err
	}
	n := 0
	for _, p := range all {
		if p.Connector == connector {
			n++
		}
	}
	if n >= maxProposals {
		return invalid("proposals", "the connector has %d already", n)
	}
	return nil
}

// app returns the new app that a proposal amounts to.
func (p Proposal) app() (App, error) {
	t, err := ParseTarget(p.Target)
	if err != nil {
		return App{}, err
	}
	return App{Name: p.Name, Protocol: p.Protocol, Placements: []Placement{{Site: p.Site, Targets: []Target{t}}}}, nil
}

// has reports whether the app already sends this site's traffic to the wished target.
func (a *App) has(p Proposal) bool {
	t, err := ParseTarget(p.Target)
	if err != nil || a.Protocol != p.Protocol {
		return false
	}
	t.complete(a.Ports)
	return slices.Contains(a.At(p.Site), t)
}

// Proposals lists all proposals, pending ones first.
func (c *Catalog) Proposals(ctx context.Context) ([]Proposal, error) {
	all, err := c.cfg.Store.Proposals(ctx)
	slices.SortStableFunc(all, func(a, b Proposal) int { return rank(a) - rank(b) })
	return all, err
}

func rank(p Proposal) int {
	if p.State == Pending {
		return 0
	}
	return 1
}

// Approve publishes a pending proposal: as a new app, or as one more target of the app that
// has the name. It returns the app as stored.
func (c *Catalog) Approve(ctx context.Context, connector ids.ConnectorID, name string, now time.Time) (App, error) {
	var stored App
	err := c.cfg.Store.Atomically(ctx, func(ctx context.Context) error {
		p, err := c.pending(ctx, connector, name)
		if err != nil {
			return err
		}
		if stored, err = c.apply(ctx, p, now); err != nil {
			return err
		}
		p.State, p.DecidedAt = Approved, now
		return c.cfg.Store.PutProposal(ctx, p)
	})
	return stored, c.then(ctx, err)
}

func (c *Catalog) apply(ctx context.Context, p Proposal, now time.Time) (App, error) {
	fresh, err := p.app()
	if err != nil {
		return App{}, err
	}
	a, err := c.appNamed(ctx, p.Name)
	if errors.Is(err, ErrNotFound) {
		return c.createApp(ctx, fresh, now)
	}
	if err != nil {
		return App{}, err
	}
	if a.Retired {
		return App{}, taken(p.Name, &a)
	}
	if a.Protocol != p.Protocol {
		return App{}, invalid("protocol", "the app %s is published for %s, the proposal is for %s", a.Name, a.Protocol, p.Protocol)
	}
	a.addTarget(p.Site, fresh.Placements[0].Targets[0])
	return c.updateApp(ctx, a, now)
}

// addTarget appends a target at a site and publishes its ports.
func (a *App) addTarget(site ids.SiteID, t Target) {
	t.complete(a.Ports)
	a.Ports = mergePorts(append(a.Ports, t.Published))
	for i := range a.Placements {
		if a.Placements[i].Site == site {
			a.Placements[i].Targets = append(a.Placements[i].Targets, t)
			return
		}
	}
	a.Placements = append(a.Placements, Placement{Site: site, Targets: []Target{t}})
}

// Reject declines a pending proposal; the connector is not asked again for the same one.
func (c *Catalog) Reject(ctx context.Context, connector ids.ConnectorID, name string, now time.Time) error {
	return c.cfg.Store.Atomically(ctx, func(ctx context.Context) error {
		p, err := c.pending(ctx, connector, name)
		if err != nil {
			return err
		}
		p.State, p.DecidedAt = Rejected, now
		return c.cfg.Store.PutProposal(ctx, p)
	})
}

func (c *Catalog) pending(ctx context.Context, connector ids.ConnectorID, name string) (Proposal, error) {
	p, err := c.cfg.Store.Proposal(ctx, connector, lowerName(name))
	if err == nil && p.State != Pending {
		return Proposal{}, fmt.Errorf("proposal %s: %w: it is %s", p.Name, ErrConflict, p.State)
	}
	return p, err
}

func (c *Catalog) appNamed(ctx context.Context, name string) (App, error) {
	apps, err := c.cfg.Store.Apps(ctx)
	if err != nil {
		return App{}, err
	}
	i := slices.IndexFunc(apps, func(a App) bool { return a.Name == name })
	if i < 0 {
		return App{}, fmt.Errorf("app %s: %w", name, ErrNotFound)
	}
	return apps[i], nil
}
