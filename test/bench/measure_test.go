//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/postern-zt/postern/test/netns"
)

const (
	// warmUp lets windows open and buffers grow before the window of a sample.
	warmUp = time.Second
	window = 3 * time.Second
	// settle lets queues run dry between two samples.
	settle        = 300 * time.Millisecond
	defaultRounds = 3
	// A sample during which others took more than quiet of the machine is taken again, up to
	// attempts times; the least disturbed one counts.
	quiet    = 0.08
	attempts = 3
	// openBlocks of openBlock connections are opened per path and round, in turn.
	openBlocks = 4
	openBlock  = 50
)

// path is one way from a laptop to the app.
type path struct {
	name string
	host *netns.Host
	addr netip.AddrPort
	// socks is the app's name and port where addr is a proxy's; empty without.
	socks string
	// via is the carrier through the relay ("tls", "quic"); empty for a path around it.
	via string
	// pids are the programs whose CPU time the path costs, by role.
	pids map[string]int
	// check says why a sample just taken is not one of this path; nil for no such thing.
	check func() error
}

// sample is one window of one connection.
type sample struct {
	bytes uint64
	gbps  float64
	// cpu is CPU seconds per 10^9 payload bytes, by role.
	cpu map[string]float64
	// foreign is the share of the machine that others took meanwhile.
	foreign float64
}

func sum(by map[string]float64) float64 {
	total := 0.0
	for _, v := range by {
		total += v
	}
	return total
}

// quietly measures until the rest of the machine is still, or patience ends.
func (b *bench) quietly(ctx context.Context, p path, dir direction) (sample, error) {
	best := sample{foreign: 1}
	for range attempts {
		if err := wait(ctx, settle); err != nil {
			return sample{}, err
		}
		s, err := b.measure(ctx, p, dir)
		if err != nil {
			return sample{}, err
		}
		if s.foreign < best.foreign {
			best = s
		}
		if best.foreign <= quiet {
			break
		}
	}
	return best, nil
}

// measure moves bytes along a path and returns one sample.
func (b *bench) measure(ctx context.Context, p path, dir direction) (sample, error) {
	l, err := b.app.startLoad(p, dir)
	if err != nil {
		return sample{}, fmt.Errorf("%s %s: %w", p.name, dir, err)
	}
	defer l.stop()
	if err := wait(ctx, warmUp); err != nil {
		return sample{}, err
	}
	if err := checkCongestion(p.host, b.net.relay, b.net.connector); err != nil {
		return sample{}, err
	}
	packets, err := readCounters(b.net.relay)
	if err != nil {
		return sample{}, err
	}
	s, err := p.observe(ctx, l)
	if err == nil {
		err = b.verify(p, packets, s)
	}
	if err = errors.Join(err, b.app.problem()); err != nil {
		return sample{}, fmt.Errorf("%s %s: %w", p.name, dir, err)
	}
	return s, nil
}

// verify says why a sample is not one of the path that it was meant for.
func (b *bench) verify(p path, before counters, s sample) error {
	after, err := readCounters(b.net.relay)
	if err != nil {
		return err
	}
	if err := after.carried(before, p.via, s.bytes); err != nil {
		return err
	}
	if p.check == nil {
		return nil
	}
	return p.check()
}

func (p path) observe(ctx context.Context, l *load) (sample, error) {
	before, err := cpuTimes(p.pids)
	if err != nil {
		return sample{}, err
	}
	others, err := foreignTime(p.pids)
	if err != nil {
		return sample{}, err
	}
	start, from := time.Now(), l.count.Load()
	if err := wait(ctx, window); err != nil {
		return sample{}, err
	}
	took, bytes := time.Since(start), l.count.Load()-from
	after, err := cpuTimes(p.pids)
	if err != nil {
		return sample{}, err
	}
	later, err := foreignTime(p.pids)
	if err != nil {
		return sample{}, err
	}
	if bytes == 0 {
		return sample{}, errors.New("no byte arrived")
	}
	gb := float64(bytes) / 1e9
	s := sample{bytes: bytes, gbps: gb * 8 / took.Seconds(), cpu: map[string]float64{}}
	s.foreign = (later - others).Seconds() / took.Seconds() / float64(runtime.NumCPU())
	for role := range p.pids {
		s.cpu[role] = (after[role] - before[role]).Seconds() / gb
	}
	return s, nil
}

// opened is what opening some connections took.
type opened struct {
	took []time.Duration
	// cpu is the CPU time of all of them, by role.
	cpu map[string]time.Duration
}

func (o opened) plus(more opened) opened {
	both := opened{took: append(slices.Clone(o.took), more.took...), cpu: maps.Clone(more.cpu)}
	for role, d := range o.cpu {
		both.cpu[role] += d
	}
	return both
}

// perOpen is the CPU time of one connection in microseconds, by role.
func (o opened) perOpen() map[string]float64 {
	by := map[string]float64{}
	for role, d := range o.cpu {
		by[role] = float64(d.Microseconds()) / float64(len(o.took))
	}
	return by
}

// measureOpens opens connections one after the other.
func (p path) measureOpens(n int) (opened, error) {
	before, err := cpuTimes(p.pids)
	if err != nil {
		return opened{}, err
	}
	o := opened{cpu: map[string]time.Duration{}}
	for range n {
		err := p.host.Do(func() error {
			d, err := firstByte(p)
			o.took = append(o.took, d)
			return err
		})
		if err != nil {
			return opened{}, fmt.Errorf("open on %s: %w", p.name, err)
		}
	}
	after, err := cpuTimes(p.pids)
	for role := range p.pids {
		o.cpu[role] = after[role] - before[role]
	}
	return o, err
}

// rounds is how often everything is measured; POSTERN_BENCH_ROUNDS=1 is for a quick look.
func rounds() int {
	if n, err := strconv.Atoi(os.Getenv("POSTERN_BENCH_ROUNDS")); err == nil && n > 0 {
		return n
	}
	return defaultRounds
}

// onlyOpens is the size of a block where nothing but new connections is measured, else 0.
func onlyOpens() int {
	n, err := strconv.Atoi(os.Getenv("POSTERN_BENCH_OPENS"))
	if err != nil {
		return 0
	}
	return n
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// middle returns the sample with the median goodput.
func middle(samples []sample) sample {
	s := slices.Clone(samples)
	slices.SortFunc(s, func(a, b sample) int {
		switch {
		case a.gbps < b.gbps:
			return -1
		case a.gbps > b.gbps:
			return 1
		default:
			return 0
		}
	})
	return s[len(s)/2]
}

// percentile of some durations, in microseconds.
func percentile(d []time.Duration, p int) float64 {
	s := slices.Clone(d)
	slices.Sort(s)
	return float64(s[(len(s)-1)*p/100].Nanoseconds()) / 1e3
}
