//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
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
	// opens is how many connections are opened per path and round.
	opens = 200
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
}

func (s sample) sum() float64 {
	total := 0.0
	for _, v := range s.cpu {
		total += v
	}
	return total
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
	start, from := time.Now(), l.count.Load()
	if err := wait(ctx, window); err != nil {
		return sample{}, err
	}
	took, bytes := time.Since(start), l.count.Load()-from
	after, err := cpuTimes(p.pids)
	if err != nil {
		return sample{}, err
	}
	if bytes == 0 {
		return sample{}, errors.New("no byte arrived")
	}
	gb := float64(bytes) / 1e9
	s := sample{bytes: bytes, gbps: gb * 8 / took.Seconds(), cpu: map[string]float64{}}
	for role := range p.pids {
		s.cpu[role] = (after[role] - before[role]).Seconds() / gb
	}
	return s, nil
}

// measureOpens opens connections one after the other, alternating between paths.
func measureOpens(paths []path) (map[string][]time.Duration, error) {
	took := map[string][]time.Duration{}
	for range opens {
		for _, p := range paths {
			err := p.host.Do(func() error {
				d, err := firstByte(p)
				took[p.name] = append(took[p.name], d)
				return err
			})
			if err != nil {
				return nil, fmt.Errorf("open on %s: %w", p.name, err)
			}
		}
	}
	return took, nil
}

// rounds is how often everything is measured; POSTERN_BENCH_ROUNDS=1 is for a quick look.
func rounds() int {
	if n, err := strconv.Atoi(os.Getenv("POSTERN_BENCH_ROUNDS")); err == nil && n > 0 {
		return n
	}
	return defaultRounds
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
