package admincli

import (
	"context"
	"fmt"
	"io"
	"strings"

	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
)

type userCmd struct {
	List    userListCmd    `cmd:"" help:"List people." example:"postern admin user list"`
	Add     userAddCmd     `cmd:"" help:"Add a person and print the invitation to hand over." example:"postern admin user add ann --name 'Ann Lee' --group staff"`
	Invite  userInviteCmd  `cmd:"" help:"Print a new invitation: a new password, or one that got lost." example:"postern admin user invite ann"`
	Disable userDisableCmd `cmd:"" help:"Disable a person; everything open ends at once." example:"postern admin user disable ann --reason 'left the company'"`
	Enable  userEnableCmd  `cmd:"" help:"Let a disabled person sign in again." example:"postern admin user enable ann"`
	SignOut userSignOutCmd `cmd:"" help:"End all sessions of a person, who may sign in again." example:"postern admin user sign-out ann"`
}

// pageSize is how many rows are asked for at once.
const pageSize = 200

type userListCmd struct {
	Filter string `arg:"" optional:"" help:"Text in login, name or mail."`
}

// Run lists people.
func (l *userListCmd) Run(ctx context.Context, c *Conn) error {
	all := &adminv1.ListUsersResponse{}
	for page := (&adminv1.Page{Size: pageSize}); ; page.Token = all.Next {
		part, err := ask(ctx, c, c.user.ListUsers, &adminv1.ListUsersRequest{Filter: l.Filter, Page: page})
		if err != nil {
			return err
		}
		all.Users, all.Next = append(all.Users, part.Users...), part.Next
		if all.Next == "" {
			break
		}
	}
	t := columns("LOGIN", "NAME", "MAIL", "ROLE", "GROUPS", "STATE", "SEEN")
	for _, u := range all.Users {
		t.add(u.Subject, u.Name, u.Mail, u.Role, strings.Join(u.Groups, ", "), stateOf(u), c.print.ago(u.LastSeenMs))
	}
	return c.print.table(all, "Nobody is there yet. Add somebody: postern admin user add LOGIN", t)
}

func stateOf(u *adminv1.User) string {
	if u.Disabled {
		return "disabled"
	}
	return "active"
}

type userAddCmd struct {
	Login string   `arg:"" help:"Name to sign in with."`
	Name  string   `help:"Name of the person." placeholder:"NAME"`
	Mail  string   `help:"Mail address." placeholder:"ADDRESS"`
	Group []string `help:"Group, may be repeated." placeholder:"GROUP"`
	Role  string   `help:"Role in administration: owner, or none." placeholder:"ROLE"`
}

// Run adds a person.
func (a *userAddCmd) Run(ctx context.Context, c *Conn) error {
	made, err := ask(ctx, c, c.user.CreateUser, &adminv1.CreateUserRequest{
		Login: a.Login, Name: a.Name, Mail: a.Mail, Groups: a.Group, Role: a.Role,
	})
	if err != nil {
		return err
	}
	return c.print.show(made, func(w io.Writer) { c.invitation(w, "Added "+a.Login+".", made) })
}

func (c *Conn) invitation(w io.Writer, done string, made *adminv1.CreateUserResponse) {
	fmt.Fprintln(w, clean(done))
	if made.InvitationUrl == "" {
		return
	}
	fmt.Fprintf(w, "Hand over this link, it works once and ends %s:\n  %s\n", c.print.until(made.ExpiresMs), clean(made.InvitationUrl))
}

type userRef struct {
	User string `arg:"" help:"Login, mail or id."`
}

type userInviteCmd struct{ userRef }

// Run prints an invitation.
func (i *userInviteCmd) Run(ctx context.Context, c *Conn) error {
	made, err := ask(ctx, c, c.user.InviteUser, &adminv1.UserRef{User: i.User})
	if err != nil {
		return err
	}
	return c.print.show(made, func(w io.Writer) { c.invitation(w, "Invited "+i.User+".", made) })
}

type userDisableCmd struct {
	userRef
	why
}

// Run disables a person.
func (d *userDisableCmd) Run(ctx context.Context, c *Conn) error {
	return act(ctx, c, c.user.DisableUser, &adminv1.UserRef{User: d.User, Reason: d.Reason}, "Disabled "+d.User+".")
}

type userEnableCmd struct {
	userRef
	why
}

// Run enables a person.
func (e *userEnableCmd) Run(ctx context.Context, c *Conn) error {
	return act(ctx, c, c.user.EnableUser, &adminv1.UserRef{User: e.User, Reason: e.Reason}, "Enabled "+e.User+".")
}

type userSignOutCmd struct {
	userRef
	why
}

// Run ends the sessions of a person.
func (s *userSignOutCmd) Run(ctx context.Context, c *Conn) error {
	return act(ctx, c, c.user.SignOutUser, &adminv1.UserRef{User: s.User, Reason: s.Reason}, "Signed out "+s.User+".")
}

type groupCmd struct {
	List         groupListCmd         `cmd:"" help:"List groups." example:"postern admin group list"`
	Add          groupAddCmd          `cmd:"" help:"Add a group." example:"postern admin group add staff"`
	Delete       groupDeleteCmd       `cmd:"" help:"Delete a group; rules that name it give nothing any more." example:"postern admin group delete staff"`
	AddMember    groupAddMemberCmd    `cmd:"" help:"Put a person into a group." example:"postern admin group add-member staff ann"`
	RemoveMember groupRemoveMemberCmd `cmd:"" help:"Take a person out of a group." example:"postern admin group remove-member staff ann"`
}

type groupListCmd struct{}

// Run lists groups.
func (*groupListCmd) Run(ctx context.Context, c *Conn) error {
	all := &adminv1.ListGroupsResponse{}
	for page := (&adminv1.Page{Size: pageSize}); ; page.Token = all.Next {
		part, err := ask(ctx, c, c.group.ListGroups, &adminv1.ListGroupsRequest{Page: page})
		if err != nil {
			return err
		}
		all.Groups, all.Next = append(all.Groups, part.Groups...), part.Next
		if all.Next == "" {
			break
		}
	}
	t := columns("GROUP", "MEMBERS", "FROM")
	for _, g := range all.Groups {
		t.add(g.Name, fmt.Sprint(g.Members), g.Source)
	}
	return c.print.table(all, "There are no groups yet. Add one: postern admin group add NAME", t)
}

type groupAddCmd struct {
	Name string `arg:"" help:"Name of the group."`
}

// Run adds a group.
func (a *groupAddCmd) Run(ctx context.Context, c *Conn) error {
	g, err := ask(ctx, c, c.group.CreateGroup, &adminv1.CreateGroupRequest{Name: a.Name})
	if err != nil {
		return err
	}
	return c.print.show(g, func(w io.Writer) { fmt.Fprintf(w, "Added the group %s.\n", clean(g.Name)) })
}

type groupDeleteCmd struct {
	Group string `arg:"" help:"Name or id."`
}

// Run deletes a group.
func (d *groupDeleteCmd) Run(ctx context.Context, c *Conn) error {
	return act(ctx, c, c.group.DeleteGroup, &adminv1.GroupRef{Group: d.Group}, "Deleted the group "+d.Group+".")
}

type memberRef struct {
	Group string `arg:"" help:"Name or id of the group."`
	User  string `arg:"" help:"Login, mail or id of the person."`
}

type groupAddMemberCmd struct{ memberRef }

// Run puts a person into a group.
func (m *groupAddMemberCmd) Run(ctx context.Context, c *Conn) error {
	return act(ctx, c, c.group.AddMember, &adminv1.MemberRequest{Group: m.Group, User: m.User}, m.User+" is in "+m.Group+" now.")
}

type groupRemoveMemberCmd struct{ memberRef }

// Run takes a person out of a group.
func (m *groupRemoveMemberCmd) Run(ctx context.Context, c *Conn) error {
	return act(ctx, c, c.group.RemoveMember, &adminv1.MemberRequest{Group: m.Group, User: m.User}, m.User+" is not in "+m.Group+" any more.")
}
