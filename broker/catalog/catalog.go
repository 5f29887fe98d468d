package catalog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-zt/postern/proto/ids"
)

// Topics of the change events that the store writes with each change. The key is the id; of
// a suffix change it is empty, of a proposal the connector's id.
const (
	TopicSite     = "site"
	TopicApp      = "app"
	TopicSuffix   = "suffix"
	TopicProposal = "proposal"
)

// IndexRest is how long the index of a deleted app stays unused: clients map it to an
// address, and somebody may still hold that address (decisions rule 22).
const IndexRest = 30 * 24 * time.Hour

// maxProposals bounds what one connector may have pending.
const maxProposals = 64

// Store keeps the catalog. broker/store implements it on both engines. Each method is one
// transaction, or part of the one that Atomically opened, and announces its changes. Errors
// satisfy errors.Is with those of this package.
type Store interface {
	// Atomically runs fn in one transaction; fn passes its context to the other methods.
	Atomically(ctx context.Context, fn func(ctx context.Context) error) error

	Sites(ctx context.Context) ([]Site, error)
	CreateSite(ctx context.Context, s Site) error
	RenameSite(ctx context.Context, s Site) error
	// DeleteSite fails with ErrConflict while apps or connectors belong to the site.
	DeleteSite(ctx context.Context, id ids.SiteID) error

	Apps(ctx context.Context) ([]App, error)
	App(ctx context.Context, id ids.AppID) (App, error)
	// CreateApp stores the app with version 1 and the smallest index that is free: never
	// used, or of an app deleted before reuseBefore. ErrExists for a taken name.
	CreateApp(ctx context.Context, a App, reuseBefore time.Time) (App, error)
	// UpdateApp stores the app with the next version if a.Version is the present one, else
	// ErrConflict. Index and creation time stay.
	UpdateApp(ctx context.Context, a App) (App, error)
	// DeleteApp removes the app of this version and frees its index at now.
	DeleteApp(ctx context.Context, id ids.AppID, version uint64, now time.Time) error

	Suffixes(ctx context.Context) (list []string, version uint64, err error)
	// SetSuffixes replaces the list if version is the present one, else ErrConflict.
	SetSuffixes(ctx context.Context, list []string, version uint64) error

	Proposals(ctx context.Context) ([]Proposal, error)
	Proposal(ctx context.Context, connector ids.ConnectorID, name string) (Proposal, error)
	// PutProposal stores a new or changed proposal.
	PutProposal(ctx context.Context, p Proposal) error
	DeleteProposal(ctx context.Context, connector ids.ConnectorID, name string) error
}

// Config is what a Catalog needs. Reserved may be nil.
type Config struct {
	Store Store
	// Reserved returns the addresses of broker and relays at the moment of an edit.
	Reserved func() []Reserved
}

// Catalog applies the rules on top of a Store and keeps a Snapshot in memory.
type Catalog struct {
	cfg     Config
	current atomic.Pointer[Snapshot] // swapped by Reload, under reload
	reload  sync.Mutex               // one Reload at a time, so that an older read never wins
}

// New returns a Catalog with an empty snapshot; call Reload before use.
func New(cfg Config) *Catalog {
	c := &Catalog{cfg: cfg}
	c.current.Store(newSnapshot(nil, nil, nil, 0))
	return c
}

// Current returns the snapshot of the last Reload; each writing method reloads.
func (c *Catalog) Current() *Snapshot { return c.current.Load() }

// Reload reads the catalog again: at the start and after a change event of its topics.
func (c *Catalog) Reload(ctx context.Context) error {
	c.reload.Lock()
	defer c.reload.Unlock()
	sites, err := c.cfg.Store.Sites(ctx)
	if err != nil {
		return fmt.Errorf("reload catalog: %w", err)
	}
	apps, err := c.cfg.Store.Apps(ctx)
	if err != nil {
		return fmt.Errorf("reload catalog: %w", err)
	}
	suffixes, version, err := c.cfg.Store.Suffixes(ctx)
	if err != nil {
		return fmt.Errorf("reload catalog: %w", err)
	}
	c.current.Store(newSnapshot(sites, apps, suffixes, version))
	return nil
}

// then reloads after a write that succeeded.
func (c *Catalog) then(ctx context.Context, err error) error {
	if err != nil {
		return err
	}
	return c.Reload(ctx)
}

// CreateSite adds a site; its name is a DNS label.
func (c *Catalog) CreateSite(ctx context.Context, name string) (Site, error) {
	s := Site{ID: ids.New[ids.SiteID](), Name: lowerName(name)}
	if err := checkLabel("name", s.Name); err != nil {
		return Site{}, err
	}
	return s, c.then(ctx, c.cfg.Store.CreateSite(ctx, s))
}

// RenameSite changes the name of a site.
func (c *Catalog) RenameSite(ctx context.Context, id ids.SiteID, name string) error {
	s := Site{ID: id, Name: lowerName(name)}
	if err := checkLabel("name", s.Name); err != nil {
		return err
	}
	return c.then(ctx, c.cfg.Store.RenameSite(ctx, s))
}

// DeleteSite removes an empty site.
func (c *Catalog) DeleteSite(ctx context.Context, id ids.SiteID) error {
	return c.then(ctx, c.cfg.Store.DeleteSite(ctx, id))
}

// CreateApp completes, checks and stores a new app and returns it with id and index.
func (c *Catalog) CreateApp(ctx context.Context, a App, now time.Time) (App, error) {
	var stored App
	err := c.cfg.Store.Atomically(ctx, func(ctx context.Context) (err error) {
		stored, err = c.createApp(ctx, a, now)
		return err
	})
	return stored, c.then(ctx, err)
}

func (c *Catalog) createApp(ctx context.Context, a App, now time.Time) (App, error) {
	a.ID, a.CreatedAt, a.UpdatedAt = ids.New[ids.AppID](), now, now
	if err := errors.Join(c.check(ctx, &a), c.checkTaken(ctx, &a)); err != nil {
		return App{}, err
	}
	return c.cfg.Store.CreateApp(ctx, a, now.Add(-IndexRest))
}

// UpdateApp replaces an app; a.Version is the version that the edit started from.
func (c *Catalog) UpdateApp(ctx context.Context, a App, now time.Time) (App, error) {
	var stored App
	err := c.cfg.Store.Atomically(ctx, func(ctx context.Context) (err error) {
		stored, err = c.updateApp(ctx, a, now)
		return err
	})
	return stored, c.then(ctx, err)
}

func (c *Catalog) updateApp(ctx context.Context, a App, now time.Time) (App, error) {
	a.UpdatedAt = now
	if err := errors.Join(c.check(ctx, &a), c.checkTaken(ctx, &a)); err != nil {
		return App{}, err
	}
	return c.cfg.Store.UpdateApp(ctx, a)
}

// DeleteApp removes an app of the given version; its index rests for IndexRest.
func (c *Catalog) DeleteApp(ctx context.Context, id ids.AppID, version uint64, now time.Time) error {
	return c.then(ctx, c.cfg.Store.DeleteApp(ctx, id, version, now))
}

// check completes the app and applies all rules about itself, with suffixes and sites as
// stored now.
func (c *Catalog) check(ctx context.Context, a *App) error {
	suffixes, _, err := c.cfg.Store.Suffixes(ctx)
	if err != nil {
		return err
	}
	rules := Rules{Suffixes: suffixes}
	if c.cfg.Reserved != nil {
		rules.Reserved = c.cfg.Reserved()
	}
	a.Complete()
	return errors.Join(a.Validate(rules), c.checkSites(ctx, a))
}

// checkTaken refuses a name that another app has, be it as label under any of the suffixes
// or as an extra name: which app a name opens must never depend on order.
func (c *Catalog) checkTaken(ctx context.Context, a *App) error {
	suffixes, _, err := c.cfg.Store.Suffixes(ctx)
	if err != nil {
		return err
	}
	apps, err := c.cfg.Store.Apps(ctx)
	if err != nil {
		return err
	}
	mine := a.claims(suffixes)
	for i := range apps {
		if apps[i].ID == a.ID {
			continue
		}
		for _, name := range apps[i].claims(suffixes) {
			if slices.Contains(mine, name) {
				return taken(name, &apps[i])
			}
		}
	}
	return nil
}

// taken says who has a name, and what to do when that is an app that nobody sees any more.
func taken(name string, by *App) error {
	if !by.Retired {
		return fmt.Errorf("name: %q belongs to the app %s: %w", name, by.Name, ErrExists)
	}
	return fmt.Errorf("name: %q is held by the retired app %s; bring it back with: postern admin app restore %s, or free the name with: postern admin app update %s --name %s: %w",
		name, by.Name, by.Name, by.Name, "OTHER-NAME", ErrExists)
}

// claims returns each name under which the app could be asked for.
func (a *App) claims(suffixes []string) []string {
	out := append([]string{a.Name}, a.ExtraNames...)
	for _, s := range suffixes {
		out = append(out, a.Name+"."+s)
	}
	return out
}

func (c *Catalog) checkSites(ctx context.Context, a *App) error {
	sites, err := c.cfg.Store.Sites(ctx)
	if err != nil {
		return err
	}
	for i, p := range a.Placements {
		if p.Site != "" && !slices.ContainsFunc(sites, func(s Site) bool { return s.ID == p.Site }) {
			return invalid(fmt.Sprintf("placements[%d].site", i), "site %s does not exist", p.Site)
		}
	}
	return nil
}

// SetSuffixes replaces the declared suffixes and returns warnings about them.
func (c *Catalog) SetSuffixes(ctx context.Context, suffixes []string, version uint64) ([]string, error) {
	clean, warnings, err := CheckSuffixes(suffixes)
	if err != nil {
		return nil, err
	}
	return warnings, c.then(ctx, c.cfg.Store.SetSuffixes(ctx, clean, version))
}
