//go:build linux

package posture

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
)

var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func noRules() (Ruleset, error) { return Ruleset{}, nil }

func noPermission() (Ruleset, error) { return Ruleset{}, fs.ErrPermission }

func files(pairs ...string) fstest.MapFS {
	root := fstest.MapFS{}
	for i := 0; i+1 < len(pairs); i += 2 {
		root[pairs[i]] = &fstest.MapFile{Data: []byte(pairs[i+1])}
	}
	return root
}

func byName(t *testing.T, facts []Fact, name string) Fact {
	t.Helper()
	i := slices.IndexFunc(facts, func(f Fact) bool { return f.Name == name })
	if i < 0 {
		t.Fatalf("no fact %s in %v", name, facts)
	}
	return facts[i]
}

// Each folder of testdata is the root of one kind of machine, and golden.json
// what is to be reported for it. To accept new output: POSTERN_GOLDEN=write.
func TestGoldenMachines(t *testing.T) {
	machines, err := filepath.Glob("testdata/*")
	if err != nil || len(machines) == 0 {
		t.Fatal("no machines in testdata", err)
	}
	for _, dir := range machines {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			c := New(Config{Root: os.DirFS(filepath.Join(dir, "root")), Rules: noPermission})
			got, err := json.MarshalIndent(words(c.Collect(now)), "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join(dir, "golden.json")
			if os.Getenv("POSTERN_GOLDEN") == "write" {
				if err := os.WriteFile(golden, append(got, '\n'), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(strings.TrimSpace(string(want)), string(got)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func words(facts []Fact) []map[string]string {
	var out []map[string]string
	for _, f := range facts {
		out = append(out, map[string]string{"name": f.Name, "state": f.State.String(), "data": f.Data, "evidence": f.Evidence})
	}
	return out
}

func TestSupport(t *testing.T) {
	tests := []struct {
		id, version string
		at          string
		want        State
	}{
		{"debian", "12", "2028-06-30", Pass},
		{"debian", "12", "2028-07-01", Fail},
		{"debian", "11", "2026-11-21", Fail},
		{"debian", "99", "2026-11-21", Unknown},
		{"debian", "1", "2026-11-21", Unknown},
		{"debian", "", "2026-11-21", Unknown},
		{"ubuntu", "24.04", "2026-11-21", Pass},
		{"ubuntu", "20.04", "2026-11-21", Fail},
		{"rhel", "9.4", "2026-11-21", Pass},
		{"rhel", "10.1", "2026-11-21", Pass},
		{"rocky", "8.10", "2026-11-21", Pass},
		{"centos", "7", "2026-11-21", Fail},
		{"fedora", "41", "2026-11-21", Fail},
		{"fedora", "44", "2026-11-21", Pass},
		{"sles", "15.7", "2026-11-21", Pass},
		{"sles", "15.5", "2026-11-21", Fail},
		{"opensuse-tumbleweed", "20261101", "2026-11-21", Pass},
		{"arch", "", "2026-11-21", Pass},
		{"unheard-of", "1", "2026-11-21", Unknown},
	}
	for _, tt := range tests {
		at, err := time.Parse(time.DateOnly, tt.at)
		if err != nil {
			t.Fatal(err)
		}
		got := supportOf(release{id: tt.id, version: tt.version}, at.Add(23*time.Hour))
		if got.State != tt.want || got.Evidence == "" {
			t.Errorf("supportOf(%s %s at %s) = %v (%s), want %v", tt.id, tt.version, tt.at, got.State, got.Evidence, tt.want)
		}
	}
}

func TestTableOfReleasesHasRealDates(t *testing.T) {
	for id, releases := range lives() {
		for _, l := range releases {
			if _, _, known := endOfSupport(release{id: id, version: l.version}); !known {
				t.Errorf("%s %s ends at %q", id, l.version, l.until)
			}
		}
	}
}

func TestUnreadableIsUnknownWithReason(t *testing.T) {
	for name, root := range map[string]fs.FS{
		"nothing there":    files(),
		"empty":            files("etc/os-release", ""),
		"hostile id":       files("etc/os-release", "ID='x; rm -rf'\nVERSION_ID=12"),
		"too long":         files("etc/os-release", strings.Repeat("A=1\n", maxFile)),
		"control in quote": files("etc/os-release", "ID=\"\x1b[31m\""),
	} {
		facts := New(Config{Root: root, Rules: noPermission}).Collect(now)
		for _, want := range []string{OSVersion, OSSupported, Firewall} {
			if f := byName(t, facts, want); f.State != Unknown || f.Evidence == "" || !f.Observed.Equal(now) {
				t.Errorf("%s: %+v, want unknown with a reason", name, f)
			}
		}
	}
}

func TestZeroStateIsUnknown(t *testing.T) {
	if s := (Fact{}).State.String(); s != "unknown" {
		t.Errorf("zero state = %s", s)
	}
	if s := State(7).String(); s != "unknown" {
		t.Errorf("foreign state = %s", s)
	}
}

const globalIPv6 = "20010db8000000000000000000000001 02 40 00 80     eth0\n"

var (
	dropAll   = Rule{Unconditional: true, Verdict: Drop}
	acceptAll = Rule{Unconditional: true, Verdict: Accept}
	dropSome  = Rule{Verdict: Drop}
	passSome  = Rule{Verdict: Accept}
)

func jump(v Verdict, to string) Rule { return Rule{Unconditional: true, Verdict: v, Target: to} }

func input(f Family, drop bool, rules ...Rule) Chain {
	return Chain{Table: "filter", Name: "input", Family: f, Input: true, Drop: drop, Rules: rules}
}

func side(name string, rules ...Rule) Chain {
	return Chain{Table: "filter", Name: name, Family: BothFamilies, Rules: rules}
}

func TestFirewallFromRules(t *testing.T) {
	both := BothFamilies
	tests := []struct {
		name   string
		chains []Chain
		want   State
	}{
		{"no rules at all", nil, Fail},
		{"policy drop", []Chain{input(both, true)}, Pass},
		{"policy drop with openings", []Chain{input(both, true, passSome, passSome)}, Pass},
		{"policy drop after accepting all", []Chain{input(both, true, acceptAll)}, Fail},
		{"policy accept", []Chain{input(both, false, passSome)}, Fail},
		{"one address dropped", []Chain{input(both, false, dropSome)}, Fail},
		{"last rule rejects", []Chain{input(both, false, passSome, dropAll)}, Pass},
		{"accepts before it rejects", []Chain{input(both, false, acceptAll, dropAll)}, Fail},
		{"only IPv4", []Chain{input(IPv4, true)}, Fail},
		{"only IPv6", []Chain{input(IPv6, true)}, Fail},
		{"both apart", []Chain{input(IPv4, true), input(IPv6, true)}, Pass},
		{"second chain drops", []Chain{input(both, false, acceptAll), input(both, true)}, Pass},
		{"jump to a dropping chain", []Chain{input(both, false, jump(Jump, "end")), side("end", passSome, dropAll)}, Pass},
		{"jump to a chain that returns", []Chain{input(both, true, jump(Jump, "end")), side("end", passSome)}, Pass},
		{"jump to an accepting chain", []Chain{input(both, true, jump(Jump, "end")), side("end", acceptAll)}, Fail},
		{"jump to nowhere", []Chain{input(both, false, jump(Jump, "none"))}, Fail},
		{"goto a chain that returns", []Chain{input(both, false, jump(Goto, "end"), dropAll), side("end", passSome)}, Fail},
		{"return ends the chain", []Chain{input(both, false, Rule{Unconditional: true, Verdict: Return}, dropAll)}, Fail},
		{"counting decides nothing", []Chain{input(both, false, Rule{Unconditional: true}, dropAll)}, Pass},
		{"chain that is never called", []Chain{side("end", dropAll)}, Fail},
		{"loop", []Chain{input(both, false, jump(Jump, "a")), side("a", jump(Jump, "a"))}, Fail},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := New(Config{
				Root:  files("proc/net/if_inet6", globalIPv6),
				Rules: func() (Ruleset, error) { return Ruleset{Chains: tt.chains}, nil },
			})
			if got := c.firewall(); got.State != tt.want || got.Evidence == "" {
				t.Errorf("firewall = %v (%s), want %v", got.State, got.Evidence, tt.want)
			}
		})
	}
}

func TestFirewallNeedsIPv6OnlyWhereItReaches(t *testing.T) {
	for name, tt := range map[string]struct {
		addresses string
		want      State
	}{
		"loopback only":   {"00000000000000000000000000000001 01 80 10 80       lo\n", Pass},
		"link-local only": {"fe800000000000000000000000000001 02 40 20 80     eth0\n", Pass},
		"our tunnel only": {"fd000000000000000000000000000001 09 40 00 80 postern0\n", Pass},
		"global address":  {globalIPv6, Fail},
	} {
		c := New(Config{
			Root: files("proc/net/if_inet6", tt.addresses), OwnInterface: "postern0",
			Rules: func() (Ruleset, error) { return Ruleset{Chains: []Chain{input(IPv4, true)}}, nil },
		})
		if got := c.firewall(); got.State != tt.want {
			t.Errorf("%s: firewall = %v (%s), want %v", name, got.State, got.Evidence, tt.want)
		}
	}
}

func TestFrontEndsCountOnlyWhenRulesCannotBeRead(t *testing.T) {
	ufw := []string{"etc/ufw/ufw.conf", "ENABLED=yes\n", "etc/default/ufw", "DEFAULT_INPUT_POLICY=\"DROP\"\n"}
	legacy := append([]string{"proc/net/ip_tables_names", "filter\n"}, ufw...)
	for name, tt := range map[string]struct {
		root  fs.FS
		rules func() (Ruleset, error)
		want  State
	}{
		"ufw":                       {files(ufw...), noPermission, Pass},
		"ufw says so, kernel not":   {files(ufw...), noRules, Fail},
		"ufw on legacy tables":      {files(legacy...), noRules, Pass},
		"legacy tables alone":       {files("proc/net/ip_tables_names", "filter\n"), noRules, Unknown},
		"legacy tables of nat only": {files("proc/net/ip_tables_names", "nat\n"), noRules, Fail},
		"ufw off":                   {files("etc/ufw/ufw.conf", "ENABLED=no\n", ufw[2], ufw[3]), noPermission, Unknown},
		"ufw accepts by default":    {files(ufw[0], ufw[1], "etc/default/ufw", "DEFAULT_INPUT_POLICY=\"ACCEPT\"\n"), noPermission, Unknown},
		"ufw without defaults":      {files(ufw[0], ufw[1]), noPermission, Unknown},
		"firewalld":                 {files("run/firewalld.pid", "71\n", "proc/71/cmdline", "/usr/bin/python3\x00/usr/sbin/firewalld"), noPermission, Pass},
		"stale pid of firewalld":    {files("run/firewalld.pid", "71\n", "proc/71/cmdline", "sleep"), noPermission, Unknown},
		"pid file of somebody":      {files("run/firewalld.pid", "../1\n"), noPermission, Unknown},
		"nothing":                   {files(), noPermission, Unknown},
	} {
		got := New(Config{Root: tt.root, Rules: tt.rules}).firewall()
		if got.State != tt.want || got.Evidence == "" {
			t.Errorf("%s: firewall = %v (%s), want %v", name, got.State, got.Evidence, tt.want)
		}
	}
}

func TestReadErrorOfRulesIsNamed(t *testing.T) {
	c := New(Config{Root: files(), Rules: func() (Ruleset, error) { return Ruleset{}, errors.New("no kernel") }})
	if f := c.firewall(); f.State != Unknown || !strings.Contains(f.Evidence, "no kernel") {
		t.Errorf("firewall = %v (%s)", f.State, f.Evidence)
	}
}

func FuzzParseRelease(f *testing.F) {
	f.Add([]byte("ID=debian\nVERSION_ID=\"12\"\n"))
	f.Add([]byte("ID='a'\nPRETTY_NAME=\"\"\n# x=y\n="))
	f.Fuzz(func(t *testing.T, data []byte) {
		rel, err := parseRelease(data)
		if err == nil && (rel.id == "" || strings.ContainsAny(rel.id+rel.version+rel.pretty, "\n\x1b\x00")) {
			t.Errorf("parseRelease(%q) = %q", data, rel)
		}
	})
}
