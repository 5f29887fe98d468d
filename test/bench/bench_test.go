//go:build linux

package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-zt/postern/test/netns"
)

// Laptops of the bench, by what is special about them.
const (
	laptopTLS       = "tls"
	laptopQUIC      = "quic"
	laptopReference = "ref"
	laptopProxy     = "proxy"
)

// Ways of the product, behind the carrier in names of rows.
const (
	tunRelay   = "/tun-relay"
	proxyRelay = "/proxy-relay"
)

// bench is one run.
type bench struct {
	t        *testing.T
	net      *network
	app      *app
	raw, wg  path
	products []path
	samples  map[string][]sample           // by path and direction
	opens    map[string]opened             // by path
	memory   map[string]map[string]float64 // MB by path and role, at the end
	busy     string                        // load of the machine before the bench
}

func TestBench(t *testing.T) {
	if os.Getenv("POSTERN_BENCH") == "" {
		t.Skip("run by make bench")
	}
	netns.Require(t)
	b := newBench(t)
	if n := onlyOpens(); n > 0 {
		b.open(0, n)
		return
	}
	b.run()
	rows := b.rows()
	t.Logf("\n%s\n%s", b.conditions(), table(rows))
	publish(t, rows)
}

// newBench builds programs and network and starts everything.
func newBench(t *testing.T) *bench {
	t.Helper()
	busy := machineLoad()
	dir, err := os.MkdirTemp("", "ptb") // short: it holds local sockets
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // of the temporary directory
	bins := buildAll(t, dir)
	reference := build(t, dir, referencePackage)
	laptops := []string{laptopReference, laptopTLS, laptopQUIC}
	if withProxy() {
		laptops = append(laptops, laptopProxy)
	}
	n := newNetwork(t, laptops...)
	b := &bench{
		busy: busy,
		t:    t, net: n, app: startApp(t, n.connector),
		samples: map[string][]sample{}, opens: map[string]opened{}, memory: map[string]map[string]float64{},
	}
	h := n.laptops[laptopReference]
	b.raw = path{name: "raw", host: h, addr: addrPort(fmt.Sprintf("%s:%d", n.appAddr, appPort))}
	b.wg = startReference(t, n, h, n.addrs[laptopReference], reference)
	for _, name := range []string{laptopTLS, laptopProxy} {
		if h := n.laptops[name]; h != nil {
			n.blockUDP(h)
		}
	}
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
		daemon:    build(t, dir, module+"client/cmd/posternd"),
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
		b.open(round, openBlock)
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

// open opens connections on all paths in turn, in blocks of n.
func (b *bench) open(round, n int) {
	b.t.Helper()
	for block := range openBlocks {
		for _, p := range b.paths() {
			profile := b.startProfile(p, fmt.Sprintf("open%d", block), round)
			o, err := p.measureOpens(n)
			profile()
			must(b.t, err)
			b.opens[p.name] = b.opens[p.name].plus(o)
		}
	}
	for _, p := range b.paths() {
		d := b.opens[p.name].took
		b.t.Logf("round %d  %-22s open p10 %.0f us, p50 %.0f us, p99 %.0f us, CPU us %s", round+1, p.name, percentile(d, 10), percentile(d, 50), percentile(d, 99), roles(b.opens[p.name].perOpen()))
	}
}

func (b *bench) sample(round int, p path, dir direction) {
	b.t.Helper()
	profile := b.startProfile(p, dir.String(), round)
	s, err := b.quietly(b.t.Context(), p, dir)
	profile()
	must(b.t, err)
	key := p.name + "/" + dir.String()
	b.samples[key] = append(b.samples[key], s)
	b.t.Logf("round %d  %-22s %6.2f Gbit/s  others %2.0f %%  CPU-s/GB %s", round+1, key, s.gbps, s.foreign*100, roles(s.cpu))
}

// roles prints figures by role in the order of the way.
func roles(by map[string]float64) string {
	var parts []string
	for _, role := range []string{"client", "relay", "connector"} {
		if v, ok := by[role]; ok {
			parts = append(parts, fmt.Sprintf("%s %.4g", role, v))
		}
	}
	return fmt.Sprintf("%.4g (%s)", sum(by), strings.Join(parts, ", "))
}

// conditions is what a reader must know to compare.
func (b *bench) conditions() string {
	wireMode := "@wire: segmentation offload off on every cable, GRO on"
	if os.Getenv("POSTERN_BENCH_PLAIN") != "" {
		wireMode = "plain: offloads on"
	}
	var s strings.Builder
	fmt.Fprintf(&s, "%s; MTU 1500; congestion control %s on both ends; windows of %v, median of %d rounds, interleaved; load average before %s, after %s\n",
		wireMode, congestion, window, rounds(), b.busy, machineLoad())
	for _, p := range b.paths() {
		if len(p.pids) > 0 {
			fmt.Fprintf(&s, "MB resident at the end, %s: %s\n", p.name, roles(b.memory[p.name]))
		}
	}
	return s.String()
}

// rows turns samples into the rows of the result.
func (b *bench) rows() []row {
	rows := b.goodputRows(down)
	rows = append(rows, b.goodputRows(up)...)
	for _, p := range append([]path{b.wg}, b.products...) {
		rows = append(rows, b.openRows(p)...)
	}
	for _, p := range b.products {
		rows = append(rows, b.cpuRows(p)...)
	}
	return rows
}

func (b *bench) goodputRows(dir direction) []row {
	goals := map[string]goal{laptopTLS: {gate: 1.3, target: 1.8}, laptopQUIC: {gate: 0.9, target: 1.2}}
	ref := b.middle(b.wg, dir)
	rows := []row{
		newRow("raw/"+dir.String(), b.middle(b.raw, dir).gbps, "Gbit/s", ref.gbps, goal{}),
		newRow("wireguard-go/"+dir.String(), ref.gbps, "Gbit/s", 0, goal{}),
	}
	for _, p := range b.products {
		own := b.middle(p, dir)
		r := newRow(p.name+"/"+dir.String(), own.gbps, "Gbit/s", ref.gbps, goals[p.via])
		r.disturbed = max(own.foreign, ref.foreign) > quiet
		rows = append(rows, r)
	}
	return rows
}

// openRows compare a new connection, up to the first byte back, with one that goes direct.
func (b *bench) openRows(p path) []row {
	const added = 500 // microseconds more than direct
	var g goal
	if p.via != "" {
		g.added = added
	}
	own, direct := b.opens[p.name].took, b.opens[b.raw.name].took
	cpu := sum(b.opens[p.name].perOpen())
	return []row{
		newRow("open/warm/p50"+suffixOf(p), percentile(own, 50), "us", percentile(direct, 50), g),
		newRow("open/warm/p99"+suffixOf(p), percentile(own, 99), "us", percentile(direct, 99), goal{}),
		newRow("open/warm/cpu"+suffixOf(p), cpu, "us", 0, goal{}),
	}
}

// cpuRows compare the CPU time of a download, role by role.
func (b *bench) cpuRows(p path) []row {
	goals := map[string]goal{laptopTLS: {target: 0.5, most: true}, laptopQUIC: {target: 0.8, most: true}}
	own, ref := b.middle(p, down), b.middle(b.wg, down)
	var rows []row
	for _, role := range []string{"client", "relay", "connector"} {
		rows = append(rows, newRow("cpu/"+role+suffixOf(p), own.cpu[role], "s/GB", ref.cpu[role], goal{}))
	}
	return append(rows, newRow("cpu/sum"+suffixOf(p), sum(own.cpu), "s/GB", sum(ref.cpu), goals[p.via]))
}

// suffixOf tells rows of the same figure apart. The one without is the TLS carrier, which
// the design means to be chosen on a clean network.
func suffixOf(p path) string {
	switch p.name {
	case laptopTLS + tunRelay:
		return ""
	case laptopQUIC + tunRelay:
		return "/" + laptopQUIC
	default:
		return "/" + p.name
	}
}

func (b *bench) middle(p path, dir direction) sample {
	return middle(b.samples[p.name+"/"+dir.String()])
}

// startProfile records where CPU time goes during one sample of the first round, with perf
// over the path's programs; POSTERN_BENCH_PROFILE names the directory.
func (b *bench) startProfile(p path, what string, round int) (stop func()) {
	into := os.Getenv("POSTERN_BENCH_PROFILE")
	if into == "" || round > 0 || len(p.pids) == 0 {
		return func() {}
	}
	name := strings.ReplaceAll(p.name, "/", "-") + "-" + what
	return startPerf(b.t, filepath.Join(into, name), p.pids)
}
