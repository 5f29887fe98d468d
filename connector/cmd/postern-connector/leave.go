package main

import (
	"fmt"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/connector/enroll"
	"github.com/postern-zt/postern/netstack/control"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/control/v1/controlv1connect"
)

// leaveCmd ends the membership.
type leaveCmd struct {
	Force bool `help:"Forget the membership even when the broker cannot be told."`
}

// Run tells the broker, then forgets key and membership.
func (l *leaveCmd) Run(e *env) error {
	store, err := enroll.Open(e.dir)
	if err != nil {
		return err
	}
	m, err := store.Load()
	if err != nil {
		return err
	}
	if err := tellBroker(e, store, m); err != nil && !l.Force {
		return fmt.Errorf("the broker was not told: %w; --force forgets the membership all the same", err)
	}
	if err := store.Forget(); err != nil {
		return err
	}
	_, err = fmt.Fprintln(e.out, "Left. This machine no longer serves any app.")
	return err
}

func tellBroker(e *env, store *enroll.Store, m enroll.Membership) error {
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
	client := controlv1connect.NewConnectorServiceClient(hc, broker.BaseURL())
	_, err = client.Leave(e.ctx, connect.NewRequest(&controlv1.LeaveRequest{}))
	return err
}
