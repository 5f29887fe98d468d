package relaynode

import "context"

// ReportForTest sends one report now.
func (n *Node) ReportForTest(ctx context.Context, bytes uint64) error {
	return n.reportOnce(ctx, bytes)
}
