package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/broker/store/storetest"
	"github.com/postern-zt/postern/proto/ids"
)

func testUser(issuer ids.IssuerID, subject string) directory.User {
	at := time.UnixMilli(1_700_000_000_123).UTC()
	return directory.User{
		ID: ids.New[ids.UserID](), Issuer: issuer, Subject: subject, Login: subject, Name: "Name of " + subject,
		Mail: subject + "@example.com", Attributes: map[string][]string{"team": {"a", "b"}},
		VerifiedAt: at, CreatedAt: at, UpdatedAt: at,
	}
}

func mustCreate(t *testing.T, s *store.Store, users ...directory.User) {
	t.Helper()
	for _, u := range users {
		if err := s.CreateUser(t.Context(), u); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDirectoryUsers(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		ann, idp := testUser(directory.Local, "ann"), ids.New[ids.IssuerID]()
		mustCreate(t, s, ann, testUser(idp, "ann"), testUser(idp, "bob"))
		for name, read := range map[string]func() (directory.User, error){
			"id":      func() (directory.User, error) { return s.User(t.Context(), ann.ID) },
			"subject": func() (directory.User, error) { return s.UserBySubject(t.Context(), directory.Local, "ann") },
			"login":   func() (directory.User, error) { return s.UserByLogin(t.Context(), directory.Local, "ann") },
		} {
			got, err := read()
			if diff := cmp.Diff(ann, got, cmpopts.EquateEmpty()); err != nil || diff != "" {
				t.Errorf("by %s: %v %s", name, err, diff)
			}
		}
		if _, err := s.User(t.Context(), ids.New[ids.UserID]()); !errors.Is(err, directory.ErrNotFound) {
			t.Errorf("unknown user: %v", err)
		}
		for name, u := range map[string]directory.User{
			"same subject":     testUser(idp, "bob"),
			"same local login": func() directory.User { u := testUser(directory.Local, "x"); u.Login = "ann"; return u }(),
		} {
			if err := s.CreateUser(t.Context(), u); !errors.Is(err, directory.ErrExists) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func TestDirectoryChangeUser(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		u := testUser(directory.Local, "ann")
		mustCreate(t, s, u)
		seen := -1
		changed, err := s.ChangeUser(t.Context(), u.ID, func(u *directory.User, owners int) error {
			seen = owners
			u.Login, u.Name, u.Mail, u.Disabled, u.Admin = "anna", "Anna", "anna@example.com", false, directory.RoleOwner
			u.Identity, u.GroupsIncomplete, u.Attributes = directory.IdentityStale, true, nil
			return nil
		})
		if err != nil || seen != 0 {
			t.Fatalf("ChangeUser: %v, owners %d", err, seen)
		}
		got, err := s.User(t.Context(), u.ID)
		if diff := cmp.Diff(changed, got, cmpopts.EquateEmpty()); err != nil || diff != "" || got.Login != "anna" {
			t.Errorf("after the change: %v %s", err, diff)
		}
		refused := errors.New("refused")
		_, err = s.ChangeUser(t.Context(), u.ID, func(u *directory.User, owners int) error {
			seen, u.Name = owners, "never"
			return refused
		})
		if got, _ := s.User(t.Context(), u.ID); !errors.Is(err, refused) || seen != 1 || got.Name != "Anna" {
			t.Errorf("refused change: %v, owners %d, name %q", err, seen, got.Name)
		}
	})
}

// TestDirectoryLastOwnerUnderContention has two owners demote each other at once: one stays.
func TestDirectoryLastOwnerUnderContention(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		d := directory.New(s, nil)
		var owners []ids.UserID
		for _, login := range []string{"ann", "bob", "eve"} {
			u, err := d.CreateLocal(t.Context(), login, "", "")
			if err == nil {
				_, err = d.SetRole(t.Context(), u.ID, directory.RoleOwner)
			}
			if err != nil {
				t.Fatal(err)
			}
			owners = append(owners, u.ID)
		}
		results := make(chan error, len(owners))
		for i, id := range owners {
			go func() {
				var err error
				if i%2 == 0 {
					_, err = d.Disable(context.WithoutCancel(t.Context()), id)
				} else {
					_, err = d.SetRole(context.WithoutCancel(t.Context()), id, directory.RoleNone)
				}
				results <- err
			}()
		}
		refused := 0
		for range owners {
			if err := <-results; errors.Is(err, directory.ErrLastOwner) {
				refused++
			} else if err != nil {
				t.Error(err)
			}
		}
		if ok, err := d.Owners(t.Context()); refused != 1 || !ok || err != nil {
			t.Errorf("refused %d, an owner left: %v, %v", refused, ok, err)
		}
	})
}

func TestDirectoryPages(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		d := directory.New(s, nil)
		g, err := d.CreateGroup(t.Context(), "Team")
		if err != nil {
			t.Fatal(err)
		}
		for i := range 7 {
			u, err := d.CreateLocal(t.Context(), fmt.Sprintf("user%d", i), "", "")
			if err == nil && i < 3 {
				err = d.AddToGroup(t.Context(), u.ID, g.ID)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		var seen []ids.UserID
		members := 0
		for after := ids.UserID(""); ; {
			page, err := d.Users(t.Context(), directory.Query{After: after, Limit: 3})
			if err != nil {
				t.Fatal(err)
			}
			if len(page) == 0 {
				break
			}
			for _, u := range page {
				seen = append(seen, u.ID)
				members += len(u.Groups)
			}
			after = page[len(page)-1].ID
		}
		if len(seen) != 7 || !slices.IsSorted(seen) || members != 3 {
			t.Errorf("pages: %d users, sorted %v, %d memberships", len(seen), slices.IsSorted(seen), members)
		}
		team, err := d.Users(t.Context(), directory.Query{Group: g.ID})
		if err != nil || len(team) != 3 {
			t.Errorf("group: %d users, %v", len(team), err)
		}
		if u, err := d.Find(t.Context(), "USER4"); err != nil || u.Login != "user4" {
			t.Errorf("Find = %+v, %v", u, err)
		}
		if _, err := d.Find(t.Context(), "nobody"); !errors.Is(err, directory.ErrNotFound) {
			t.Errorf("Find nobody: %v", err)
		}
	})
}

func TestDirectoryGroups(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		idp, ctx := ids.New[ids.IssuerID](), t.Context()
		u := testUser(idp, "ann")
		mustCreate(t, s, u)
		local := directory.Group{ID: ids.New[ids.GroupID](), Name: "eng", Source: directory.Local}
		if err := errors.Join(s.CreateGroup(ctx, local), s.AddMember(ctx, local.ID, u.ID), s.AddMember(ctx, local.ID, u.ID)); err != nil {
			t.Fatal(err)
		}
		names := func() (names []string) {
			got, err := s.User(ctx, u.ID)
			if err != nil {
				t.Fatal(err)
			}
			for _, id := range got.Groups {
				g, err := s.Group(ctx, id)
				if err != nil {
					t.Fatal(err)
				}
				names = append(names, string(g.Source[:3])+" "+g.Name)
			}
			slices.Sort(names)
			return names
		}
		for _, step := range []struct{ set, want []string }{
			{[]string{"eng", "ops"}, []string{"idp eng", "idp ops", "loc eng"}},
			{[]string{"ops"}, []string{"idp ops", "loc eng"}},
			{nil, []string{"loc eng"}},
		} {
			if err := s.SetSourceGroups(ctx, u.ID, idp, step.set); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(step.want, names()); diff != "" {
				t.Errorf("after %v: %s", step.set, diff)
			}
		}
		if err := s.CreateGroup(ctx, directory.Group{ID: ids.New[ids.GroupID](), Name: "eng", Source: directory.Local}); !errors.Is(err, directory.ErrExists) {
			t.Errorf("second group of this name: %v", err)
		}
		if err := s.AddMember(ctx, ids.New[ids.GroupID](), u.ID); !errors.Is(err, directory.ErrNotFound) {
			t.Errorf("unknown group: %v", err)
		}
		if err := s.AddMember(ctx, local.ID, ids.New[ids.UserID]()); !errors.Is(err, directory.ErrNotFound) {
			t.Errorf("unknown user: %v", err)
		}
		if err := s.DeleteGroup(ctx, local.ID); err != nil || len(names()) != 0 {
			t.Errorf("after delete: %v, %v", err, names())
		}
		if err := s.DeleteGroup(ctx, local.ID); !errors.Is(err, directory.ErrNotFound) {
			t.Errorf("second delete: %v", err)
		}
	})
}

// TestDirectoryAnnouncesRealChangesOnly: a push to every connector hangs on each event.
func TestDirectoryAnnouncesRealChangesOnly(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s, ctx := open(), t.Context()
		idp := ids.New[ids.IssuerID]()
		u := testUser(idp, "ann")
		mustCreate(t, s, u)
		if err := s.SetSourceGroups(ctx, u.ID, idp, []string{"eng"}); err != nil {
			t.Fatal(err)
		}
		group, err := s.GroupByName(ctx, idp, "eng")
		if err != nil {
			t.Fatal(err)
		}
		for name, c := range map[string]struct {
			do   func() error
			want bool
		}{
			"same groups":   {func() error { return s.SetSourceGroups(ctx, u.ID, idp, []string{"eng"}) }, false},
			"member again":  {func() error { return s.AddMember(ctx, group.ID, u.ID) }, false},
			"unknown state": {func() error { _, err := s.User(ctx, u.ID); return err }, false},
			"disable":       {func() error { _, err := directory.New(s, nil).Disable(ctx, u.ID); return err }, true},
		} {
			before, err := s.Version(ctx)
			if err == nil {
				err = c.do()
			}
			after, err2 := s.Version(ctx)
			if err := errors.Join(err, err2); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if got := after.Seq > before.Seq; got != c.want {
				t.Errorf("%s: announced = %v", name, got)
			}
		}
	})
}
