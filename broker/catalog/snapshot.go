package catalog

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/postern-zt/postern/proto/ids"
)

// Site is a place with private apps.
type Site struct {
	ID   ids.SiteID
	Name string
}

// Snapshot is the catalog as it was at one moment, with its look-ups. It is immutable.
type Snapshot struct {
	sites    []Site
	apps     []*App
	suffixes []string
	// suffixVersion is the version that an edit of the suffixes starts from.
	suffixVersion uint64
	byID          map[ids.AppID]*App
	byName        map[string]*App
	bySite        map[ids.SiteID][]*App
	siteByID      map[ids.SiteID]Site
	// Broken names apps in the store that break the rules and are offered to nobody.
	Broken []error
}

// newSnapshot indexes what the store returned. An app that does not hold the rules of this
// program is left out: it must open nothing.
func newSnapshot(sites []Site, apps []App, suffixes []string, suffixVersion uint64) *Snapshot {
	s := &Snapshot{
		sites: sites, suffixes: suffixes, suffixVersion: suffixVersion,
		byID: map[ids.AppID]*App{}, byName: map[string]*App{},
		bySite: map[ids.SiteID][]*App{}, siteByID: map[ids.SiteID]Site{},
	}
	for _, site := range sites {
		s.siteByID[site.ID] = site
	}
	for i := range apps {
		s.add(&apps[i])
	}
	slices.SortFunc(s.apps, func(a, b *App) int { return cmp.Compare(a.Name, b.Name) })
	return s
}

func (s *Snapshot) add(a *App) {
	// Names stay valid when their suffix is withdrawn later: they just do not resolve.
	rules := Rules{Suffixes: append(a.suffixesOfExtraNames(), s.suffixes...)}
	if err := a.Validate(rules); err != nil {
		s.Broken = append(s.Broken, fmt.Errorf("app %s: %w", a, err))
		return
	}
	s.apps = append(s.apps, a)
	s.byID[a.ID] = a
	for _, name := range a.Names(s.suffixes) {
		s.byName[name] = a
	}
	s.byName[a.Name] = a
	if a.Retired {
		return
	}
	for _, p := range a.Placements {
		s.bySite[p.Site] = append(s.bySite[p.Site], a)
	}
}

func (a *App) suffixesOfExtraNames() []string {
	var out []string
	for _, name := range a.ExtraNames {
		if _, rest, ok := strings.Cut(name, "."); ok {
			out = append(out, rest)
		}
	}
	return out
}

// Sites returns all sites by name.
func (s *Snapshot) Sites() []Site { return slices.Clone(s.sites) }

// Site returns one site.
func (s *Snapshot) Site(id ids.SiteID) (Site, bool) {
	site, ok := s.siteByID[id]
	return site, ok
}

// SiteByName returns the site of this name.
func (s *Snapshot) SiteByName(name string) (Site, bool) {
	i := slices.IndexFunc(s.sites, func(site Site) bool { return site.Name == lowerName(name) })
	if i < 0 {
		return Site{}, false
	}
	return s.sites[i], true
}

// Apps returns all apps by name, retired ones too.
func (s *Snapshot) Apps() []*App { return slices.Clone(s.apps) }

// App returns one app, also a retired one.
func (s *Snapshot) App(id ids.AppID) (*App, bool) {
	a, ok := s.byID[id]
	return a, ok
}

// Lookup returns the app that has this label or full name, in any case.
func (s *Snapshot) Lookup(name string) (*App, bool) {
	a, ok := s.byName[lowerName(name)]
	return a, ok
}

// AtSite returns the apps that are not retired and are placed at a site, by name.
func (s *Snapshot) AtSite(site ids.SiteID) []*App {
	list := slices.Clone(s.bySite[site])
	slices.SortFunc(list, func(a, b *App) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// Suffixes returns the declared suffixes, the first being the one that app names get.
func (s *Snapshot) Suffixes() []string { return slices.Clone(s.suffixes) }

// SuffixVersion is what SetSuffixes wants back.
func (s *Snapshot) SuffixVersion() uint64 { return s.suffixVersion }
