package broker

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/broker/checklist"
	"github.com/postern-zt/postern/broker/directory"
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
	s.Apps = appNames(b.catalog.Current().Apps())
	if cur := b.decide.Current(); cur != nil {
		s.Rule = len(cur.Document().Rules) > 0
	}
	if !s.Rule {
		s.Person, err = b.somebody(ctx)
	}
	return s, err
}

// appNames are the names in the order in which the apps were published.
func appNames(apps []*catalog.App) []string {
	slices.SortFunc(apps, func(a, b *catalog.App) int { return cmp.Compare(a.Index, b.Index) })
	var names []string
	for _, a := range apps {
		if !a.Retired {
			names = append(names, a.Name)
		}
	}
	return names
}

// plainLogin can be pasted into a shell as it is, and is one person to `rule allow`.
var plainLogin = regexp.MustCompile(`^[a-z0-9][a-z0-9._@+-]*$`)

// somebody is the login of a user who is no owner, for the first rule.
func (b *Broker) somebody(ctx context.Context) (string, error) {
	users, err := b.dir.Users(ctx, directory.Query{})
	for _, u := range users {
		if u.Usable() && u.Admin != directory.RoleOwner && u.Login != "everyone" && plainLogin.MatchString(u.Login) {
			return u.Login, err
		}
	}
	return "", err
}

// Fingerprint is of the certificate that browsers get now, as they show it; none when the
// operator gave one.
func (b *Broker) Fingerprint() (string, error) {
	if b.cfg.TLSCert != "" {
		return "", nil
	}
	cert, err := b.internal()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(cert.Certificate[0])
	return strings.ReplaceAll(fmt.Sprintf("% X", sum), " ", ":"), nil
}

// OwnerLink returns a fresh one-time link to the set-up page.
func (b *Broker) OwnerLink(ctx context.Context) (string, error) {
	code, err := b.identity.NewOwnerCode(ctx)
	if err != nil {
		return "", err
	}
	return b.identity.OwnerLink(code).Reveal(), nil
}

// JoinToken returns a fresh one-time token for a connector that may publish, and its site.
func (b *Broker) JoinToken(ctx context.Context) (token, siteName string, err error) {
	site, err := b.ensureSite(ctx)
	if err != nil {
		return "", "", err
	}
	_, text, err := b.enroller.Create(ctx, enroll.Wish{
		Kind: enroll.ForConnector, Site: site.ID, SiteName: site.Name, Label: "first connector", MayPublish: true,
	}, time.Now())
	if err != nil {
		return "", "", err
	}
	return text.Reveal(), site.Name, nil
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
