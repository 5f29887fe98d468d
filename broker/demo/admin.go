package demo

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/platform/ipc"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	"github.com/postern-zt/postern/proto/admin/v1/adminv1connect"
)

// lookEvery is how often the admin looks whether something has happened.
const lookEvery = 50 * time.Millisecond

// admin administers on the broker's local socket, as `postern admin` does there.
type admin struct {
	socket     string
	transport  *http.Transport
	rules      adminv1connect.RuleServiceClient
	connectors adminv1connect.ConnectorServiceClient
	audit      adminv1connect.AuditServiceClient
}

func newAdmin(socket string) *admin {
	t := ipc.Transport(socket)
	hc, base := &http.Client{Transport: t}, "http://broker"
	return &admin{
		socket: socket, transport: t, rules: adminv1connect.NewRuleServiceClient(hc, base),
		connectors: adminv1connect.NewConnectorServiceClient(hc, base), audit: adminv1connect.NewAuditServiceClient(hc, base),
	}
}

func (a *admin) close() { a.transport.CloseIdleConnections() }

func (a *admin) allow(ctx context.Context, user, app string, require ...string) (*adminv1.Rule, error) {
	resp, err := a.rules.PutRule(ctx, connect.NewRequest(&adminv1.PutRuleRequest{
		Effect: "allow", Users: []string{user}, Apps: []string{app}, Require: require,
	}))
	if err != nil {
		return nil, err
	}
	return resp.Msg.Rule, nil
}

func (a *admin) deleteRule(ctx context.Context, id string) error {
	_, err := a.rules.DeleteRule(ctx, connect.NewRequest(&adminv1.RuleRef{Rule: id}))
	return err
}

// awaitConnector waits until a connector has its control stream.
func (a *admin) awaitConnector(ctx context.Context) error {
	return until(ctx, "no connector came online", func() (bool, error) {
		resp, err := a.connectors.ListConnectors(ctx, connect.NewRequest(&adminv1.ListConnectorsRequest{}))
		if err != nil {
			return false, err
		}
		for _, c := range resp.Msg.Connectors {
			if c.Online {
				return true, nil
			}
		}
		return false, nil
	})
}

// awaitFlowRecords waits until each flow that the connector opened has its close record
// at the broker.
func (a *admin) awaitFlowRecords(ctx context.Context) error {
	return until(ctx, "the connector's records did not arrive", func() (bool, error) {
		opened, err := a.count(ctx, "flow_open")
		if err != nil || opened == 0 {
			return false, err
		}
		closed, err := a.count(ctx, "flow_close")
		return closed == opened, err
	})
}

func (a *admin) count(ctx context.Context, kind string) (int, error) {
	resp, err := a.audit.Search(ctx, connect.NewRequest(&adminv1.SearchRequest{Kind: kind, Page: &adminv1.Page{Size: 100}}))
	if err != nil {
		return 0, err
	}
	return len(resp.Msg.Records), nil
}

// decision looks a receipt up, as a helpdesk would.
func (a *admin) decision(ctx context.Context, receipt string) (*adminv1.Decision, error) {
	resp, err := a.audit.GetDecision(ctx, connect.NewRequest(&adminv1.DecisionRef{Receipt: receipt}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

func (a *admin) verify(ctx context.Context) (*adminv1.VerifyResponse, error) {
	resp, err := a.audit.Verify(ctx, connect.NewRequest(&adminv1.VerifyRequest{}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

// until looks again and again until ready; the error says what was missing.
func until(ctx context.Context, missing string, ready func() (bool, error)) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		ok, err := ready()
		if err != nil || ok {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", missing, context.Cause(ctx))
		}
	}
}
