package broker

import (
	"context"
	"errors"
	"time"

	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/broker/checklist"
	"github.com/postern-zt/postern/broker/enroll"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/session"
)

var _ checklist.Source = (*Broker)(nil)

// firstSite is the site of an installation that has named none.
const firstSite = "main"

// State says how far the installation is.
func (b *Broker) State(ctx context.Context) (checklist.State, error) {
	connectors, err := b.registry.Connectors(ctx, "")
	if err != nil {
		return checklist.State{}, err
	}
	sessions, err := b.sessions.List(ctx, session.Filter{Ended: true})
	if err != nil {
		return checklist.State{}, err
	}
	s := checklist.State{Owner: b.hasOwner(ctx), Used: len(sessions) > 0}
	for _, c := range connectors {
		s.Connector = s.Connector || c.State == registry.Active
	}
	for _, app := range b.catalog.Current().Apps() {
		s.Apps = append(s.Apps, app.Name)
	}
	if cur := b.decide.Current(); cur != nil {
		s.Rule = len(cur.Document().Rules) > 0
	}
	return s, nil
}

// OwnerLink returns a fresh one-time link to the set-up page.
func (b *Broker) OwnerLink(ctx context.Context) (string, error) {
	code, err := b.identity.NewOwnerCode(ctx)
	if err != nil {
		return "", err
	}
	return b.identity.OwnerLink(code).Reveal(), nil
}

// JoinToken returns a fresh one-time token for a connector that may publish.
func (b *Broker) JoinToken(ctx context.Context) (string, error) {
	site, err := b.ensureSite(ctx)
	if err != nil {
		return "", err
	}
	_, text, err := b.enroller.Create(ctx, enroll.Wish{
		Kind: enroll.ForConnector, Site: site.ID, SiteName: site.Name, Label: "first connector", MayPublish: true,
	}, time.Now())
	if err != nil {
		return "", err
	}
	return text.Reveal(), nil
}

// ensureSite returns the first site, which is made when there is none.
func (b *Broker) ensureSite(ctx context.Context) (catalog.Site, error) {
	if sites := b.catalog.Current().Sites(); len(sites) > 0 {
		return sites[0], nil
	}
	site, err := b.catalog.CreateSite(ctx, firstSite)
	if errors.Is(err, catalog.ErrConflict) {
		if site, ok := b.catalog.Current().SiteByName(firstSite); ok {
			return site, nil
		}
	}
	return site, err
}
