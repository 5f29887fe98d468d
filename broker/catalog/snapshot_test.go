package catalog_test

import (
	"context"
	"slices"
	"testing"

	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/proto/ids"
)

// fixed is a store with content that the rules of this program might refuse, as after a
// downgrade. The rest of the contract is tested with the real engines in broker/store.
type fixed struct {
	catalog.Store
	apps []catalog.App
}

func (f fixed) Apps(context.Context) ([]catalog.App, error) { return slices.Clone(f.apps), nil }
func (fixed) Sites(context.Context) ([]catalog.Site, error) {
	return []catalog.Site{{ID: "sit_1", Name: "berlin"}}, nil
}
func (fixed) Suffixes(context.Context) ([]string, uint64, error) {
	return []string{"corp.internal", "lab.internal"}, 3, nil
}

func TestSnapshot(t *testing.T) {
	good, retired, broken := app(), app(), app()
	good.ID, retired.ID, broken.ID = "app_1", "app_2", "app_3"
	retired.Name, retired.ExtraNames, retired.Retired = "old", nil, true
	broken.Name, broken.ExtraNames, broken.Class = "new", nil, "from a newer program"
	apps := []catalog.App{good, retired, broken}
	for i := range apps {
		apps[i].Complete()
	}
	c := catalog.New(catalog.Config{Store: fixed{apps: apps}})
	if err := c.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := c.Current()
	for name, want := range map[string]ids.AppID{
		"wiki": "app_1", "WIKI.corp.internal.": "app_1", "docs.corp.internal": "app_1", "old": "app_2",
		"wiki.lab.internal": "", "new": "", "nothing": "",
	} {
		got, ok := s.Lookup(name)
		if ok != (want != "") || (ok && got.ID != want) {
			t.Errorf("Lookup(%q) = %v, %v, want %q", name, got, ok, want)
		}
	}
	if at := s.AtSite("sit_1"); len(at) != 1 || at[0].ID != "app_1" {
		t.Errorf("apps at the site: %v, want the one that is neither retired nor broken", at)
	}
	if len(s.Broken) != 1 || len(s.Apps()) != 2 || s.SuffixVersion() != 3 {
		t.Errorf("%d broken, %d apps, version %d", len(s.Broken), len(s.Apps()), s.SuffixVersion())
	}
	if got, ok := s.SiteByName("Berlin"); !ok || got.ID != "sit_1" {
		t.Errorf("SiteByName = %v, %v", got, ok)
	}
	if names := good.Names(s.Suffixes()); names[0] != "Wiki.corp.internal" {
		t.Errorf("names = %v", names)
	}
}
