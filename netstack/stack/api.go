package stack

import (
	"context"
	"log/slog"
	"net/netip"
	"time"
)

// Device moves batches of IP packets. It is the part of wireguard's tun.Device
// that this package needs. Read fills bufs[i][offset:] and sizes[i]; Write takes
// packets that start at offset, which leaves room for a device header.
type Device interface {
	Read(bufs [][]byte, sizes []int, offset int) (int, error)
	Write(bufs [][]byte, offset int) (int, error)
	MTU() (int, error)
	Close() error
	BatchSize() int
}

// Handler decides what happens to new flows. Each method is called in a goroutine
// of its own, may block, and may keep running for the life of the flow; ctx ends
// when the stack stops. Returning without a verdict means silence.
type Handler interface {
	// HandleTCP gets a SYN that is held: the program sees nothing until a
	// verdict.
	HandleTCP(ctx context.Context, held *HeldTCP)
	// HandleUDP gets a new association with its first datagrams.
	HandleUDP(ctx context.Context, flow *UDPFlow)
	// HandleEcho gets an ICMP echo request (a ping).
	HandleEcho(ctx context.Context, echo *Echo)
}

// Config says what a Stack works on. Zero limits and times mean the defaults of
// this package.
type Config struct {
	// Device carries the packets of the local programs. The stack closes it.
	Device Device
	// Handler decides. It must not be nil.
	Handler Handler
	// Prefixes are the destinations that exist. Packets to other addresses are
	// dropped and counted. SetPrefixes replaces them.
	Prefixes []netip.Prefix
	Log      *slog.Logger

	// Limits bounds the memory that programs can make the stack take.
	Limits Limits
	// Times are the waits; tests shorten them.
	Times Times
}

// Limits bounds what local programs can make the stack hold. Zero means default.
type Limits struct {
	Held         int // SYNs without a verdict, all together: 4096
	HeldPerApp   int // and for one app address: 256
	UDPFlows     int // associations, all together: 4096
	UDPPerApp    int // and for one app address: 1024
	HeldPackets  int // datagrams of an association before its verdict: 8
	HeldBytes    int // and their bytes: 64 KiB
	QueuePackets int // datagrams waiting for ReadPacket after the verdict: 256
	QueueBytes   int // and their bytes: 1 MiB
	Echoes       int // echo requests without a verdict: 64
	Verdicts     int // remembered refusals: 4096
}

// Times are the waits of a stack. Zero means default.
type Times struct {
	HoldTCP   time.Duration // a SYN without verdict becomes silence: 20 s
	HoldUDP   time.Duration // datagrams without verdict are dropped: 3 s
	Remember  time.Duration // a refusal answers repetitions: 3 s
	Handshake time.Duration // the program must finish its handshake: 5 s
	IdleUDP   time.Duration // an association without datagrams ends: 60 s
	IdleDNS   time.Duration // the same for port 53: 10 s
}
