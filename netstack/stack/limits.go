package stack

import (
	"sync/atomic"
	"time"
)

func (l Limits) withDefaults() Limits {
	for _, f := range []struct {
		field *int
		value int
	}{
		{&l.Held, 4096},
		{&l.HeldPerApp, 256},
		{&l.UDPFlows, 4096},
		{&l.UDPPerApp, 1024},
		{&l.HeldPackets, 8},
		{&l.HeldBytes, 64 << 10},
		{&l.QueuePackets, 256},
		{&l.QueueBytes, 1 << 20},
		{&l.Echoes, 64},
		{&l.Verdicts, 4096},
	} {
		if *f.field == 0 {
			*f.field = f.value
		}
	}
	return l
}

func (t Times) withDefaults() Times {
	for _, f := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&t.HoldTCP, 20 * time.Second},
		{&t.HoldUDP, 3 * time.Second},
		{&t.Remember, 3 * time.Second},
		{&t.Handshake, 5 * time.Second},
		{&t.IdleUDP, 60 * time.Second},
		{&t.IdleDNS, 10 * time.Second},
	} {
		if *f.field == 0 {
			*f.field = f.value
		}
	}
	return t
}

// counters count what was dropped, by reason.
type counters struct {
	malformed atomic.Uint64
	outside   atomic.Uint64
	limited   atomic.Uint64
	expired   atomic.Uint64
	overflow  atomic.Uint64
	refused   atomic.Uint64
}

// Drops counts packets and flows that got silence, by reason.
type Drops struct {
	Malformed uint64 // not a packet we understand
	Outside   uint64 // destination in no prefix
	Limited   uint64 // over a limit of Limits
	Expired   uint64 // held without a verdict for too long
	Overflow  uint64 // datagrams that nobody read in time
	Refused   uint64 // packets that the device did not take
}

// Drops returns the counts since New.
func (s *Stack) Drops() Drops {
	c := &s.stats
	return Drops{
		Malformed: c.malformed.Load(), Outside: c.outside.Load(), Limited: c.limited.Load(),
		Expired: c.expired.Load(), Overflow: c.overflow.Load(),
		Refused: c.refused.Load(),
	}
}
