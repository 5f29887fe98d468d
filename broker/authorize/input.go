package authorize

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/session"
	"github.com/postern-zt/postern/broker/trust"
)

// input gathers everything that a decision depends on, in the order in which it is
// verified: identity, device, context, risk, app.
func (a *Authorizer) input(ctx context.Context, s session.Session, app *catalog.App, source netip.Addr, network string) (policy.Input, error) {
	now := a.cfg.Now()
	user, err := a.cfg.Sources.User(ctx, s.User)
	if err != nil {
		return policy.Input{}, fmt.Errorf("user: %w", err)
	}
	device, err := a.cfg.Sources.Device(ctx, s.Device)
	if err != nil {
		return policy.Input{}, fmt.Errorf("device: %w", err)
	}
	facts, err := a.facts(ctx, device)
	if err != nil {
		return policy.Input{}, fmt.Errorf("facts: %w", err)
	}
	views, _ := a.cfg.Trust().Views(facts, now)
	return policy.Input{
		Version: policy.InputVersion, Time: now,
		Identity: identityOf(user, s, now),
		Device:   policy.Device{ID: device.ID, Registered: device.State == registry.Active, Blocked: device.Usable() != nil, Facts: views},
		Context:  policy.Context{Source: source, Network: network},
		App:      AppOf(app),
	}, nil
}

func identityOf(u directory.User, s session.Session, now time.Time) policy.Identity {
	id := policy.Identity{
		User: u.ID, Disabled: !u.Usable(), Groups: u.Groups, GroupsIncomplete: u.GroupsIncomplete,
		Session: s.ID, SessionRevoked: s.Live(s.DeviceKey, now) != nil, SignedInAt: s.Created,
		AuthTime: s.AuthTime, ACR: s.ACR, AMR: s.AMR, VerifiedAt: s.LastVerified,
	}
	if slices.Contains(s.Stale, session.IdentityStale) {
		id.IdentityStale = s.LastVerified
	}
	for name, values := range u.Attributes {
		if id.Attributes == nil {
			id.Attributes = make(map[string]policy.Value, len(u.Attributes))
		}
		id.Attributes[name] = attribute(values)
	}
	return id
}

func attribute(values []string) policy.Value {
	if len(values) == 1 {
		return policy.Text(values[0])
	}
	return policy.List(values...)
}

// facts returns what the device reported, and what the broker itself knows of it.
func (a *Authorizer) facts(ctx context.Context, d registry.Device) ([]trust.Fact, error) {
	row, err := a.cfg.Sources.Facts(ctx, d.ID)
	if errors.Is(err, registry.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var facts []trust.Fact
	if err := json.Unmarshal(row.Facts, &facts); err != nil {
		// Unreadable facts are unknown facts, which never count as pass.
		a.log.ErrorContext(ctx, "stored facts are not readable", "device", d.ID, "error", err)
		return nil, nil
	}
	return facts, nil
}

// Report takes what a device says of itself into its facts and returns them as they are
// to be stored. A report may only speak as the client.
func Report(settings trust.Settings, stored []trust.Fact, reports []trust.Report, now time.Time) []trust.Fact {
	out := slices.Clone(stored)
	for _, r := range reports {
		r.Source = trust.SourceClient
		i := slices.IndexFunc(out, func(f trust.Fact) bool { return f.Name == r.Name })
		var prev trust.Fact
		if i >= 0 {
			prev = out[i]
		}
		f, _, ok := settings.Observe(prev, r, now)
		switch {
		case !ok:
		case i >= 0:
			out[i] = f
		default:
			out = append(out, f)
		}
	}
	return out
}

// AppOf is the app as the policy sees it.
func AppOf(app *catalog.App) policy.App {
	return policy.App{
		ID: app.ID, Name: app.Name, Class: policy.Class(app.Class), Tags: app.Tags, Protocol: string(app.Protocol),
		Owner: app.Owner.Text, Disabled: app.Retired,
	}
}
