package adminapi

import (
	"context"
	"errors"
	"maps"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/identity"
	"github.com/postern-zt/postern/broker/session"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	"github.com/postern-zt/postern/proto/ids"
)

// inviteLife is how long an invitation holds, as identity gives it.
const inviteLife = 48 * time.Hour

type users struct{ *API }

func (s users) ListUsers(ctx context.Context, req *connect.Request[adminv1.ListUsersRequest]) (*connect.Response[adminv1.ListUsersResponse], error) {
	list, err := s.cfg.Directory.Users(ctx, directory.Query{
		Text: req.Msg.Filter, After: ids.UserID(req.Msg.Page.GetToken()), Limit: int(req.Msg.Page.GetSize()),
	})
	if err != nil {
		return nil, err
	}
	names, err := s.groupNames(ctx)
	if err != nil {
		return nil, err
	}
	out := &adminv1.ListUsersResponse{}
	for _, u := range list {
		out.Users = append(out.Users, userView(u, names))
	}
	if n := int(req.Msg.Page.GetSize()); n > 0 && len(list) == n {
		out.Next = string(list[n-1].ID)
	}
	return connect.NewResponse(out), nil
}

func (a *API) groupNames(ctx context.Context) (map[ids.GroupID]string, error) {
	all, err := a.cfg.Directory.Groups(ctx)
	if err != nil {
		return nil, err
	}
	names := make(map[ids.GroupID]string, len(all))
	for _, g := range all {
		names[g.ID] = g.Name
	}
	return names, nil
}

func userView(u directory.User, groups map[ids.GroupID]string) *adminv1.User {
	v := &adminv1.User{
		Id: string(u.ID), Issuer: string(u.Issuer), Subject: u.Subject, Name: u.Name, Mail: u.Mail, Disabled: u.Disabled,
		Role: string(u.Admin), Attributes: map[string]string{}, LastSeenMs: millis(u.VerifiedAt),
	}
	if u.Login != "" {
		v.Subject = u.Login
	}
	for _, g := range u.Groups {
		v.Groups = append(v.Groups, groups[g])
	}
	maps.Insert(v.Attributes, func(yield func(string, string) bool) {
		for k, vals := range u.Attributes {
			if !yield(k, strings.Join(vals, ",")) {
				return
			}
		}
	})
	return v
}

func (s users) CreateUser(ctx context.Context, req *connect.Request[adminv1.CreateUserRequest]) (*connect.Response[adminv1.CreateUserResponse], error) {
	m := req.Msg
	if err := s.record(ctx, what("create user", "login", m.Login)); err != nil {
		return nil, err
	}
	u, code, err := s.cfg.Identity.CreateUser(ctx, m.Login, m.Name, m.Mail)
	if err != nil {
		return nil, err
	}
	if m.Role != "" {
		if u, err = s.cfg.Directory.SetRole(ctx, u.ID, directory.Role(m.Role)); err != nil {
			return nil, err
		}
	}
	for _, name := range m.Groups {
		g, err := s.cfg.Directory.FindGroup(ctx, name)
		if err != nil {
			return nil, err
		}
		if err := s.cfg.Directory.AddToGroup(ctx, u.ID, g.ID); err != nil {
			return nil, err
		}
	}
	return connect.NewResponse(s.invitation(u, code)), nil
}

func (a *API) invitation(u directory.User, code identity.Code) *adminv1.CreateUserResponse {
	return &adminv1.CreateUserResponse{
		User: userView(u, nil), InvitationUrl: a.cfg.Identity.InviteLink(code).Reveal(), InvitationCode: code.Reveal(),
		ExpiresMs: a.cfg.Now().Add(inviteLife).UnixMilli(),
	}
}

func (s users) InviteUser(ctx context.Context, req *connect.Request[adminv1.UserRef]) (*connect.Response[adminv1.CreateUserResponse], error) {
	u, err := s.cfg.Directory.Find(ctx, req.Msg.User)
	if err != nil {
		return nil, err
	}
	e := what("invite user")
	e.User = u.ID
	if err := s.record(ctx, e); err != nil {
		return nil, err
	}
	code, err := s.cfg.Identity.Invite(ctx, u.ID)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(s.invitation(u, code)), nil
}

// DisableUser ends everything of the user at once; the record follows, because taking
// away never waits.
func (s users) DisableUser(ctx context.Context, req *connect.Request[adminv1.UserRef]) (*connect.Response[adminv1.EffectResponse], error) {
	u, err := s.cfg.Directory.Find(ctx, req.Msg.User)
	if err != nil {
		return nil, err
	}
	live := len(s.cfg.Ledger.Matching(grants.User(u.ID))) // the reactor may be faster than we
	// Also when it cannot be written down the user's access ends, and the answer says so.
	disabled := s.cfg.Identity.Disable(ctx, u.ID)
	if errors.Is(disabled, directory.ErrLastOwner) {
		return nil, disabled
	}
	fx, err := s.endUser(ctx, u, session.CauseUserDisabled, grants.CauseUserDisabled, "disable user", req.Msg.Reason)
	fx.Grants = max(fx.Grants, int32(live))
	return respond(fx, errors.Join(disabled, err))
}

func (a *API) endUser(ctx context.Context, u directory.User, cause session.Cause, revoke grants.Cause, act, reason string) (*adminv1.EffectResponse, error) {
	fx := a.revoke(ctx, grants.User(u.ID), revoke)
	ended, err := a.cfg.Sessions.EndUser(ctx, u.ID, cause, a.cfg.Now())
	fx.Sessions = int32(len(ended))
	e := what(act, "reason", reason)
	e.User = u.ID
	a.recordLate(ctx, e)
	return fx, err
}

func (s users) EnableUser(ctx context.Context, req *connect.Request[adminv1.UserRef]) (*connect.Response[adminv1.EffectResponse], error) {
	u, err := s.cfg.Directory.Find(ctx, req.Msg.User)
	if err != nil {
		return nil, err
	}
	e := what("enable user", "reason", req.Msg.Reason)
	e.User = u.ID
	if err := s.record(ctx, e); err != nil {
		return nil, err
	}
	return respond(&adminv1.EffectResponse{}, s.cfg.Identity.Enable(ctx, u.ID))
}

func (s users) SignOutUser(ctx context.Context, req *connect.Request[adminv1.UserRef]) (*connect.Response[adminv1.EffectResponse], error) {
	u, err := s.cfg.Directory.Find(ctx, req.Msg.User)
	if err != nil {
		return nil, err
	}
	out := s.cfg.Identity.SignOut(ctx, u.ID)
	fx, err := s.endUser(ctx, u, session.CauseAdmin, grants.CauseAdmin, "sign out user", req.Msg.Reason)
	return respond(fx, errors.Join(out, err))
}

type groups struct{ *API }

func (s groups) ListGroups(ctx context.Context, _ *connect.Request[adminv1.ListGroupsRequest]) (*connect.Response[adminv1.ListGroupsResponse], error) {
	all, err := s.cfg.Directory.Groups(ctx)
	if err != nil {
		return nil, err
	}
	out := &adminv1.ListGroupsResponse{}
	for _, g := range all {
		members, err := s.cfg.Directory.Users(ctx, directory.Query{Group: g.ID})
		if err != nil {
			return nil, err
		}
		out.Groups = append(out.Groups, &adminv1.Group{Id: string(g.ID), Name: g.Name, Source: string(g.Source), Members: int32(len(members))})
	}
	return connect.NewResponse(out), nil
}

func (s groups) CreateGroup(ctx context.Context, req *connect.Request[adminv1.CreateGroupRequest]) (*connect.Response[adminv1.Group], error) {
	if err := s.record(ctx, what("create group", "group", req.Msg.Name)); err != nil {
		return nil, err
	}
	g, err := s.cfg.Directory.CreateGroup(ctx, req.Msg.Name)
	return respond(&adminv1.Group{Id: string(g.ID), Name: g.Name, Source: string(g.Source)}, err)
}

func (s groups) DeleteGroup(ctx context.Context, req *connect.Request[adminv1.GroupRef]) (*connect.Response[adminv1.EffectResponse], error) {
	g, err := s.cfg.Directory.FindGroup(ctx, req.Msg.Group)
	if err != nil {
		return nil, err
	}
	if err := s.record(ctx, what("delete group", "group", g.Name)); err != nil {
		return nil, err
	}
	return respond(&adminv1.EffectResponse{}, s.cfg.Directory.DeleteGroup(ctx, g.ID))
}

func (s groups) AddMember(ctx context.Context, req *connect.Request[adminv1.MemberRequest]) (*connect.Response[adminv1.EffectResponse], error) {
	u, g, err := s.member(ctx, req.Msg)
	if err != nil {
		return nil, err
	}
	e := what("add member", "group", g.Name)
	e.User = u.ID
	if err := s.record(ctx, e); err != nil {
		return nil, err
	}
	return respond(&adminv1.EffectResponse{}, s.cfg.Directory.AddToGroup(ctx, u.ID, g.ID))
}

func (s groups) RemoveMember(ctx context.Context, req *connect.Request[adminv1.MemberRequest]) (*connect.Response[adminv1.EffectResponse], error) {
	u, g, err := s.member(ctx, req.Msg)
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Directory.RemoveFromGroup(ctx, u.ID, g.ID); err != nil {
		return nil, err
	}
	e := what("remove member", "group", g.Name)
	e.User = u.ID
	s.recordLate(ctx, e)
	return connect.NewResponse(&adminv1.EffectResponse{}), nil
}

func (s groups) member(ctx context.Context, m *adminv1.MemberRequest) (directory.User, directory.Group, error) {
	u, err := s.cfg.Directory.Find(ctx, m.User)
	if err != nil {
		return directory.User{}, directory.Group{}, err
	}
	g, err := s.cfg.Directory.FindGroup(ctx, m.Group)
	return u, g, err
}
