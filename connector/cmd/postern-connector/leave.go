package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/connector/enroll"
	"github.com/postern-zt/postern/connector/flowlog"
	"github.com/postern-zt/postern/connector/statusapi"
	"github.com/postern-zt/postern/connector/uplink"
	"github.com/postern-zt/postern/netstack/control"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/control/v1/controlv1connect"
)

// shipTimeout bounds the delivery of the last flow records at a leave.
const shipTimeout = 10 * time.Second

// leaveCmd ends the membership.
type leaveCmd struct {
	Force bool `help:"Forget the membership even when the broker cannot be told, or while the connector runs."`
}

// errRuns says that a connector uses the state directory.
var errRuns = errors.New("postern-connector runs on this machine; stop it first")

// Run delivers what is recorded, tells the broker, then forgets key and membership.
func (l *leaveCmd) Run(e *env) error {
	running := runs(e)
	if running && !l.Force {
		return errRuns
	}
	store, err := enroll.Open(e.dir)
	if err != nil {
		return err
	}
	m, err := store.Load()
	if err != nil {
		return err
	}
	if err := withBroker(e, store, m, func(c controlv1connect.ConnectorServiceClient) error {
		if !running { // else the log is the other process's
			shipLast(e, store, m, c)
		}
		return leave(e, c)
	}); err != nil && !l.Force {
		return fmt.Errorf("the broker was not told: %w; --force forgets the membership all the same", err)
	}
	if err := store.Forget(); err != nil {
		return err
	}
	_, err = fmt.Fprintln(e.out, "Left. This machine no longer serves any app.")
	return err
}

// runs reports whether a connector answers on this machine, to us or to another user.
func runs(e *env) bool {
	_, err := statusapi.Fetch(e.ctx, e.socket)
	return err == nil || errors.Is(err, statusapi.ErrDenied)
}

// leave tells the broker. One that has removed this connector needs no telling.
func leave(e *env, c controlv1connect.ConnectorServiceClient) error {
	_, err := c.Leave(e.ctx, connect.NewRequest(&controlv1.LeaveRequest{}))
	if uplink.Removed(err) || connect.IsWireError(err) && connect.CodeOf(err) == connect.CodeNotFound {
		return nil
	}
	return err
}

// shipLast delivers what waits while the broker still takes it. What it does not take stays
// on this machine, for no later identity may ship it.
func shipLast(e *env, store *enroll.Store, m enroll.Membership, c controlv1connect.ConnectorServiceClient) {
	log, err := flowlog.Open(store.Flows(), m.Connector, store.Key(), nil)
	if err != nil {
		e.log.Warn("flow records not delivered", "error", err)
		return
	}
	defer log.Close()
	ctx, cancel := context.WithTimeout(e.ctx, shipTimeout)
	defer cancel()
	if err := log.Ship(ctx, uplink.Shipper(c)); err != nil {
		e.log.Warn("flow records not delivered", "count", log.Waiting(), "error", err)
	}
}

// withBroker calls the broker as the member that this machine is.
func withBroker(e *env, store *enroll.Store, m enroll.Membership, call func(controlv1connect.ConnectorServiceClient) error) error {
	broker, err := m.Broker()
	if err != nil {
		return err
	}
	member, err := control.NewMember(store.Key(), m.Chain, nil)
	if err != nil {
		return err
	}
	hc := control.NewClient(control.ClientConfig{Broker: broker, Certificate: member.Certificate, Dialer: e.proxy})
	defer hc.CloseIdleConnections()
	return call(controlv1connect.NewConnectorServiceClient(hc, broker.BaseURL()))
}
