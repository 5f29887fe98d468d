package relaynode

import (
	"context"
	"time"

	"connectrpc.com/connect"

	controlv1 "github.com/postern-zt/postern/proto/control/v1"
)

const (
	reportEvery = 15 * time.Second
	callTimeout = 10 * time.Second
)

// report tells the broker the counters until ctx ends. A report that does not arrive is
// replaced by the next one: all counters but the load only grow.
func (n *Node) report(ctx context.Context) error {
	var bytes uint64
	for {
		pause(ctx, spread(reportEvery))
		if ctx.Err() != nil {
			return nil
		}
		for _, u := range n.relay.TakeUsage() {
			bytes += u.Up + u.Down
		}
		if err := n.reportOnce(ctx, bytes); err != nil && ctx.Err() == nil {
			n.log.DebugContext(ctx, "report not delivered", "error", err)
		}
	}
}

func (n *Node) reportOnce(ctx context.Context, bytes uint64) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	load := n.relay.Load()
	_, err := n.client.Report(ctx, connect.NewRequest(&controlv1.RelayReportRequest{
		Version: n.cfg.Version, Links: uint64(load.Links + load.Bindings), Bytes: bytes, Drops: n.relay.Drops(),
	}))
	return err
}

// keepCertificate renews the certificate that both the broker and those who attach look
// at. A new one counts from the next connection on.
func (n *Node) keepCertificate(ctx context.Context) error {
	renew := func(ctx context.Context, csr []byte) ([][]byte, error) {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		resp, err := n.renew.Renew(ctx, connect.NewRequest(&controlv1.RenewRequest{CsrDer: csr}))
		if err != nil {
			n.log.WarnContext(ctx, "certificate not renewed", "error", err, "expires", n.member.NotAfter())
			return nil, err
		}
		return resp.Msg.ChainDer, nil
	}
	return n.member.KeepRenewed(ctx, renew, func(chain [][]byte) error {
		n.joined.Chain = chain
		n.http.CloseIdleConnections()
		return n.cfg.Store.Save(n.joined)
	})
}
