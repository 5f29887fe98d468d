package catalog_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/proto/grant"
)

func TestParseTarget(t *testing.T) {
	cases := []struct {
		in   string
		want catalog.Target
		out  string // "" means in
	}{
		{"10.0.0.5:80", catalog.Target{Host: "10.0.0.5", Port: 80}, ""},
		{"80=10.0.0.5:8080", catalog.Target{Host: "10.0.0.5", Port: 8080, Published: catalog.PortRange{First: 80, Last: 80}}, ""},
		{"Wiki.LAN.:443", catalog.Target{Host: "wiki.lan", Port: 443}, "wiki.lan:443"},
		{"[2001:db8::1]:22", catalog.Target{Host: "2001:db8::1", Port: 22}, ""},
		{"8000-8010=db.lan:9000-9010", catalog.Target{Host: "db.lan", Port: 9000, Published: catalog.PortRange{First: 8000, Last: 8010}}, ""},
		{" db.lan:9000-9010 ", catalog.Target{Host: "db.lan", Port: 9000, Published: catalog.PortRange{First: 9000, Last: 9010}}, "db.lan:9000-9010"},
	}
	for _, c := range cases {
		got, err := catalog.ParseTarget(c.in)
		if err != nil || got != c.want {
			t.Errorf("ParseTarget(%q) = %+v, %v, want %+v", c.in, got, err, c.want)
			continue
		}
		if c.out == "" {
			c.out = c.in
		}
		if got.String() != c.out {
			t.Errorf("ParseTarget(%q).String() = %q", c.in, got)
		}
	}
}

func TestParseTargetRefuses(t *testing.T) {
	cases := []struct {
		in   string
		want error
		text string
	}{
		{"", catalog.ErrInvalid, "not host:port"},
		{"10.0.0.5", catalog.ErrInvalid, "not host:port"},
		{"2001:db8::1:22", catalog.ErrInvalid, "brackets"},
		{"10.0.0.5:0", catalog.ErrInvalid, "between 1 and 65535"},
		{"10.0.0.5:70000", catalog.ErrInvalid, "between 1 and 65535"},
		{"10.0.0.5:http", catalog.ErrInvalid, "between 1 and 65535"},
		{"10.0.0.5:90-80", catalog.ErrInvalid, "ends before it begins"},
		{"80-81=10.0.0.5:80", catalog.ErrInvalid, "2 published ports for 1"},
		{"10.0.0.0/8", catalog.ErrUnsupported, "not yet supported"},
		{"10.0.0.0/8:80", catalog.ErrUnsupported, "not yet supported"},
		{"http://10.0.0.5/", catalog.ErrInvalid, "without http://"},
		{"https://wiki.lan:8443/?a=b", catalog.ErrInvalid, "without http://"},
		{"80=http://10.0.0.5", catalog.ErrInvalid, "without http://"},
		{"10.0.0.5:80/", catalog.ErrInvalid, "such as 10.0.0.5:80"},
		{"10.0.0.5/", catalog.ErrInvalid, "such as 10.0.0.5:80"},
	}
	for _, c := range cases {
		if _, err := catalog.ParseTarget(c.in); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("ParseTarget(%q) = %v, want %q", c.in, err, c.text)
		}
	}
}

func TestParsePorts(t *testing.T) {
	got, err := catalog.ParsePorts("443, 80,8000-8010,8005-8020,8021")
	want := []catalog.PortRange{{First: 80, Last: 80}, {First: 443, Last: 443}, {First: 8000, Last: 8021}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("ParsePorts: %v %s", err, diff)
	}
	if got, err := catalog.ParsePorts("1-65535,65535"); err != nil || len(got) != 1 {
		t.Errorf("all ports = %v, %v", got, err)
	}
	if _, err := catalog.ParsePorts("80,"); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("an empty part = %v", err)
	}
}

// app is a valid app that cases change.
func app() catalog.App {
	return catalog.App{
		Name:       "Wiki",
		ExtraNames: []string{"Docs.corp.internal."},
		Tags:       []string{"Web", "web", "docs"},
		Placements: []catalog.Placement{{Site: "sit_1", Targets: []catalog.Target{{Host: "10.0.0.5", Port: 80}}}},
	}
}

var rules = catalog.Rules{
	Suffixes: []string{"corp.internal"},
	Reserved: []catalog.Reserved{{Host: "192.0.2.1", Port: 443}, {Host: "::ffff:192.0.2.2"}, {Host: "Broker.Example", Port: 8443}},
}

func TestComplete(t *testing.T) {
	a := app()
	a.Complete()
	if err := a.Validate(rules); err != nil {
		t.Fatalf("a valid app: %v", err)
	}
	want := app()
	want.Name, want.ExtraNames, want.Tags = "wiki", []string{"docs.corp.internal"}, []string{"docs", "web"}
	want.Kind, want.Protocol, want.Class, want.Visibility = catalog.KindApp, catalog.TCP, catalog.Internal, catalog.Everyone
	want.Ports = []catalog.PortRange{{First: 80, Last: 80}}
	want.Placements[0].Targets[0].Published = want.Ports[0]
	if diff := cmp.Diff(want, a); diff != "" {
		t.Errorf("completed app (-want +got):\n%s", diff)
	}
	b := app()
	b.Ports = []catalog.PortRange{{First: 443, Last: 443}}
	b.Placements[0].Targets = []catalog.Target{{Host: "::ffff:10.0.0.5", Port: 8443}}
	b.Complete()
	if got := b.Placements[0].Targets[0].String(); got != "443=10.0.0.5:8443" {
		t.Errorf("target of an app with one port = %s, want it mapped", got)
	}
}

func TestValidateNamesTheField(t *testing.T) {
	target := func(hostport string) func(*catalog.App) {
		return func(a *catalog.App) {
			tg, err := catalog.ParseTarget(hostport)
			if err != nil {
				t.Fatal(err)
			}
			a.Placements[0].Targets = []catalog.Target{tg}
		}
	}
	cases := []struct {
		name string
		edit func(*catalog.App)
		want error
		text string
	}{
		{"empty name", func(a *catalog.App) { a.Name = "" }, catalog.ErrInvalid, "name: "},
		{"dot in name", func(a *catalog.App) { a.Name = "wiki.corp" }, catalog.ErrInvalid, "name: \"wiki.corp\" has a dot"},
		{"space in name", func(a *catalog.App) { a.Name = "my wiki" }, catalog.ErrInvalid, "name: "},
		{"hyphen first", func(a *catalog.App) { a.Name = "-wiki" }, catalog.ErrInvalid, "hyphen"},
		{"underscore", func(a *catalog.App) { a.Name = "my_wiki" }, catalog.ErrInvalid, "name: "},
		{"umlaut", func(a *catalog.App) { a.Name = "küche" }, catalog.ErrInvalid, "name: "},
		{"long name", func(a *catalog.App) { a.Name = strings.Repeat("x", 64) }, catalog.ErrInvalid, "64 characters"},
		{"wildcard name", func(a *catalog.App) { a.Name = "*" }, catalog.ErrUnsupported, "not yet supported"},
		{"wildcard extra name", func(a *catalog.App) { a.ExtraNames = []string{"*.corp.internal"} }, catalog.ErrUnsupported, "extra_names: "},
		{"foreign extra name", func(a *catalog.App) { a.ExtraNames = []string{"wiki.example.com"} }, catalog.ErrInvalid, "declared suffix"},
		{"suffix as extra name", func(a *catalog.App) { a.ExtraNames = []string{"corp.internal"} }, catalog.ErrInvalid, "declared suffix"},
		{"half suffix", func(a *catalog.App) { a.ExtraNames = []string{"xcorp.internal"} }, catalog.ErrInvalid, "declared suffix"},
		{"network", func(a *catalog.App) { a.Kind = catalog.KindNetwork }, catalog.ErrUnsupported, "kind: "},
		{"learning", func(a *catalog.App) { a.Kind = catalog.KindLearning }, catalog.ErrUnsupported, "kind: "},
		{"unknown kind", func(a *catalog.App) { a.Kind = "x" }, catalog.ErrInvalid, "kind: "},
		{"unknown protocol", func(a *catalog.App) { a.Protocol = "sctp" }, catalog.ErrInvalid, "protocol: "},
		{"unknown class", func(a *catalog.App) { a.Class = "secret" }, catalog.ErrInvalid, "class: "},
		{"unknown visibility", func(a *catalog.App) { a.Visibility = "some" }, catalog.ErrInvalid, "visibility: "},
		{"no placement", func(a *catalog.App) { a.Placements = nil }, catalog.ErrInvalid, "placements: "},
		{"no site", func(a *catalog.App) { a.Placements[0].Site = "" }, catalog.ErrInvalid, "placements[0].site: "},
		{"site twice", func(a *catalog.App) { a.Placements = append(a.Placements, a.Placements[0]) }, catalog.ErrInvalid, "placements[1].site: "},
		{"no target", func(a *catalog.App) { a.Placements[0].Targets = nil }, catalog.ErrInvalid, "placements[0].targets: "},
		{"port not published", func(a *catalog.App) { a.Ports = []catalog.PortRange{{First: 1, Last: 2}} }, catalog.ErrInvalid, "not published"},
		{"empty range", func(a *catalog.App) { a.Ports = []catalog.PortRange{{First: 9, Last: 8}} }, catalog.ErrInvalid, "ports: "},
		{"ports leave", func(a *catalog.App) {
			a.Placements[0].Targets[0] = catalog.Target{Host: "h", Port: 65535, Published: catalog.PortRange{First: 80, Last: 81}}
		}, catalog.ErrInvalid, "leave 1-65535"},
		{"broker", target("192.0.2.1:443"), catalog.ErrInvalid, "broker or a relay"},
		{"broker in a range", target("192.0.2.1:400-500"), catalog.ErrInvalid, "broker or a relay"},
		{"all of a relay", target("[::ffff:192.0.2.2]:22"), catalog.ErrInvalid, "broker or a relay"},
		{"broker by name", target("broker.example.:8443"), catalog.ErrInvalid, "broker or a relay"},
		{"unspecified", target("0.0.0.0:80"), catalog.ErrInvalid, "not the address of one host"},
		{"multicast", target("224.0.0.1:80"), catalog.ErrInvalid, "not the address of one host"},
		{"zone", target("[fe80::1%eth0]:80"), catalog.ErrInvalid, "zone"},
		{"wildcard target", target("*.lan:80"), catalog.ErrUnsupported, "not yet supported"},
		{"target with a slash", func(a *catalog.App) { a.Placements[0].Targets[0].Host = "a/b" }, catalog.ErrInvalid, "targets[0]: "},
		{"control character", func(a *catalog.App) { a.Owner.Text = "a\nb" }, catalog.ErrInvalid, "owner: "},
		{"tag with a space", func(a *catalog.App) { a.Tags = []string{"a b"} }, catalog.ErrInvalid, "tags: "},
		{"unknown outage", func(a *catalog.App) { a.Outage.Mode = 9 }, catalog.ErrInvalid, "outage.mode: "},
		{"cut with grace", func(a *catalog.App) { a.Outage = catalog.Outage{Mode: grant.OutageCut, Grace: 1} }, catalog.ErrInvalid, "outage.grace: "},
	}
	for _, c := range cases {
		a := app()
		c.edit(&a)
		a.Complete()
		err := a.Validate(rules)
		var field *catalog.FieldError
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) || !errors.As(err, &field) {
			t.Errorf("%s: %v, want %q", c.name, err, c.text)
		}
	}
}

// Beside what is reserved everything is allowed: another port of the broker's machine, this
// machine itself, an old host name.
func TestValidateAllows(t *testing.T) {
	for _, in := range []string{"192.0.2.1:444", "broker.example:80", "127.0.0.1:8080", "old_host.lan:22", "[fd00::5]:443"} {
		a := app()
		tg, err := catalog.ParseTarget(in)
		if err != nil {
			t.Fatal(err)
		}
		a.Placements[0].Targets = []catalog.Target{tg}
		a.Complete()
		if err := a.Validate(rules); err != nil {
			t.Errorf("%s: %v", in, err)
		}
	}
}

func TestCheckSuffixes(t *testing.T) {
	clean, warnings, err := catalog.CheckSuffixes([]string{".Corp.Internal.", "corp.internal", "example.com"})
	if err != nil || len(warnings) != 0 || !slices.Equal(clean, []string{"corp.internal", "example.com"}) {
		t.Errorf("good suffixes = %v, %v, %v", clean, warnings, err)
	}
	for suffix, want := range map[string]string{
		"corp.local": "multicast DNS", "local": "multicast DNS", "corp": "single label", "co.uk": "public suffix", "com": "public suffix",
		"github.io": "public suffix",
	} {
		_, warnings, err := catalog.CheckSuffixes([]string{suffix})
		if err != nil || !strings.Contains(strings.Join(warnings, "; "), want) {
			t.Errorf("CheckSuffixes(%q) = %v, %v, want a warning about %s", suffix, warnings, err, want)
		}
	}
	for _, suffix := range []string{"", "*.corp.internal", "10.0.0.1", "localhost", "x.localhost", "in-addr.arpa", "a..b", "a b"} {
		if _, _, err := catalog.CheckSuffixes([]string{suffix}); err == nil {
			t.Errorf("CheckSuffixes(%q) accepted it", suffix)
		}
	}
}

func TestOutageByClass(t *testing.T) {
	for class, want := range map[catalog.Class]grant.OutageMode{
		catalog.Public: grant.OutageContinue, catalog.Internal: grant.OutageContinue,
		catalog.Confidential: grant.OutageHold, catalog.Restricted: grant.OutageCut, "": grant.OutageCut, "new": grant.OutageCut,
	} {
		if got := class.DefaultOutage().Mode; got != want {
			t.Errorf("class %q: outage mode %d, want %d", class, got, want)
		}
	}
	a := catalog.App{Class: catalog.Restricted, Outage: catalog.Outage{Mode: grant.OutageHold, Grace: catalog.Duration(time.Minute)}}
	if got := a.OutageMode(); got != a.Outage {
		t.Errorf("own outage mode = %v", got)
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"10.0.0.5:80", "80=h:8080", "1-9=[::1]:11-19", "a/b:1", "=:", "[fe80::1%x]:1-65535"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tg, err := catalog.ParseTarget(s)
		if err != nil {
			return
		}
		a := catalog.App{Name: "x", Placements: []catalog.Placement{{Site: "s", Targets: []catalog.Target{tg}}}}
		a.Complete()
		if err := a.Validate(catalog.Rules{}); err != nil {
			return
		}
		full := a.Placements[0].Targets[0]
		again, err := catalog.ParseTarget(full.String())
		if err != nil {
			t.Fatalf("ParseTarget(%q): %v", full, err)
		}
		b := catalog.App{Name: "x", Placements: []catalog.Placement{{Site: "s", Targets: []catalog.Target{again}}}}
		b.Complete()
		if b.Placements[0].Targets[0] != full {
			t.Errorf("%q reads back as %+v, was %+v", full.String(), b.Placements[0].Targets[0], full)
		}
	})
}
