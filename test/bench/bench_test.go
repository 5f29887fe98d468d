//go:build linux

package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-zt/postern/test/netns"
)

// Laptops of the bench, by what is special about them.
const (
	laptopTLS       = "tls"
	laptopQUIC      = "quic"
	laptopReference = "ref"
)

// bench is one run.
type bench struct {
	t        *testing.T
	net      *network
	app      *app
	raw, wg  path
	products []path
	samples  map[string][]sample           // by path and direction
	opens    map[string][]time.Duration    // by path
	memory   map[string]map[string]float64 // MB by path and role, at the end
}

func TestBench(t *testing.T) {
	if os.Getenv("POSTERN_BENCH") == "" {
		t.Skip("run by make bench")
	}
	netns.Require(t)
	b := newBench(t)
	b.run()
	rows := b.rows()
	t.Logf("\n%s\n%s", b.conditions(), table(rows))
	publish(t, rows)
}

// newBench builds programs and network and starts everything.
func newBench(t *testing.T) *bench {
	t.Helper()
	dir, err := os.MkdirTemp("", "ptb") // short: it holds local sockets
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // of the temporary directory
	bins := buildAll(t, dir)
	reference := build(t, dir, referencePackage)
	n := newNetwork(t, laptopReference, laptopTLS, laptopQUIC)
	b := &bench{
		t: t, net: n, app: startApp(t, n.connector),
		samples: map[string][]sample{}, opens: map[string][]time.Duration{}, memory: map[string]map[string]float64{},
	}
	h := n.laptops[laptopReference]
	b.raw = path{name: "raw", host: h, addr: addrPort(fmt.Sprintf("%s:%d", n.appAddr, appPort))}
	b.wg = startReference(t, n, h, n.addrs[laptopReference], reference)
	n.blockUDP(n.laptops[laptopTLS])
	p := startProduct(t, n, bins, dir)
	b.products = p.startClients(t)
	for _, path := range b.paths() {
		warm(t, path)
	}
	return b
}

func buildAll(t *testing.T, dir string) binaries {
	t.Helper()
	const module = "github.com/postern-zt/postern/"
	return binaries{
		broker:    build(t, dir, module+"broker/cmd/postern-broker"),
		connector: build(t, dir, module+"connector/cmd/postern-connector"),
		cli:       build(t, dir, module+"client/cmd/postern"),
	}
}

func (b *bench) paths() []path { return append([]path{b.raw, b.wg}, b.products...) }

// run takes all samples, round by round, each round over all paths.
func (b *bench) run() {
	b.t.Helper()
	for round := range rounds() {
		for _, dir := range []direction{down, up} {
			for _, p := range b.paths() {
				b.sample(round, p, dir)
			}
		}
		took, err := measureOpens(b.paths())
		must(b.t, err)
		for name, d := range took {
			b.opens[name] = append(b.opens[name], d...)
		}
	}
	for _, p := range b.paths() {
		b.memory[p.name] = map[string]float64{}
		for role, pid := range p.pids {
			mb, err := resident(pid)
			must(b.t, err)
			b.memory[p.name][role] = mb
		}
	}
}

func (b *bench) sample(round int, p path, dir direction) {
	b.t.Helper()
	must(b.t, wait(b.t.Context(), settle))
	profile := b.startProfile(p, dir, round)
	s, err := b.measure(b.t.Context(), p, dir)
	profile()
	must(b.t, err)
	key := p.name + "/" + dir.String()
	b.samples[key] = append(b.samples[key], s)
	b.t.Logf("round %d  %-22s %6.2f Gbit/s  CPU-s/GB %s", round+1, key, s.gbps, roles(s.cpu))
}

// roles prints figures by role in the order of the way.
func roles(by map[string]float64) string {
	var parts []string
	sum := 0.0
	for _, role := range []string{"client", "relay", "connector"} {
		if v, ok := by[role]; ok {
			parts = append(parts, fmt.Sprintf("%s %.2f", role, v))
			sum += v
		}
	}
	return fmt.Sprintf("%.2f (%s)", sum, strings.Join(parts, ", "))
}

// conditions is what a reader must know to compare.
func (b *bench) conditions() string {
	wireMode := "@wire: segmentation offload off on every cable, GRO on"
	if os.Getenv("POSTERN_BENCH_PLAIN") != "" {
		wireMode = "plain: offloads on"
	}
	var s strings.Builder
	fmt.Fprintf(&s, "%s; MTU 1500; congestion control %s on both ends; windows of %v, median of %d rounds, interleaved; load average %s\n",
		wireMode, congestion, window, rounds(), machineLoad())
	for _, p := range b.paths() {
		if len(p.pids) > 0 {
			fmt.Fprintf(&s, "MB resident at the end, %s: %s\n", p.name, roles(b.memory[p.name]))
		}
	}
	return s.String()
}

// rows turns samples into the rows of the result.
func (b *bench) rows() []row {
	goals := map[string]goal{laptopTLS: {gate: 1.3, target: 1.8}, laptopQUIC: {gate: 0.9, target: 1.2}}
	var rows []row
	for _, dir := range []direction{down, up} {
		ref := b.middle(b.wg, dir)
		rows = append(rows, newRow("raw/"+dir.String(), b.middle(b.raw, dir).gbps, "Gbit/s", 0, goal{}))
		rows = append(rows, newRow("wireguard-go/"+dir.String(), ref.gbps, "Gbit/s", 0, goal{}))
		for _, p := range b.products {
			rows = append(rows, newRow(p.name+"/"+dir.String(), b.middle(p, dir).gbps, "Gbit/s", ref.gbps, goals[p.via]))
		}
	}
	direct := percentile(b.opens[b.raw.name], 50)
	for _, p := range append([]path{b.wg}, b.products...) {
		rows = append(rows, newRow("open/warm/p50/"+p.name, percentile(b.opens[p.name], 50), "us", direct, goal{}))
		rows = append(rows, newRow("open/warm/p99/"+p.name, percentile(b.opens[p.name], 99), "us", percentile(b.opens[b.raw.name], 99), goal{}))
	}
	for _, p := range b.products {
		rows = append(rows, b.cpuRows(p)...)
	}
	return rows
}

// cpuRows compares the CPU time of a download, role by role.
func (b *bench) cpuRows(p path) []row {
	own, ref := b.middle(p, down), b.middle(b.wg, down)
	var rows []row
	for _, role := range []string{"client", "relay", "connector"} {
		rows = append(rows, newRow("cpu/"+role+"/"+p.name, own.cpu[role], "s/GB", ref.cpu[role], goal{}))
	}
	return append(rows, newRow("cpu/sum/"+p.name, own.sum(), "s/GB", ref.sum(), goal{target: map[string]float64{laptopTLS: 0.5, laptopQUIC: 0.8}[p.via], most: true}))
}

func (b *bench) middle(p path, dir direction) sample {
	return middle(b.samples[p.name+"/"+dir.String()])
}

// startProfile records where CPU time goes during one sample of the first round, with perf
// over the path's programs; POSTERN_BENCH_PROFILE names the directory.
func (b *bench) startProfile(p path, dir direction, round int) (stop func()) {
	into := os.Getenv("POSTERN_BENCH_PROFILE")
	if into == "" || round > 0 || len(p.pids) == 0 {
		return func() {}
	}
	name := strings.ReplaceAll(p.name, "/", "-") + "-" + dir.String()
	return startPerf(b.t, filepath.Join(into, name), p.pids)
}
