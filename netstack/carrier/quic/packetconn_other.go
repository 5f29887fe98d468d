//go:build !linux

package quic

import "net"

// forQUIC: datagrams go one by one, without ECN.
func (c *packetConn) forQUIC() net.PacketConn { return c }
