// Package directory is the broker's list of people: users, their groups and attributes.
//
// A user is keyed by (issuer, subject): the issuer is an external OpenID provider or Local,
// the subject is what that issuer never changes. Login, name and mail may change and decide
// nothing. Groups come from an issuer's claims or are kept locally; a person whose issuer
// could not name all groups is marked GroupsIncomplete, which is not "has no groups": a
// decision about such a person must deny with reason groups_incomplete, because a rule that
// forbids a group could otherwise be escaped by being in too many.
//
// broker/identity writes here at sign-in, the admin API through the same methods, the
// decision maker reads. The package knows nothing of passwords, tokens or HTTP. It holds the
// rules (which names are allowed, the last owner stays), the store behind it only keeps rows
// and announces changes under the topics TopicUser and TopicGroup with the id as key.
//
// A Directory is safe for concurrent use; it has no state of its own.
package directory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/postern-zt/postern/proto/ids"
)

// Topics of the change events that the store writes with each change.
const (
	TopicUser  = "user"
	TopicGroup = "group"
)

// Local is the issuer of the users whose password the broker itself keeps.
const Local ids.IssuerID = "local"

// Role is what a user may administer. The zero value may nothing.
type Role string

// Roles. More of them come with the console; an unknown one counts as RoleNone.
const (
	RoleNone  Role = ""
	RoleOwner Role = "owner"
)

// IdentityState says how fresh the issuer's word about a user is.
type IdentityState string

// Identity states.
const (
	// IdentityFresh: the issuer confirmed the user at the last sign-in or re-verification.
	IdentityFresh IdentityState = ""
	// IdentityStale: the issuer could not be asked; sessions go on by the app's outage mode.
	IdentityStale IdentityState = "stale"
	// IdentityRefused: the issuer no longer confirms the user, who has to sign in again.
	IdentityRefused IdentityState = "refused"
)

// User is one person.
type User struct {
	ID      ids.UserID
	Issuer  ids.IssuerID
	Subject string
	// Login is what the person types; unique among Local users, informative elsewhere.
	Login string
	Name  string
	Mail  string

	Disabled bool
	Admin    Role
	Identity IdentityState
	// VerifiedAt is when the issuer last confirmed the user; zero before the first sign-in.
	VerifiedAt time.Time

	// Attributes are the values mapped from claims, each list sorted.
	Attributes map[string][]string
	// Groups holds all memberships, local ones and those from claims, sorted.
	Groups []ids.GroupID
	// GroupsIncomplete says that the issuer did not name all groups; Groups then holds the
	// last complete list and must not be read as the truth.
	GroupsIncomplete bool

	CreatedAt time.Time
	UpdatedAt time.Time
}

// Usable reports whether the user may hold a session at all.
func (u User) Usable() bool { return !u.Disabled && u.Identity != IdentityRefused }

// Group is a named set of users. Names are unique within a source.
type Group struct {
	ID   ids.GroupID
	Name string
	// Source is Local or the issuer whose claims keep the membership.
	Source ids.IssuerID
}

// Query selects users for a list.
type Query struct {
	// Text matches login, name, mail or id as a whole, ignoring case; empty matches everyone.
	Text string
	// Group limits the list to its members; empty does not.
	Group ids.GroupID
	// After is the last id of the page before; empty starts at the first.
	After ids.UserID
	// Limit is the length of a page; zero means MaxPage, more is cut to MaxPage.
	Limit int
}

// MaxPage bounds one page of users: about 1 MiB of JSON.
const MaxPage = 1000

// Store keeps users and groups. broker/store implements it on both engines. Each method is
// one transaction and announces its changes. Errors satisfy errors.Is with those of this
// package.
type Store interface {
	User(ctx context.Context, id ids.UserID) (User, error)
	UserBySubject(ctx context.Context, issuer ids.IssuerID, subject string) (User, error)
	UserByLogin(ctx context.Context, issuer ids.IssuerID, login string) (User, error)
	Users(ctx context.Context, q Query) ([]User, error)
	// CreateUser stores a user without its groups; ErrExists for a taken (issuer, subject)
	// or local login.
	CreateUser(ctx context.Context, u User) error
	// ChangeUser loads the user and the number of owners who are not disabled, lets change
	// edit the user (not its id, issuer, subject or groups), and stores the result; an error
	// of change leaves everything as it was.
	ChangeUser(ctx context.Context, id ids.UserID, change func(u *User, activeOwners int) error) (User, error)
	// SetSourceGroups replaces the memberships that come from source by the named groups,
	// which are created when missing. Memberships of other sources stay.
	SetSourceGroups(ctx context.Context, id ids.UserID, source ids.IssuerID, names []string) error

	Group(ctx context.Context, id ids.GroupID) (Group, error)
	GroupByName(ctx context.Context, source ids.IssuerID, name string) (Group, error)
	Groups(ctx context.Context) ([]Group, error)
	CreateGroup(ctx context.Context, g Group) error
	DeleteGroup(ctx context.Context, id ids.GroupID) error
	AddMember(ctx context.Context, group ids.GroupID, user ids.UserID) error
	RemoveMember(ctx context.Context, group ids.GroupID, user ids.UserID) error
}

// Directory applies the rules on top of a Store.
type Directory struct {
	store Store
	now   func() time.Time
}

// New returns a Directory over store. A nil now means time.Now.
func New(store Store, now func() time.Time) *Directory {
	if now == nil {
		now = time.Now
	}
	return &Directory{store: store, now: now}
}

// User returns one user.
func (d *Directory) User(ctx context.Context, id ids.UserID) (User, error) {
	return d.store.User(ctx, id)
}

// UserByLogin returns the local user with this login, ignoring case.
func (d *Directory) UserByLogin(ctx context.Context, login string) (User, error) {
	return d.store.UserByLogin(ctx, Local, strings.ToLower(strings.TrimSpace(login)))
}

// UserBySubject returns the user that issuer calls subject.
func (d *Directory) UserBySubject(ctx context.Context, issuer ids.IssuerID, subject string) (User, error) {
	return d.store.UserBySubject(ctx, issuer, subject)
}

// Users returns one page of users in the order of their ids.
func (d *Directory) Users(ctx context.Context, q Query) ([]User, error) {
	if q.Limit <= 0 || q.Limit > MaxPage {
		q.Limit = MaxPage
	}
	q.Text = strings.ToLower(strings.TrimSpace(q.Text))
	return d.store.Users(ctx, q)
}

// Find returns the one user whose id, login, mail or name is text. Several matches are
// ErrAmbiguous: an admin's command must not pick one of two people.
func (d *Directory) Find(ctx context.Context, text string) (User, error) {
	if strings.TrimSpace(text) == "" {
		return User{}, fmt.Errorf("find user: %w", ErrNotFound)
	}
	found, err := d.Users(ctx, Query{Text: text, Limit: 2})
	switch {
	case err != nil:
		return User{}, err
	case len(found) == 0:
		return User{}, fmt.Errorf("find user: %w", ErrNotFound)
	case len(found) > 1:
		return User{}, fmt.Errorf("find user: %w", ErrAmbiguous)
	}
	return found[0], nil
}

// CreateLocal adds a user whose password the broker keeps. name may be empty.
func (d *Directory) CreateLocal(ctx context.Context, login, name, mail string) (User, error) {
	id := ids.New[ids.UserID]()
	u := User{
		ID: id, Issuer: Local, Subject: string(id),
		Login: strings.ToLower(strings.TrimSpace(login)),
		Name:  strings.TrimSpace(name), Mail: strings.TrimSpace(mail),
		CreatedAt: d.now(), UpdatedAt: d.now(),
	}
	if u.Name == "" {
		u.Name = u.Login
	}
	if err := CheckLocal(u.Login, u.Name, u.Mail); err != nil {
		return User{}, err
	}
	return u, d.store.CreateUser(ctx, u)
}

// Apply stores what an issuer said about one of its users at sign-in or re-verification and
// returns the result. An unknown subject becomes a new user.
func (d *Directory) Apply(ctx context.Context, issuer ids.IssuerID, subject string, p Profile) (User, error) {
	u, err := d.store.UserBySubject(ctx, issuer, subject)
	if errors.Is(err, ErrNotFound) {
		u, err = d.createExternal(ctx, issuer, subject, p)
	}
	if err != nil {
		return User{}, err
	}
	if !p.GroupsIncomplete {
		if err := d.store.SetSourceGroups(ctx, u.ID, issuer, p.Groups); err != nil {
			return User{}, fmt.Errorf("apply groups: %w", err)
		}
	}
	return d.store.ChangeUser(ctx, u.ID, func(u *User, _ int) error {
		p.applyTo(u)
		u.Identity, u.VerifiedAt, u.UpdatedAt = IdentityFresh, d.now(), d.now()
		return nil
	})
}

// createExternal adds the row; a second broker that was faster is not an error.
func (d *Directory) createExternal(ctx context.Context, issuer ids.IssuerID, subject string, p Profile) (User, error) {
	u := User{
		ID: ids.New[ids.UserID](), Issuer: issuer, Subject: subject,
		CreatedAt: d.now(), UpdatedAt: d.now(),
	}
	p.applyTo(&u) // texts of a Profile are within the limits already
	if err := checkText("subject", subject, 1, maxSubject); err != nil {
		return User{}, err
	}
	err := d.store.CreateUser(ctx, u)
	if errors.Is(err, ErrExists) {
		return d.store.UserBySubject(ctx, issuer, subject)
	}
	return u, err
}

// SetIdentity records how fresh the issuer's word is.
func (d *Directory) SetIdentity(ctx context.Context, id ids.UserID, state IdentityState) (User, error) {
	return d.store.ChangeUser(ctx, id, func(u *User, _ int) error {
		if u.Identity == state && state != IdentityFresh {
			return nil
		}
		u.Identity, u.UpdatedAt = state, d.now()
		if state == IdentityFresh {
			u.VerifiedAt = d.now()
		}
		return nil
	})
}

// Disable ends a user's access until Enable. The last owner cannot be disabled.
func (d *Directory) Disable(ctx context.Context, id ids.UserID) (User, error) {
	return d.store.ChangeUser(ctx, id, func(u *User, activeOwners int) error {
		if u.Admin == RoleOwner && !u.Disabled && activeOwners <= 1 {
			return ErrLastOwner
		}
		u.Disabled, u.UpdatedAt = true, d.now()
		return nil
	})
}

// Enable undoes Disable.
func (d *Directory) Enable(ctx context.Context, id ids.UserID) (User, error) {
	return d.store.ChangeUser(ctx, id, func(u *User, _ int) error {
		u.Disabled, u.UpdatedAt = false, d.now()
		return nil
	})
}

// SetRole changes what a user may administer. The last owner stays owner.
func (d *Directory) SetRole(ctx context.Context, id ids.UserID, role Role) (User, error) {
	if role != RoleNone && role != RoleOwner {
		return User{}, fmt.Errorf("%w: unknown role %q", ErrInvalid, role)
	}
	return d.store.ChangeUser(ctx, id, func(u *User, activeOwners int) error {
		if u.Admin == RoleOwner && role != RoleOwner && !u.Disabled && activeOwners <= 1 {
			return ErrLastOwner
		}
		u.Admin, u.UpdatedAt = role, d.now()
		return nil
	})
}

// Owners returns whether at least one owner who is not disabled exists.
func (d *Directory) Owners(ctx context.Context) (bool, error) {
	for after := ids.UserID(""); ; {
		page, err := d.Users(ctx, Query{After: after})
		if err != nil || len(page) == 0 {
			return false, err
		}
		if slices.ContainsFunc(page, func(u User) bool { return u.Admin == RoleOwner && !u.Disabled }) {
			return true, nil
		}
		after = page[len(page)-1].ID
	}
}

// CreateGroup adds a local group.
func (d *Directory) CreateGroup(ctx context.Context, name string) (Group, error) {
	g := Group{ID: ids.New[ids.GroupID](), Name: strings.TrimSpace(name), Source: Local}
	if err := checkText("group name", g.Name, 1, maxGroupName); err != nil {
		return Group{}, err
	}
	return g, d.store.CreateGroup(ctx, g)
}

// DeleteGroup removes a group and its memberships.
func (d *Directory) DeleteGroup(ctx context.Context, id ids.GroupID) error {
	return d.store.DeleteGroup(ctx, id)
}

// Group returns one group.
func (d *Directory) Group(ctx context.Context, id ids.GroupID) (Group, error) {
	return d.store.Group(ctx, id)
}

// Groups returns all groups, sorted by name.
func (d *Directory) Groups(ctx context.Context) ([]Group, error) { return d.store.Groups(ctx) }

// FindGroup returns the group with this id or, among all sources, this name.
func (d *Directory) FindGroup(ctx context.Context, text string) (Group, error) {
	all, err := d.store.Groups(ctx)
	if err != nil {
		return Group{}, err
	}
	found := slices.DeleteFunc(all, func(g Group) bool { return string(g.ID) != text && !strings.EqualFold(g.Name, text) })
	switch len(found) {
	case 0:
		return Group{}, fmt.Errorf("find group: %w", ErrNotFound)
	case 1:
		return found[0], nil
	default:
		return Group{}, fmt.Errorf("find group: %w", ErrAmbiguous)
	}
}

// AddToGroup makes a user a member of a local group; groups from claims belong to their issuer.
func (d *Directory) AddToGroup(ctx context.Context, user ids.UserID, group ids.GroupID) error {
	if err := d.requireLocalGroup(ctx, group); err != nil {
		return err
	}
	return d.store.AddMember(ctx, group, user)
}

// RemoveFromGroup ends a membership in a local group.
func (d *Directory) RemoveFromGroup(ctx context.Context, user ids.UserID, group ids.GroupID) error {
	if err := d.requireLocalGroup(ctx, group); err != nil {
		return err
	}
	return d.store.RemoveMember(ctx, group, user)
}

func (d *Directory) requireLocalGroup(ctx context.Context, id ids.GroupID) error {
	g, err := d.store.Group(ctx, id)
	if err != nil {
		return err
	}
	if g.Source != Local {
		return fmt.Errorf("%w: the members of %q come from its issuer", ErrInvalid, g.Name)
	}
	return nil
}
