package archtest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// layers names, for each top folder, the top folders it may import besides the
// packages that surround it: platform is leaves only, and a fake in <pkg>test
// stands in for its own leaf.
func layers() map[string][]string {
	return map[string][]string{
		"proto":     {"proto"},
		"netstack":  {"proto", "netstack"},
		"platform":  {},
		"client":    {"proto", "netstack", "platform", "client"},
		"connector": {"proto", "netstack", "platform", "connector"},
		"broker":    {"proto", "netstack", "platform", "broker"},
		"test":      {"proto", "netstack", "platform", "client", "connector", "broker", "test"},
	}
}

// layerFindings holds the layer rule. Harnesses below test/ may be used by the
// tests of every folder and by no program.
func layerFindings(all tree) []string {
	var found []string
	for _, f := range all {
		allowed, known := layers()[f.top()]
		if !known {
			found = append(found, fmt.Sprintf("%s: Go code in a folder without a layer", f.path))
			continue
		}
		for imp, pos := range f.imports() {
			target, ours := strings.CutPrefix(imp, module+"/")
			if !ours {
				continue
			}
			top := strings.SplitN(target, "/", 2)[0]
			if top == "test" && f.isTest() || slices.Contains(allowed, top) || under(f.dir(), target) || under(target, f.dir()) {
				continue
			}
			found = append(found, fmt.Sprintf("%s: %s may not import %s", f.at(pos), f.top(), target))
		}
	}
	return found
}

// everywhere marks a package that any folder may use.
const everywhere = "*"

// homes names for each third-party package the folders that may import it; the
// longest matching prefix counts. A home like "*/cmd" stands for each role.
func homes() map[string][]string {
	return map[string][]string{
		"github.com/quic-go/quic-go":          {"netstack/carrier/quic"},
		"gvisor.dev/gvisor":                   {"netstack/stack"},
		"golang.zx2c4.com/wireguard":          {"platform/tun", "netstack/carrier/wireguard"},
		"golang.zx2c4.com/wireguard/wgctrl":   {"platform/wgdev"},
		"github.com/coreos/go-oidc/v3":        {"broker/identity"},
		"github.com/zitadel/oidc/v3":          {"broker/identity"},
		"github.com/go-jose/go-jose/v4":       {"broker/identity"},
		"golang.org/x/oauth2":                 {"broker/identity", "client/auth"},
		"github.com/cedar-policy/cedar-go":    {"broker/policy"},
		"modernc.org/sqlite":                  {"broker/store"},
		"github.com/jackc/pgx/v5":             {"broker/store"},
		"github.com/pressly/goose/v3":         {"broker/store"},
		"github.com/miekg/dns":                {"client/resolve", "connector"},
		"github.com/vishvananda/netlink":      {"platform/route"},
		"github.com/google/nftables":          {"platform/posture"},
		"github.com/mdlayher/netlink":         {"platform/posture"},
		"github.com/godbus/dbus/v5":           {"platform/dns"},
		"github.com/alecthomas/kong":          {"*/cmd", "client/admincli"},
		"go.yaml.in/yaml/v3":                  {"platform/settings"},
		"github.com/prometheus/client_golang": {everywhere},
		"connectrpc.com/connect":              {everywhere},
		"google.golang.org/protobuf":          {everywhere},
		"golang.org/x/crypto":                 {everywhere},
		"golang.org/x/net":                    {everywhere},
		"golang.org/x/sys":                    {everywhere},
		"golang.org/x/term":                   {"*/cmd"},
		"golang.org/x/time":                   {everywhere},
		"github.com/google/go-cmp":            {"_test"},
		"go.uber.org/goleak":                  {"_test"},
		"pgregory.net/rapid":                  {"_test"},
		"github.com/rogpeppe/go-internal":     {"_test"},
	}
}

// homeFindings holds the one-home rule. Harnesses and tests below test/ are free:
// they also measure the product against the bare libraries.
func homeFindings(all tree) []string {
	var found []string
	for _, f := range all {
		if f.top() == "test" {
			continue
		}
		for imp, pos := range f.imports() {
			if !strings.Contains(strings.SplitN(imp, "/", 2)[0], ".") || under(imp, module) {
				continue
			}
			folders := homesOf(imp)
			if folders == nil {
				found = append(found, fmt.Sprintf("%s: %s has no home, name it in test/archtest", f.at(pos), imp))
			} else if !slices.ContainsFunc(folders, f.lives) {
				found = append(found, fmt.Sprintf("%s: %s has its home in %s", f.at(pos), imp, strings.Join(folders, ", ")))
			}
		}
	}
	return found
}

func homesOf(imp string) []string {
	best := ""
	for pkg := range homes() {
		if under(imp, pkg) && len(pkg) > len(best) {
			best = pkg
		}
	}
	return homes()[best]
}

func (f file) lives(home string) bool {
	switch home {
	case everywhere:
		return true
	case "_test":
		return f.isTest() || f.isFake()
	}
	if rest, ok := strings.CutPrefix(home, "*/"); ok {
		_, below, _ := strings.Cut(f.path, "/")
		return under(below, rest)
	}
	return under(f.dir(), home)
}

func TestLayers(t *testing.T) { report(t, layerFindings(readTree(t))) }

func TestEveryDependencyHasOneHome(t *testing.T) { report(t, homeFindings(readTree(t))) }
