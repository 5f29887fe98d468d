package controlapi

import (
	"context"
	"encoding/json"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/push"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/tickets"
	"github.com/postern-zt/postern/proto/chain"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/ids"
)

const (
	maxShip      = 1000
	maxHealthApp = 4096
	// maxHealth bounds a stored report: every decision reads the rows of all connectors.
	maxHealth = 256 << 10
)

type connectorService struct{ *API }

// Watch is a connector's stream: keys, assignment, relays, statements.
func (s connectorService) Watch(ctx context.Context, req *connect.Request[controlv1.WatchRequest], out *connect.ServerStream[controlv1.ConnectorPush]) error {
	c, err := s.connector(ctx)
	if err != nil {
		return err
	}
	stream := s.connectors.Subscribe(c.ID)
	defer stream.Close()
	s.cfg.Ledger.Attach(c.ID, grants.Applied{Epoch: req.Msg.Epoch, Statement: req.Msg.Sequence, Revoked: req.Msg.Revoked})
	s.seen(ctx, func(ctx context.Context) error {
		return s.cfg.Registry.SeeConnector(ctx, c.ID, callerOf(ctx).addr, req.Msg.Version, registry.ConnectorReport{}, s.cfg.Now())
	})
	w := connectorWatch{API: s.API, out: out, heads: newHeads(req.Msg)}
	for {
		m, err := next(ctx, stream, push.Statement, s.cfg.Lease/statementsPerLease)
		if err != nil {
			return err
		}
		if w.connector, err = s.connector(ctx); err != nil {
			return err
		}
		if err := w.send(ctx, m); err != nil {
			return err
		}
		if m.Has(push.Reconnect) {
			return nil
		}
		if err := w.sendHeads(ctx); err != nil {
			return err
		}
	}
}

// connectorWatch is one open stream of a connector.
type connectorWatch struct {
	*API
	connector registry.Connector
	out       *connect.ServerStream[controlv1.ConnectorPush]
	heads     *heads
}

func (w *connectorWatch) push(fill func(p *controlv1.ConnectorPush)) error {
	st := w.stamp()
	p := &controlv1.ConnectorPush{Epoch: st.epoch, Sequence: st.seq, TimeMs: st.ms}
	fill(p)
	return w.out.Send(p)
}

// send sends the marked state; statements first, for they revoke, except at the start,
// when their key must come before.
func (w *connectorWatch) send(ctx context.Context, m push.Mark) error {
	if m.Has(push.Reconnect) {
		return w.push(func(p *controlv1.ConnectorPush) {
			p.News = &controlv1.ConnectorPush_Reconnect{Reconnect: w.reconnect()}
		})
	}
	steps := []struct {
		mark push.Mark
		send func(context.Context) error
	}{
		{push.Keys, w.sendKeys}, {push.Statement, w.sendStatements},
		{push.Assignment, w.sendAssignment}, {push.Relays, w.sendRelays},
	}
	for _, s := range steps {
		if !m.Has(s.mark) {
			continue
		}
		if err := s.send(ctx); err != nil {
			return err
		}
	}
	return nil
}

// sendHeads tells what is to be remembered of the audit, when it is time.
func (w *connectorWatch) sendHeads(ctx context.Context) error {
	h := w.dueHeads(ctx, w.heads)
	if h == nil {
		return nil
	}
	return w.push(func(p *controlv1.ConnectorPush) { p.News = &controlv1.ConnectorPush_Audit{Audit: h} })
}

func (w *connectorWatch) sendKeys(context.Context) error {
	_, certs, err := w.cfg.Ring.SignerKeys()
	if err != nil {
		return err
	}
	return w.push(func(p *controlv1.ConnectorPush) {
		p.News = &controlv1.ConnectorPush_Keys{Keys: &controlv1.Keys{CertificatesDer: certs}}
	})
}

func (w *connectorWatch) sendAssignment(ctx context.Context) error {
	as, err := w.cfg.Ledger.Assignment(ctx, w.connector, w.cfg.Catalog.Current())
	if err != nil {
		return err
	}
	return w.push(func(p *controlv1.ConnectorPush) {
		p.News = &controlv1.ConnectorPush_Assignment{Assignment: as.Envelope}
	})
}

func (w *connectorWatch) sendStatements(context.Context) error {
	for _, st := range w.cfg.Ledger.Statements(w.connector.ID, w.cfg.Now()) {
		if err := w.push(func(p *controlv1.ConnectorPush) { p.News = &controlv1.ConnectorPush_Statement{Statement: st} }); err != nil {
			return err
		}
	}
	return nil
}

func (w *connectorWatch) sendRelays(ctx context.Context) error {
	relays, err := w.activeRelays(ctx)
	if err != nil {
		return err
	}
	msg := &controlv1.Relays{}
	for _, r := range relays {
		m, err := w.cfg.Tickets.Connector(tickets.Relay{ID: r.ID, HPKE: r.HPKE}, w.connector.Identity.Key, w.cfg.Now())
		if err != nil {
			return err
		}
		msg.Relays = append(msg.Relays, w.relayPath(r, m))
	}
	return w.push(func(p *controlv1.ConnectorPush) { p.News = &controlv1.ConnectorPush_Relays{Relays: msg} })
}

// Acknowledge notes what a connector has applied.
func (s connectorService) Acknowledge(ctx context.Context, req *connect.Request[controlv1.AcknowledgeRequest]) (*connect.Response[controlv1.AcknowledgeResponse], error) {
	c, err := s.connector(ctx)
	if err != nil {
		return nil, err
	}
	s.cfg.Ledger.Acknowledge(c.ID, req.Msg.Revoked)
	if req.Msg.ReportsActivity {
		s.cfg.Authorize.Active(c.ID, grantIDs(req.Msg.ActiveGrants))
	}
	s.latency.acknowledged(req.Msg.Revoked, s.cfg.Now(), s.cfg.RevocationSeen)
	s.seen(ctx, func(ctx context.Context) error {
		return s.cfg.Registry.SeeConnector(ctx, c.ID, callerOf(ctx).addr, "", registry.ConnectorReport{
			Assignment: req.Msg.AssignmentVersion, Applied: req.Msg.Revoked,
		}, s.cfg.Now())
	})
	return connect.NewResponse(&controlv1.AcknowledgeResponse{}), nil
}

// grantIDs converts what a connector says; what is no live grant is passed over later.
func grantIDs(list []string) []ids.GrantID {
	out := make([]ids.GrantID, len(list))
	for i, id := range list {
		out[i] = ids.GrantID(id)
	}
	return out
}

// Health takes a connector's report.
func (s connectorService) Health(ctx context.Context, req *connect.Request[controlv1.HealthRequest]) (*connect.Response[controlv1.HealthResponse], error) {
	c, err := s.connector(ctx)
	if err != nil {
		return nil, err
	}
	if len(req.Msg.Apps) > maxHealthApp {
		return nil, badRequest("at most %d apps in one report", maxHealthApp)
	}
	health, err := json.Marshal(req.Msg)
	if err != nil {
		return nil, err
	}
	if len(health) > maxHealth {
		return nil, badRequest("a report has at most %d bytes", maxHealth)
	}
	err = s.cfg.Registry.SeeConnector(ctx, c.ID, callerOf(ctx).addr, req.Msg.Version, registry.ConnectorReport{Health: health}, s.cfg.Now())
	return connect.NewResponse(&controlv1.HealthResponse{TimeMs: s.cfg.Now().UnixMilli()}), err
}

// Ship takes audit records of a connector into the broker's store.
func (s connectorService) Ship(ctx context.Context, req *connect.Request[controlv1.ShipRequest]) (*connect.Response[controlv1.ShipResponse], error) {
	c, err := s.connector(ctx)
	if err != nil {
		return nil, err
	}
	if len(req.Msg.Records) > maxShip {
		return nil, badRequest("at most %d records at a time", maxShip)
	}
	through, err := s.cfg.Audit.Ingest(ctx, audit.Shipment{
		Connector: c.ID, Key: c.Identity.Key, Records: req.Msg.Records, SignedHead: req.Msg.SignedHead,
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&controlv1.ShipResponse{Through: through}), nil
}

// Propose asks for apps after the join.
func (s connectorService) Propose(ctx context.Context, req *connect.Request[controlv1.ProposeRequest]) (*connect.Response[controlv1.ProposeResponse], error) {
	c, err := s.connector(ctx)
	if err != nil {
		return nil, err
	}
	if len(req.Msg.Publish) > maxPublish {
		return nil, badRequest("at most %d apps at a time", maxPublish)
	}
	return connect.NewResponse(&controlv1.ProposeResponse{Results: s.publish(ctx, c, req.Msg.Publish)}), nil
}

// Leave removes the calling connector for good.
func (s connectorService) Leave(ctx context.Context, _ *connect.Request[controlv1.LeaveRequest]) (*connect.Response[controlv1.LeaveResponse], error) {
	c, err := s.connector(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := s.cfg.Registry.SetConnectorState(ctx, c.ID, registry.Removed); err != nil {
		return nil, err
	}
	s.cfg.Audit.AppendBestEffort(audit.Event{Kind: chain.Changed, Connector: c.ID, Details: map[string]string{"what": "connector left"}})
	return connect.NewResponse(&controlv1.LeaveResponse{}), nil
}
