package grant

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
	"github.com/postern-zt/postern/proto/tlv"
)

var update = flag.Bool("update", false, "write the known-answer files anew")

var (
	testSigner = seal.NewSigner(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize)))
	testKeys   = seal.NewKeys(testSigner.Public())
	epoch      = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
)

func id(prefix string) string { return prefix + strings.Repeat("0", 26) }

func sampleGrant() *Grant {
	return &Grant{
		ID: ids.GrantID(id("gnt_")), Receipt: "K7M2-Q4TX", Session: ids.SessionID(id("ses_")), User: ids.UserID(id("usr_")),
		PeerKind: PeerDevice, PeerKey: ids.KeyIDOf([]byte("device")), App: ids.AppID(id("app_")), AppName: "wiki",
		Ports: []Ports{{TCP, 80, 80}, {UDP, 5000, 5010}}, Verbs: []string{"connect"},
		Connectors: []ids.ConnectorID{ids.ConnectorID(id("con_"))},
		NotBefore:  epoch, HardEnd: epoch.Add(8 * time.Hour), Outage: OutageHold, OutageGrace: time.Minute,
		BytesPerSecond: 1 << 20, Flows: 100,
	}
}

// limitedGrant has the fields that came after the first release.
func limitedGrant() *Grant {
	g := sampleGrant()
	g.OpensPerMinute, g.Idle = 600, 2*time.Hour
	return g
}

func sampleStatement() *Statement {
	return &Statement{
		Connector: ids.ConnectorID(id("con_")), Epoch: 2, Sequence: 41, Time: epoch, Until: epoch.Add(time.Minute),
		From: 3, Revoked: 5, VoidBefore: epoch.Add(-time.Hour),
		Revocations: []Revocation{
			{Sequence: 4, Kind: TargetUser, Target: id("usr_"), At: epoch},
			{Sequence: 5, Kind: TargetDevice, Target: ids.KeyIDOf([]byte("device")).String(), At: epoch},
		},
	}
}

func sampleAssignment() *Assignment {
	return &Assignment{
		Connector: ids.ConnectorID(id("con_")), Site: ids.SiteID(id("sit_")), Version: 9,
		Apps: []App{{ID: ids.AppID(id("app_")), Name: "wiki", Gateway: true, Targets: []Target{
			{Ports: Ports{TCP, 80, 80}, Host: "10.0.0.5", Base: 8080},
			{Ports: Ports{UDP, 5000, 5010}, Host: "dns.internal", Base: 6000},
		}}},
		Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")},
	}
}

func TestPermits(t *testing.T) {
	a := sampleAssignment()
	a.Networks = append(a.Networks, netip.MustParsePrefix("0.0.0.0/0"))
	literal, name := Target{Host: "127.0.0.1"}, Target{Host: "db.internal"}
	for addr, want := range map[string][2]bool{
		"127.0.0.1":        {true, false},
		"::ffff:127.0.0.1": {true, false},
		"10.1.2.3":         {false, true},
		"fd00::7":          {false, true},
		"2001:db8::1":      {false, false},
		"169.254.169.254":  {false, false},
		"224.0.0.1":        {false, false},
		"0.0.0.0":          {false, false},
	} {
		ip := netip.MustParseAddr(addr)
		if got := [2]bool{a.Permits(literal, ip), a.Permits(name, ip)}; got != want {
			t.Errorf("Permits(%s) = %v, want %v", addr, got, want)
		}
	}
	a.Networks = nil
	if a.Permits(name, netip.MustParseAddr("10.1.2.3")) {
		t.Error("a name resolves without any network")
	}
}

func TestRoundTrip(t *testing.T) {
	g, err := Open(testKeys, Seal(testSigner, sampleGrant()))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(sampleGrant(), g); d != "" {
		t.Errorf("grant (-want +got):\n%s", d)
	}
	limited, err := Open(testKeys, Seal(testSigner, limitedGrant()))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(limitedGrant(), limited); d != "" {
		t.Errorf("grant with limits (-want +got):\n%s", d)
	}
	st, err := OpenStatement(testKeys, SealStatement(testSigner, sampleStatement()))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(sampleStatement(), st); d != "" {
		t.Errorf("statement (-want +got):\n%s", d)
	}
	a, err := OpenAssignment(testKeys, SealAssignment(testSigner, sampleAssignment()))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(sampleAssignment(), a, cmp.Comparer(func(x, y netip.Prefix) bool { return x == y })); d != "" {
		t.Errorf("assignment (-want +got):\n%s", d)
	}
}

// TestOldestMessage opens the messages of the first release, kept as files: whatever is
// added later, they must stay readable and keep their meaning.
func TestOldestMessage(t *testing.T) {
	sealed := map[string][]byte{
		"grant-v1.hex":      Seal(testSigner, sampleGrant()),
		"grant-limits.hex":  Seal(testSigner, limitedGrant()),
		"statement-v1.hex":  SealStatement(testSigner, sampleStatement()),
		"assignment-v1.hex": SealAssignment(testSigner, sampleAssignment()),
	}
	for name, now := range sealed {
		kept := golden(t, name, now)
		if !bytes.Equal(kept, now) {
			t.Errorf("%s: the encoding of the first release has changed", name)
		}
	}
	if g, err := Open(testKeys, golden(t, "grant-v1.hex", nil)); err != nil || g.AppName != "wiki" {
		t.Errorf("oldest grant: %v", err)
	}
}

func golden(t *testing.T, name string, now []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update && now != nil {
		if err := os.WriteFile(path, []byte(hex.EncodeToString(now)+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// withField signs a sample grant to which edit has done something first.
func withField(edit func(w *tlv.Writer)) []byte {
	var w tlv.Writer
	fields, _ := tlv.Parse(sampleGrant().encode())
	for _, f := range fields {
		w.Put(f.Number, f.Critical, f.Value)
	}
	edit(&w)
	return testSigner.Seal(seal.Grant, w.Bytes())
}

func TestUnknownFields(t *testing.T) {
	if _, err := Open(testKeys, withField(func(w *tlv.Writer) { w.PutUint(99, false, 1) })); err != nil {
		t.Errorf("an unknown optional field was not ignored: %v", err)
	}
	_, err := Open(testKeys, withField(func(w *tlv.Writer) { w.PutUint(99, true, 1) }))
	if !errors.Is(err, ErrUnsupportedConstraint) {
		t.Errorf("an unknown critical field: %v", err)
	}
}

// TestLimitsAreNotCritical: a connector of the first release must open what carries them.
func TestLimitsAreNotCritical(t *testing.T) {
	fields, err := tlv.Parse(limitedGrant().encode())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fields {
		if f.Number >= 17 && f.Critical {
			t.Errorf("field %d is critical", f.Number)
		}
	}
}

func TestGrantRefuses(t *testing.T) {
	cases := map[string]struct {
		edit func(*Grant)
		want error
	}{
		"no peer key":      {func(g *Grant) { g.PeerKey = ids.KeyID{} }, tlv.ErrBadValue},
		"no ports":         {func(g *Grant) { g.Ports = nil }, tlv.ErrBadValue},
		"port zero":        {func(g *Grant) { g.Ports = []Ports{{TCP, 0, 80}} }, tlv.ErrBadValue},
		"ports reversed":   {func(g *Grant) { g.Ports = []Ports{{TCP, 81, 80}} }, tlv.ErrBadValue},
		"unknown network":  {func(g *Grant) { g.Ports = []Ports{{9, 80, 80}} }, ErrUnsupportedConstraint},
		"no connector":     {func(g *Grant) { g.Connectors = nil }, tlv.ErrBadValue},
		"no verb":          {func(g *Grant) { g.Verbs = nil }, tlv.ErrBadValue},
		"unknown kind":     {func(g *Grant) { g.PeerKind = 9 }, ErrUnsupportedConstraint},
		"no kind":          {func(g *Grant) { g.PeerKind = 0 }, ErrUnsupportedConstraint},
		"unknown outage":   {func(g *Grant) { g.Outage = 9 }, ErrUnsupportedConstraint},
		"no end":           {func(g *Grant) { g.HardEnd = time.Time{} }, tlv.ErrBadValue},
		"ends before":      {func(g *Grant) { g.HardEnd = g.NotBefore }, tlv.ErrBadValue},
		"malformed app id": {func(g *Grant) { g.App = "app_x" }, tlv.ErrBadValue},
	}
	for name, c := range cases {
		g := sampleGrant()
		c.edit(g)
		if _, err := Open(testKeys, Seal(testSigner, g)); !errors.Is(err, c.want) {
			t.Errorf("%s: Open = %v, want %v", name, err, c.want)
		}
	}
	if _, err := parse(nil); err == nil {
		t.Error("an empty grant was accepted")
	}
}

func TestAllows(t *testing.T) {
	g := sampleGrant()
	if !g.Allows(TCP, 80) || !g.Allows(UDP, 5010) {
		t.Error("a granted port was refused")
	}
	for _, c := range []struct {
		n Network
		p uint16
	}{{UDP, 80}, {TCP, 81}, {UDP, 5011}, {TCP, 0}, {0, 80}} {
		if g.Allows(c.n, c.p) {
			t.Errorf("Allows(%v, %d) = true", c.n, c.p)
		}
	}
	if !g.Names(ids.ConnectorID(id("con_"))) || g.Names("con_other") {
		t.Error("Names does not follow the connector list")
	}
}

func TestRevocationMatches(t *testing.T) {
	g := sampleGrant()
	for _, r := range []Revocation{
		{Kind: TargetUser, Target: string(g.User)},
		{Kind: TargetDevice, Target: g.PeerKey.String()},
		{Kind: TargetSession, Target: string(g.Session)},
		{Kind: TargetGrant, Target: string(g.ID)},
		{Kind: TargetApp, Target: string(g.App)},
		{Kind: 77, Target: "a kind of a later release"},
	} {
		r.At = epoch
		if !r.Matches(g) {
			t.Errorf("%+v does not match", r)
		}
		r.At = epoch.Add(-time.Second)
		if r.Matches(g) {
			t.Errorf("%+v matches a grant issued after it", r)
		}
		if r.At, r.Target = epoch, "another"; r.Kind != 77 && r.Matches(g) {
			t.Errorf("%+v matches another target", r)
		}
	}
}

func TestAssignmentRefuses(t *testing.T) {
	cases := map[string]func(*Assignment){
		"ports run over": func(a *Assignment) { a.Apps[0].Targets[1].Base = 65530 },
		"host with path": func(a *Assignment) { a.Apps[0].Targets[0].Host = "10.0.0.5/x" },
		"no base":        func(a *Assignment) { a.Apps[0].Targets[0].Base = 0 },
		"app without id": func(a *Assignment) { a.Apps[0].ID = "" },
		"no connector":   func(a *Assignment) { a.Connector = "" },
	}
	for name, edit := range cases {
		a := sampleAssignment()
		edit(a)
		if _, err := OpenAssignment(testKeys, SealAssignment(testSigner, a)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	app, _ := sampleAssignment().Find(ids.AppID(id("app_")))
	if got := app.For(UDP, 5003); len(got) != 1 || got[0].Port(5003) != 6003 {
		t.Errorf("For(udp, 5003) = %+v", got)
	}
	if got := app.For(UDP, 80); got != nil {
		t.Errorf("For(udp, 80) = %+v, want none", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sampleGrant().encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := parse(b)
		if err != nil {
			return
		}
		again, err := parse(g.encode())
		if err != nil || !cmp.Equal(g, again) {
			t.Errorf("a parsed grant does not survive: %v", err)
		}
	})
}

func FuzzStatementAndAssignment(f *testing.F) {
	for _, env := range [][]byte{SealStatement(testSigner, sampleStatement()), SealAssignment(testSigner, sampleAssignment())} {
		for _, d := range []seal.Domain{seal.Statement, seal.Assignment} {
			if p, err := testKeys.Open(d, env); err == nil {
				f.Add(p)
			}
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		// Signed here, so that the parser behind the signature sees every input.
		_, _ = OpenStatement(testKeys, testSigner.Seal(seal.Statement, b))
		_, _ = OpenAssignment(testKeys, testSigner.Seal(seal.Assignment, b))
	})
}
