package admincli

import (
	"context"
	"fmt"
	"strings"

	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
)

type deviceCmd struct {
	List    deviceListCmd    `cmd:"" help:"List devices." example:"postern admin device list"`
	Block   deviceBlockCmd   `cmd:"" help:"Block a device; everything open on it ends." example:"postern admin device block ann-laptop --reason stolen"`
	Unblock deviceUnblockCmd `cmd:"" help:"Let a blocked device sign in again." example:"postern admin device unblock ann-laptop"`
	Remove  deviceRemoveCmd  `cmd:"" help:"Remove a device for good; its key never works again." example:"postern admin device remove ann-laptop"`
}

type deviceListCmd struct{}

// Run lists devices.
func (*deviceListCmd) Run(ctx context.Context, c *Conn) error {
	all := &adminv1.ListDevicesResponse{}
	for page := (&adminv1.Page{Size: pageSize}); ; page.Token = all.Next {
		part, err := ask(ctx, c, c.device.ListDevices, &adminv1.ListDevicesRequest{Page: page})
		if err != nil {
			return err
		}
		all.Devices, all.Next = append(all.Devices, part.Devices...), part.Next
		if all.Next == "" {
			break
		}
	}
	t := columns("DEVICE", "PERSON", "SYSTEM", "TRUST", "STATE", "SEEN", "NOT PASSED", "ID")
	for _, d := range all.Devices {
		t.add(d.Name, d.User, d.Os, d.Level, d.State, c.print.ago(d.LastSeenMs), notPassed(d.Facts), d.Id)
	}
	return c.print.table(all, "No device has signed in yet.", t)
}

// notPassed names the facts that do not pass.
func notPassed(facts []*adminv1.Fact) string {
	var names []string
	for _, f := range facts {
		if f.State == "fail" || f.State == "unknown" {
			names = append(names, f.Name+" ("+f.State+")")
		}
	}
	return strings.Join(names, ", ")
}

type deviceRef struct {
	Device string `arg:"" help:"Name or id."`
}

type deviceBlockCmd struct {
	deviceRef
	why
}

// Run blocks a device.
func (b *deviceBlockCmd) Run(ctx context.Context, c *Conn) error {
	return act(ctx, c, c.device.BlockDevice, &adminv1.DeviceRef{Device: b.Device, Reason: b.Reason}, "Blocked "+b.Device+".")
}

type deviceUnblockCmd struct {
	deviceRef
	why
}

// Run unblocks a device.
func (u *deviceUnblockCmd) Run(ctx context.Context, c *Conn) error {
	return act(ctx, c, c.device.UnblockDevice, &adminv1.DeviceRef{Device: u.Device, Reason: u.Reason}, "Unblocked "+u.Device+".")
}

type deviceRemoveCmd struct {
	deviceRef
	why
}

// Run removes a device.
func (r *deviceRemoveCmd) Run(ctx context.Context, c *Conn) error {
	return act(ctx, c, c.device.RemoveDevice, &adminv1.DeviceRef{Device: r.Device, Reason: r.Reason}, "Removed "+r.Device+".")
}

type sessionCmd struct {
	List sessionListCmd `cmd:"" help:"List sessions." example:"postern admin session list"`
	End  sessionEndCmd  `cmd:"" help:"End a session; the person may sign in again." example:"postern admin session end ses_..."`
}

type sessionListCmd struct{}

// Run lists sessions.
func (*sessionListCmd) Run(ctx context.Context, c *Conn) error {
	all := &adminv1.ListSessionsResponse{}
	for page := (&adminv1.Page{Size: pageSize}); ; page.Token = all.Next {
		part, err := ask(ctx, c, c.session.ListSessions, &adminv1.ListSessionsRequest{Page: page})
		if err != nil {
			return err
		}
		all.Sessions, all.Next = append(all.Sessions, part.Sessions...), part.Next
		if all.Next == "" {
			break
		}
	}
	t := columns("PERSON", "DEVICE", "FROM", "STARTED", "ENDS", "GRANTS", "SIGNED IN WITH", "ID")
	for _, s := range all.Sessions {
		t.add(s.User, s.Device, s.Address, c.print.ago(s.StartedMs), c.print.until(s.ExpiresMs), fmt.Sprint(s.Grants), strings.Join(s.Amr, ", "), s.Id)
	}
	return c.print.table(all, "Nobody is signed in.", t)
}

type sessionEndCmd struct {
	Session string `arg:"" help:"Id, as the list shows it."`
	why
}

// Run ends a session.
func (s *sessionEndCmd) Run(ctx context.Context, c *Conn) error {
	return act(ctx, c, c.session.EndSession, &adminv1.SessionRef{Session: s.Session, Reason: s.Reason}, "Ended the session.")
}

type grantCmd struct {
	List   grantListCmd   `cmd:"" help:"List grants." example:"postern admin grant list"`
	Revoke grantRevokeCmd `cmd:"" help:"Revoke a grant; its flows end. The next use is decided again." example:"postern admin grant revoke gnt_..."`
}

type grantListCmd struct{}

// Run lists grants.
func (*grantListCmd) Run(ctx context.Context, c *Conn) error {
	all, err := ask(ctx, c, c.session.ListGrants, &adminv1.ListGrantsRequest{})
	if err != nil {
		return err
	}
	t := columns("PERSON", "DEVICE", "APP", "SINCE", "ENDS", "RECEIPT", "ID")
	for _, g := range all.Grants {
		t.add(g.User, g.Device, g.App, c.print.ago(g.IssuedMs), c.print.until(g.HardEndMs), g.Receipt, g.Id)
	}
	return c.print.table(all, "Nothing is open.", t)
}

type grantRevokeCmd struct {
	Grant string `arg:"" help:"Id, as the list shows it."`
	why
}

// Run revokes a grant.
func (r *grantRevokeCmd) Run(ctx context.Context, c *Conn) error {
	return act(ctx, c, c.session.RevokeGrant, &adminv1.GrantRef{Grant: r.Grant, Reason: r.Reason}, "Revoked.")
}
