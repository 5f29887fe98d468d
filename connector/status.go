package connector

import (
	"context"
	"errors"
	"os"

	"github.com/postern-zt/postern/connector/statusapi"
	"github.com/postern-zt/postern/connector/targets"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/grant"
)

// serveStatus answers `postern-connector status`. That nobody can ask is no reason to stop
// serving apps; that another connector serves this state directory is.
func (c *Connector) serveStatus(ctx context.Context) error {
	if c.cfg.Socket == "" {
		return nil
	}
	err := statusapi.Serve(ctx, c.cfg.Socket, c.Status, c.log)
	if err == nil || errors.Is(err, statusapi.ErrInUse) {
		return err
	}
	c.log.WarnContext(ctx, "status cannot be asked", "error", err)
	return nil
}

// Status is how the connector is, in layers.
func (c *Connector) Status() statusapi.Status {
	up, state := c.uplink.State(), c.enforcer.State()
	st := statusapi.Status{
		Version: c.cfg.Version, PID: os.Getpid(), Started: c.started, Broker: c.broker.Address,
		ID: string(c.joined.Connector), Key: c.member.KeyID().String(), Site: c.joined.SiteName,
		Uplink: statusapi.Uplink{Connected: up.Connected, Since: up.Since, Problem: up.Problem},
		Live:   state.Live, Grants: state.Grants, Flows: c.links.Flows(),
		ClockOffsetMS: up.Offset.Milliseconds(), CertificateEnds: c.member.NotAfter(),
		AuditHeads: c.auditHeads(), AuditProblem: c.witness.Problem(),
	}
	for _, r := range c.serve.States() {
		st.Relays = append(st.Relays, statusapi.Relay{
			ID: string(r.Relay), Transport: r.Transport, Up: r.Up, Since: r.Since, Problem: r.Problem,
		})
	}
	healthOf := map[string]*controlv1.AppHealth{}
	for _, h := range c.watch.Apps(state.Apps) {
		healthOf[h.AppId] = h
	}
	for _, a := range state.Apps {
		h := healthOf[string(a.ID)]
		st.Apps = append(st.Apps, statusapi.App{
			ID: string(a.ID), Name: a.Name, Targets: targetsOf(a), State: h.GetState(), Code: h.GetCode(),
		})
	}
	return st
}

// auditHeads are the heads that the broker must still have: of its own chain, and of ours.
func (c *Connector) auditHeads() []string {
	heads := c.witness.Heads()
	if own := c.flows.Shipped(); own.Seq > 0 {
		heads = append([]string{own.String()}, heads...)
	}
	return heads
}

func targetsOf(a grant.App) []statusapi.Target {
	var out []statusapi.Target
	for _, t := range a.Targets {
		out = append(out, statusapi.Target{Network: t.Ports.Network.String(), Address: targets.Address(t)})
	}
	return out
}
