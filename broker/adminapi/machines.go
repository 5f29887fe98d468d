package adminapi

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/session"
	"github.com/postern-zt/postern/broker/trust"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/ids"
)

type devices struct{ *API }

func (s devices) ListDevices(ctx context.Context, _ *connect.Request[adminv1.ListDevicesRequest]) (*connect.Response[adminv1.ListDevicesResponse], error) {
	all, err := s.cfg.Registry.Devices(ctx, "")
	if err != nil {
		return nil, err
	}
	out := &adminv1.ListDevicesResponse{}
	for _, d := range all {
		v, err := s.deviceView(ctx, d)
		if err != nil {
			return nil, err
		}
		out.Devices = append(out.Devices, v)
	}
	return connect.NewResponse(out), nil
}

func (a *API) deviceView(ctx context.Context, d registry.Device) (*adminv1.Device, error) {
	v := &adminv1.Device{
		Id: string(d.ID), Name: d.Name, User: a.userName(ctx, d.User), Os: d.OS, ClientVersion: d.Seen.Version,
		State: string(d.State), LastSeenMs: millis(d.Seen.Last), KeyId: d.Identity.Key.String(),
	}
	row, err := a.cfg.Registry.Facts(ctx, d.ID)
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		return nil, err
	}
	var facts []trust.Fact
	if len(row.Facts) > 0 {
		if err := json.Unmarshal(row.Facts, &facts); err != nil {
			return nil, err
		}
	}
	settings, now := a.cfg.Decisions.Current().Trust(), a.cfg.Now()
	views, _ := settings.Views(facts, now)
	as := settings.Assess(d.State == registry.Active, views, now)
	v.Level, v.Score = as.Level.String(), int32(as.Score)
	for _, f := range views {
		v.Facts = append(v.Facts, &adminv1.Fact{Name: string(f.Name), State: f.State.String(), Data: f.Data, ObservedMs: millis(f.ObservedAt), Source: string(f.Source)})
	}
	return v, nil
}

func (s devices) BlockDevice(ctx context.Context, req *connect.Request[adminv1.DeviceRef]) (*connect.Response[adminv1.EffectResponse], error) {
	return respond(s.takeDevice(ctx, req.Msg, registry.Blocked, "block device"))
}

func (s devices) RemoveDevice(ctx context.Context, req *connect.Request[adminv1.DeviceRef]) (*connect.Response[adminv1.EffectResponse], error) {
	return respond(s.takeDevice(ctx, req.Msg, registry.Removed, "remove device"))
}

// takeDevice ends everything of a device, then writes it down.
func (s devices) takeDevice(ctx context.Context, ref *adminv1.DeviceRef, to registry.State, act string) (*adminv1.EffectResponse, error) {
	d, err := s.device(ctx, ref.Device)
	if err != nil {
		return nil, err
	}
	fx := s.revoke(ctx, grants.Device(d.Identity.Key), grants.CauseDeviceBlocked)
	if _, err := s.cfg.Registry.SetDeviceState(ctx, d.ID, to); err != nil {
		return nil, err
	}
	ended, err := s.cfg.Sessions.EndDevice(ctx, d.ID, session.CauseDeviceBlocked, s.cfg.Now())
	fx.Sessions = int32(len(ended))
	e := what(act, "reason", ref.Reason)
	e.Device = d.ID
	s.recordLate(ctx, e)
	return fx, err
}

func (s devices) UnblockDevice(ctx context.Context, req *connect.Request[adminv1.DeviceRef]) (*connect.Response[adminv1.EffectResponse], error) {
	d, err := s.device(ctx, req.Msg.Device)
	if err != nil {
		return nil, err
	}
	e := what("unblock device", "reason", req.Msg.Reason)
	e.Device = d.ID
	if err := s.record(ctx, e); err != nil {
		return nil, err
	}
	_, err = s.cfg.Registry.SetDeviceState(ctx, d.ID, registry.Active)
	return respond(&adminv1.EffectResponse{}, err)
}

// device finds a device by id or by its only name.
func (a *API) device(ctx context.Context, text string) (registry.Device, error) {
	if id, err := ids.Parse[ids.DeviceID](text); err == nil {
		return a.cfg.Registry.Device(ctx, id)
	}
	all, err := a.cfg.Registry.Devices(ctx, "")
	if err != nil {
		return registry.Device{}, err
	}
	all = slices.DeleteFunc(all, func(d registry.Device) bool { return d.Name != text })
	switch len(all) {
	case 0:
		return registry.Device{}, notFound("no device %q", text)
	case 1:
		return all[0], nil
	default:
		return registry.Device{}, badRequest("%d devices are named %q; give the id", len(all), text)
	}
}

type sessions struct{ *API }

func (s sessions) ListSessions(ctx context.Context, _ *connect.Request[adminv1.ListSessionsRequest]) (*connect.Response[adminv1.ListSessionsResponse], error) {
	all, err := s.cfg.Sessions.List(ctx, session.Filter{})
	if err != nil {
		return nil, err
	}
	out := &adminv1.ListSessionsResponse{}
	for _, v := range all {
		row := &adminv1.Session{
			Id: string(v.ID), User: s.userName(ctx, v.User), Device: string(v.Device), Acr: v.ACR, Amr: v.AMR,
			StartedMs: millis(v.Created), Address: v.Source, Grants: int32(len(s.cfg.Ledger.Matching(grants.Session(v.ID)))),
		}
		if v.MaxAge > 0 {
			row.ExpiresMs = v.Created.Add(v.MaxAge).UnixMilli()
		}
		out.Sessions = append(out.Sessions, row)
	}
	return connect.NewResponse(out), nil
}

func (s sessions) EndSession(ctx context.Context, req *connect.Request[adminv1.SessionRef]) (*connect.Response[adminv1.EffectResponse], error) {
	id, err := ids.Parse[ids.SessionID](req.Msg.Session)
	if err != nil {
		return nil, err
	}
	fx := s.revoke(ctx, grants.Session(id), grants.CauseAdmin)
	if _, err := s.cfg.Sessions.End(ctx, id, session.CauseAdmin, s.cfg.Now()); err != nil {
		return nil, err
	}
	fx.Sessions = 1
	e := what("end session", "reason", req.Msg.Reason)
	e.Session = id
	s.recordLate(ctx, e)
	return connect.NewResponse(fx), nil
}

func (s sessions) ListGrants(ctx context.Context, _ *connect.Request[adminv1.ListGrantsRequest]) (*connect.Response[adminv1.ListGrantsResponse], error) {
	out := &adminv1.ListGrantsResponse{}
	for _, g := range s.cfg.Ledger.Matching(grants.Everything()) {
		out.Grants = append(out.Grants, &adminv1.Grant{
			Id: string(g.ID), Receipt: string(g.Receipt), User: s.userName(ctx, g.User), Device: string(g.Device),
			App: g.AppName, Session: string(g.Session), IssuedMs: millis(g.Issued), HardEndMs: millis(g.HardEnd),
		})
	}
	slices.SortFunc(out.Grants, func(a, b *adminv1.Grant) int { return int(b.IssuedMs - a.IssuedMs) })
	return connect.NewResponse(out), nil
}

func (s sessions) RevokeGrant(ctx context.Context, req *connect.Request[adminv1.GrantRef]) (*connect.Response[adminv1.EffectResponse], error) {
	id, err := ids.Parse[ids.GrantID](req.Msg.Grant)
	if err != nil {
		return nil, err
	}
	if _, ok := s.cfg.Ledger.Grant(id); !ok {
		return nil, notFound("no live grant %s", id)
	}
	fx := s.revoke(ctx, grants.One(id), grants.CauseAdmin)
	e := what("revoke grant", "reason", req.Msg.Reason)
	e.Grant = id
	s.recordLate(ctx, e)
	return connect.NewResponse(fx), nil
}

type connectors struct{ *API }

func (s connectors) ListConnectors(ctx context.Context, _ *connect.Request[adminv1.ListConnectorsRequest]) (*connect.Response[adminv1.ListConnectorsResponse], error) {
	all, err := s.cfg.Registry.Connectors(ctx, "")
	if err != nil {
		return nil, err
	}
	_, online, _ := s.cfg.Live.Online()
	out := &adminv1.ListConnectorsResponse{}
	for _, c := range all {
		out.Connectors = append(out.Connectors, s.connectorView(c, slices.Contains(online, c.ID)))
	}
	return connect.NewResponse(out), nil
}

func (a *API) connectorView(c registry.Connector, online bool) *adminv1.Connector {
	site, _ := a.cfg.Catalog.Current().Site(c.Site)
	v := &adminv1.Connector{
		Id: string(c.ID), Name: c.Name, Site: site.Name, State: string(c.State), Version: c.Seen.Version,
		LastSeenMs: millis(c.Seen.Last), KeyId: c.Identity.Key.String(), Trust: "broker-introduced", Online: online,
	}
	var h controlv1.HealthRequest
	if json.Unmarshal(c.Health, &h) != nil {
		return v
	}
	v.ClockOffsetMs, v.Flows = h.ClockOffsetMs, h.Flows
	for _, p := range h.Paths {
		text := p.RelayId + " " + p.Transport + ": " + p.State
		if p.Error != "" {
			text += " (" + p.Error + ")"
		}
		v.Health = append(v.Health, text)
	}
	for _, app := range h.Apps {
		v.Health = append(v.Health, a.appName(ids.AppID(app.AppId))+": "+app.State)
	}
	return v
}

func (s connectors) BlockConnector(ctx context.Context, req *connect.Request[adminv1.ConnectorRef]) (*connect.Response[adminv1.EffectResponse], error) {
	return respond(s.setConnector(ctx, req.Msg, registry.Blocked, "block connector"))
}

func (s connectors) UnblockConnector(ctx context.Context, req *connect.Request[adminv1.ConnectorRef]) (*connect.Response[adminv1.EffectResponse], error) {
	return respond(s.setConnector(ctx, req.Msg, registry.Active, "unblock connector"))
}

func (s connectors) RemoveConnector(ctx context.Context, req *connect.Request[adminv1.ConnectorRef]) (*connect.Response[adminv1.EffectResponse], error) {
	return respond(s.setConnector(ctx, req.Msg, registry.Removed, "remove connector"))
}

func (s connectors) setConnector(ctx context.Context, ref *adminv1.ConnectorRef, to registry.State, act string) (*adminv1.EffectResponse, error) {
	c, err := s.connector(ctx, ref.Connector)
	if err != nil {
		return nil, err
	}
	e := what(act, "reason", ref.Reason)
	e.Connector = c.ID
	if to == registry.Active {
		if err := s.record(ctx, e); err != nil {
			return nil, err
		}
	}
	if _, err := s.cfg.Registry.SetConnectorState(ctx, c.ID, to); err != nil {
		return nil, err
	}
	fx := &adminv1.EffectResponse{}
	if to != registry.Active {
		fx.Connectors = 1
		for _, g := range s.cfg.Ledger.AtConnector(c.ID) {
			fx.Grants += s.revoke(ctx, grants.One(g.ID), grants.CauseConnectorGone).Grants
		}
		s.recordLate(ctx, e)
	}
	return fx, nil
}

func (a *API) connector(ctx context.Context, text string) (registry.Connector, error) {
	if id, err := ids.Parse[ids.ConnectorID](text); err == nil {
		return a.cfg.Registry.Connector(ctx, id)
	}
	all, err := a.cfg.Registry.Connectors(ctx, "")
	if err != nil {
		return registry.Connector{}, err
	}
	for _, c := range all {
		if c.Name == text && c.State != registry.Removed {
			return c, nil
		}
	}
	return registry.Connector{}, notFound("no connector %q", text)
}

func (s connectors) ListRelays(ctx context.Context, _ *connect.Request[adminv1.ListRelaysRequest]) (*connect.Response[adminv1.ListRelaysResponse], error) {
	all, err := s.cfg.Registry.Relays(ctx)
	if err != nil {
		return nil, err
	}
	_, _, online := s.cfg.Live.Online()
	out := &adminv1.ListRelaysResponse{}
	for _, r := range all {
		v := &adminv1.Relay{Id: string(r.ID), Name: r.Name, Addresses: r.TCP, State: string(r.State), LastSeenMs: millis(r.Seen.Last), Builtin: r.ID == s.cfg.BuiltinRelay}
		if v.Builtin {
			v.LastSeenMs = s.cfg.Now().UnixMilli()
		} else if r.State == registry.Active && !slices.Contains(online, r.ID) {
			v.State = "away"
		}
		out.Relays = append(out.Relays, v)
	}
	return connect.NewResponse(out), nil
}

func (s connectors) RemoveRelay(ctx context.Context, req *connect.Request[adminv1.RelayRef]) (*connect.Response[adminv1.EffectResponse], error) {
	id, err := ids.Parse[ids.RelayID](req.Msg.Relay)
	if err != nil {
		return nil, err
	}
	if id == s.cfg.BuiltinRelay {
		return nil, badRequest("this relay is inside the broker; turn it off with relay: false in its configuration")
	}
	if _, err := s.cfg.Registry.SetRelayState(ctx, id, registry.Removed); err != nil {
		return nil, err
	}
	s.recordLate(ctx, what("remove relay", "relay", string(id)))
	return connect.NewResponse(&adminv1.EffectResponse{}), nil
}

// flushTime bounds how long an answer waits for a revocation to be on disk; it is in
// force before.
const flushTime = 2 * time.Second
