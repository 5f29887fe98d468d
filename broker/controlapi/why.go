package controlapi

import (
	"context"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker/authorize"
	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/session"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/ids"
)

// unknownName is the answer for a name that does not exist and for one that this user may
// not know of: the two must not differ (decisions rule 24).
const unknownName = "There is no app with this name that you can see. Check the spelling, or ask your administrator."

// Why explains an app or a receipt to the signed-in user.
func (s deviceService) Why(ctx context.Context, req *connect.Request[controlv1.WhyRequest]) (*connect.Response[controlv1.WhyResponse], error) {
	d, err := s.device(ctx)
	if err != nil {
		return nil, err
	}
	if receipt, err := ids.ParseReceipt(req.Msg.Query); err == nil {
		return s.whyReceipt(ctx, d, receipt)
	}
	ses, err := s.API.session(ctx, d)
	if err != nil {
		return nil, err
	}
	app, ok := s.cfg.Catalog.Current().Lookup(req.Msg.Query)
	if !ok {
		return connect.NewResponse(&controlv1.WhyResponse{Text: unknownName}), nil
	}
	view, err := s.cfg.Authorize.View(ctx, ses, app, callerOf(ctx).addr)
	if err != nil {
		return nil, err
	}
	if !visible(app, view) {
		return connect.NewResponse(&controlv1.WhyResponse{Text: unknownName}), nil
	}
	return connect.NewResponse(&controlv1.WhyResponse{Known: true, Receipt: s.receipt(view, app.Name), Text: s.text(view)}), nil
}

// whyReceipt shows a recorded decision to the device and, once somebody else uses it, not
// beyond the person that it was made for.
func (s deviceService) whyReceipt(ctx context.Context, d registry.Device, id ids.ReceiptID) (*connect.Response[controlv1.WhyResponse], error) {
	rec, err := s.cfg.Decisions.Recorded(ctx, id)
	if err == nil {
		if ses, none := s.API.session(ctx, d); none == nil && ses.User != rec.User {
			err = session.ErrNotFound
		}
	}
	if err != nil || rec.Device != d.ID {
		return nil, &refusal{code: connect.CodeNotFound, text: "no receipt with this number for this device"}
	}
	name := ""
	if app, ok := s.cfg.Catalog.Current().App(rec.App); ok {
		name = app.Name
	}
	if ended, ok := s.cfg.Authorize.WhyReceiptEnded(id); ok {
		return connect.NewResponse(s.endedView(ended, rec, name)), nil
	}
	return connect.NewResponse(&controlv1.WhyResponse{Known: true, Receipt: s.receipt(rec, name), Text: s.text(rec)}), nil
}

// endedView explains a receipt whose grant has ended: what gave it holds no longer.
func (a *API) endedView(ended authorize.Ended, given policy.Record, name string) *controlv1.WhyResponse {
	if ended.Record.Receipt != "" {
		return &controlv1.WhyResponse{Known: true, Receipt: a.receipt(ended.Record, name), Text: a.text(ended.Record)}
	}
	text := "The access that this receipt stands for has ended (" + string(ended.Cause) + ")."
	return &controlv1.WhyResponse{Known: true, Receipt: a.receipt(given, name), Text: text}
}

func (a *API) text(rec policy.Record) string {
	if rec.Decision.Verdict.Grants() {
		return "You may use this app."
	}
	return policy.EmployeeText(policy.English, rec.Decision, a.cfg.Decisions.Remedies(rec), a.contact(rec.App))
}

// visible reports whether the user may know that the app exists.
func visible(app *catalog.App, rec policy.Record) bool {
	switch app.Visibility {
	case catalog.Everyone:
		return true
	case catalog.Allowed, catalog.Hidden:
		return rec.Decision.Verdict.Grants() || rec.Decision.Verdict == policy.VerdictStepUp
	default:
		return false
	}
}

// catalogFor lists what the user of a device may see.
func (a *API) catalogFor(ctx context.Context, d registry.Device) (*controlv1.Catalog, error) {
	ses, err := a.session(ctx, d)
	if err != nil {
		return &controlv1.Catalog{}, nil //nolint:nilerr // nobody signed in: nothing to see
	}
	snap := a.cfg.Catalog.Current()
	out := &controlv1.Catalog{Suffixes: snap.Suffixes(), UlaPrefix: ulaPrefix(a.cfg.CA.Pin()), Ipv4Candidates: ipv4Candidates()}
	for _, app := range snap.Apps() {
		if app.Retired {
			continue
		}
		rec, err := a.cfg.Authorize.View(ctx, ses, app, authorize.NoSource)
		if err != nil {
			return nil, err
		}
		if visible(app, rec) {
			out.Apps = append(out.Apps, a.catalogApp(app, snap, rec))
		}
	}
	relays, err := a.activeRelays(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range relays {
		out.Relays = append(out.Relays, a.relayInfo(r))
	}
	return out, nil
}

func (a *API) catalogApp(app *catalog.App, snap *catalog.Snapshot, rec policy.Record) *controlv1.CatalogApp {
	v := &controlv1.CatalogApp{
		Id: string(app.ID), Name: app.Name, Fqdns: app.Names(snap.Suffixes()), Index: app.Index, Class: string(app.Class),
		Allowed: rec.Decision.Verdict.Grants(),
	}
	if !v.Allowed && len(rec.Decision.Reasons) > 0 {
		v.Hint = rec.Decision.Reasons[0].Text(policy.English)
	}
	for _, p := range app.GrantPorts() {
		v.Ports = append(v.Ports, &controlv1.PortRange{Network: p.Network.String(), First: uint32(p.First), Last: uint32(p.Last)})
	}
	return v
}
