package store_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/broker/store/storetest"
	"github.com/postern-zt/postern/proto/ids"
)

// day is the beginning of all tests that need a time.
var day = time.Date(2026, 11, 2, 9, 0, 0, 0, time.UTC)

func newCatalog(t *testing.T, s *store.Store) *catalog.Catalog {
	t.Helper()
	c := catalog.New(catalog.Config{Store: s})
	if err := c.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

func mustSite(t *testing.T, c *catalog.Catalog, name string) catalog.Site {
	t.Helper()
	site, err := c.CreateSite(t.Context(), name)
	if err != nil {
		t.Fatalf("CreateSite(%q): %v", name, err)
	}
	return site
}

func mustApp(t *testing.T, c *catalog.Catalog, name, target string, site ids.SiteID, now time.Time) catalog.App {
	t.Helper()
	tg, err := catalog.ParseTarget(target)
	if err != nil {
		t.Fatal(err)
	}
	a, err := c.CreateApp(t.Context(), catalog.App{
		Name: name, Placements: []catalog.Placement{{Site: site, Targets: []catalog.Target{tg}}},
	}, now)
	if err != nil {
		t.Fatalf("CreateApp(%q): %v", name, err)
	}
	return a
}

func TestAppSurvivesRestart(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		c := newCatalog(t, open())
		site := mustSite(t, c, "berlin")
		made := mustApp(t, c, "wiki", "80=10.0.0.5:8080", site.ID, day)
		if made.Index != 1 || made.Version != 1 {
			t.Errorf("index %d, version %d, want 1, 1", made.Index, made.Version)
		}
		got, ok := newCatalog(t, open()).Current().App(made.ID)
		if !ok {
			t.Fatal("the app is gone after a restart")
		}
		if diff := cmp.Diff(made, *got); diff != "" {
			t.Errorf("app after a restart (-made +read):\n%s", diff)
		}
	})
}

func TestAppIndexRests(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		c := newCatalog(t, open())
		site := mustSite(t, c, "berlin").ID
		mustApp(t, c, "a", "10.0.0.1:80", site, day)
		b := mustApp(t, c, "b", "10.0.0.2:80", site, day)
		if err := c.DeleteApp(t.Context(), b.ID, b.Version, day); err != nil {
			t.Fatal(err)
		}
		if got := mustApp(t, c, "c", "10.0.0.3:80", site, day.Add(catalog.IndexRest)); got.Index != 3 {
			t.Errorf("index after 30 days = %d, want 3: index 2 still rests", got.Index)
		}
		if got := mustApp(t, c, "d", "10.0.0.4:80", site, day.Add(catalog.IndexRest+time.Second)); got.Index != 2 {
			t.Errorf("index after more than 30 days = %d, want 2 again", got.Index)
		}
		if got := mustApp(t, newCatalog(t, open()), "e", "10.0.0.4:80", site, day.Add(2*catalog.IndexRest)); got.Index != 4 {
			t.Errorf("index after a restart = %d, want 4", got.Index)
		}
	})
}

func TestStaleEditIsRefused(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		c := newCatalog(t, open())
		a := mustApp(t, c, "wiki", "10.0.0.1:80", mustSite(t, c, "berlin").ID, day)
		first := a
		first.Owner.Text = "team one"
		stored, err := c.UpdateApp(t.Context(), first, day.Add(time.Hour))
		if err != nil || stored.Version != 2 || stored.Index != a.Index || !stored.CreatedAt.Equal(day) {
			t.Fatalf("first edit = version %d, index %d, %v", stored.Version, stored.Index, err)
		}
		second := a
		second.Owner.Text = "team two"
		if _, err := c.UpdateApp(t.Context(), second, day); !errors.Is(err, catalog.ErrConflict) {
			t.Errorf("edit of version 1 = %v, want ErrConflict", err)
		}
		if err := c.DeleteApp(t.Context(), a.ID, 1, day); !errors.Is(err, catalog.ErrConflict) {
			t.Errorf("deletion of version 1 = %v, want ErrConflict", err)
		}
		if got, _ := c.Current().App(a.ID); got.Owner.Text != "team one" {
			t.Errorf("owner = %q, want the first edit", got.Owner.Text)
		}
	})
}

func TestNamesAreUnique(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		c := newCatalog(t, open())
		if _, err := c.SetSuffixes(t.Context(), []string{"corp.internal"}, 1); err != nil {
			t.Fatal(err)
		}
		site := mustSite(t, c, "berlin")
		if _, err := c.CreateSite(t.Context(), "Berlin"); !errors.Is(err, catalog.ErrExists) {
			t.Errorf("second site of the name = %v, want ErrExists", err)
		}
		mustApp(t, c, "wiki", "10.0.0.1:80", site.ID, day)
		place := []catalog.Placement{{Site: site.ID, Targets: []catalog.Target{{Host: "10.0.0.2", Port: 80}}}}
		for _, a := range []catalog.App{
			{Name: "wiki", Placements: place},
			{Name: "other", ExtraNames: []string{"wiki.corp.internal"}, Placements: place},
		} {
			if _, err := c.CreateApp(t.Context(), a, day); !errors.Is(err, catalog.ErrExists) {
				t.Errorf("CreateApp(%s, %v) = %v, want ErrExists", a.Name, a.ExtraNames, err)
			}
		}
		ok := catalog.App{Name: "other", ExtraNames: []string{"w.corp.internal"}, Placements: place}
		if _, err := c.CreateApp(t.Context(), ok, day); err != nil {
			t.Errorf("app with a free extra name: %v", err)
		}
	})
}

func TestSiteInUseStays(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		c := newCatalog(t, open())
		used, free := mustSite(t, c, "used"), mustSite(t, c, "free")
		mustApp(t, c, "wiki", "10.0.0.1:80", used.ID, day)
		if err := c.DeleteSite(t.Context(), used.ID); !errors.Is(err, catalog.ErrConflict) {
			t.Errorf("DeleteSite of a used site = %v, want ErrConflict", err)
		}
		if err := c.DeleteSite(t.Context(), free.ID); err != nil {
			t.Errorf("DeleteSite of a free site: %v", err)
		}
		if err := c.DeleteSite(t.Context(), free.ID); !errors.Is(err, catalog.ErrNotFound) {
			t.Errorf("second DeleteSite = %v, want ErrNotFound", err)
		}
		if _, err := c.CreateApp(t.Context(), catalog.App{Name: "x", Placements: []catalog.Placement{
			{Site: free.ID, Targets: []catalog.Target{{Host: "10.0.0.2", Port: 80}}},
		}}, day); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("app at a deleted site = %v, want ErrInvalid", err)
		}
	})
}

func TestSuffixesByVersion(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		c := newCatalog(t, open())
		version := c.Current().SuffixVersion()
		if _, err := c.SetSuffixes(t.Context(), []string{"Corp.Internal."}, version); err != nil {
			t.Fatal(err)
		}
		if _, err := c.SetSuffixes(t.Context(), []string{"other.internal"}, version); !errors.Is(err, catalog.ErrConflict) {
			t.Errorf("second edit of one version = %v, want ErrConflict", err)
		}
		if diff := cmp.Diff([]string{"corp.internal"}, newCatalog(t, open()).Current().Suffixes()); diff != "" {
			t.Errorf("suffixes after a restart: %s", diff)
		}
	})
}

func TestPublishAndPropose(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		c := newCatalog(t, open())
		berlin, paris := mustSite(t, c, "berlin").ID, mustSite(t, c, "paris").ID
		trusted, other := ids.New[ids.ConnectorID](), ids.New[ids.ConnectorID]()
		wiki := catalog.Wish{Name: "wiki", Target: "10.0.0.5:80"}
		publish := func(con ids.ConnectorID, site ids.SiteID, may bool, w catalog.Wish) catalog.Outcome {
			t.Helper()
			out, err := c.Publish(t.Context(), con, site, may, w, day)
			if err != nil {
				t.Fatalf("Publish(%v): %v", w, err)
			}
			return out
		}
		if got := publish(trusted, berlin, true, wiki); got != catalog.Published {
			t.Errorf("new app with the right = %s, want published", got)
		}
		if got := publish(trusted, berlin, true, wiki); got != catalog.Unchanged {
			t.Errorf("same app again = %s, want unchanged", got)
		}
		// A connector of another site must not draw the traffic of an app that exists.
		if got := publish(other, paris, true, wiki); got != catalog.Proposed {
			t.Errorf("app of another site = %s, want proposed", got)
		}
		if got := publish(other, paris, false, catalog.Wish{Name: "git", Target: "10.0.0.6:22"}); got != catalog.Proposed {
			t.Errorf("new app without the right = %s, want proposed", got)
		}
		if _, ok := c.Current().Lookup("git"); ok {
			t.Error("a proposal is in the catalog")
		}
		checkApproval(t, c, other, paris)
	})
}

// checkApproval approves git, rejects wiki of the connector.
func checkApproval(t *testing.T, c *catalog.Catalog, con ids.ConnectorID, site ids.SiteID) {
	t.Helper()
	if _, err := c.Approve(t.Context(), con, "git", day); err != nil {
		t.Fatalf("Approve: %v", err)
	}
	if a, ok := c.Current().Lookup("git"); !ok || len(a.At(site)) != 1 {
		t.Error("the approved app is not in the catalog")
	}
	if _, err := c.Approve(t.Context(), con, "git", day); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("second Approve = %v, want ErrConflict", err)
	}
	if err := c.Reject(t.Context(), con, "wiki", day); err != nil {
		t.Fatalf("Reject: %v", err)
	}
	got, err := c.Publish(t.Context(), con, site, true, catalog.Wish{Name: "wiki", Target: "10.0.0.5:80"}, day)
	if err != nil || got != catalog.Refused {
		t.Errorf("the rejected wish again = %s, %v, want refused", got, err)
	}
	if a, _ := c.Current().Lookup("wiki"); len(a.Placements) != 1 {
		t.Error("the rejected target is in the catalog")
	}
}

// TestRetiredAppHoldsItsName: against people and connectors, with the way out in the refusal,
// until it is brought back or renamed.
func TestRetiredAppHoldsItsName(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		c := newCatalog(t, open())
		site, con := mustSite(t, c, "berlin").ID, ids.New[ids.ConnectorID]()
		wish := catalog.Wish{Name: "wiki", Target: "10.0.0.5:80"}
		if got, err := c.Publish(t.Context(), con, site, true, wish, day); err != nil || got != catalog.Published {
			t.Fatalf("Publish = %s, %v", got, err)
		}
		found, _ := c.Current().Lookup("wiki")
		app := *found
		app.Retired = true
		app, err := c.UpdateApp(t.Context(), app, day)
		if err != nil {
			t.Fatal(err)
		}
		again := catalog.App{Name: "wiki", Placements: app.Placements}
		for name, try := range map[string]func() error{
			"a person":    func() error { _, err := c.CreateApp(t.Context(), again, day); return err },
			"a connector": func() error { _, err := c.Publish(t.Context(), con, site, true, wish, day); return err },
		} {
			if err := try(); !errors.Is(err, catalog.ErrExists) || !strings.Contains(err.Error(), "postern admin app restore wiki") {
				t.Errorf("%s: %v, want ErrExists with the way out", name, err)
			}
		}
		app.Name = "wiki-of-before"
		if _, err := c.UpdateApp(t.Context(), app, day); err != nil {
			t.Fatal(err)
		}
		if _, err := c.CreateApp(t.Context(), again, day); err != nil {
			t.Errorf("after the name is free: %v", err)
		}
		if _, err := c.CreateApp(t.Context(), again, day); !errors.Is(err, catalog.ErrExists) || strings.Contains(err.Error(), "retired") {
			t.Errorf("a name of an app in use: %v", err)
		}
	})
}
