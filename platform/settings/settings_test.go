package settings_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/platform/settings"
)

type config struct {
	URL     string        `yaml:"url"`
	Drain   time.Duration `yaml:"drain"`
	Budget  settings.Size `yaml:"memory-budget"`
	Proxies []string      `yaml:"proxies"`
	Listen  struct {
		TCP string `yaml:"tcp"`
		UDP string `yaml:"udp"`
		On  bool   `yaml:"on"`
	} `yaml:"listen"`
	Issuers []issuer          `yaml:"issuers"`
	Labels  map[string]string `yaml:"labels"`
	Hidden  string            `yaml:"-"`
	bad     error
}

type issuer struct {
	Name string `yaml:"name"`
}

func (c *config) Validate() error { return c.bad }

func load(t *testing.T, data string, environ ...string) (config, error) {
	t.Helper()
	c := config{URL: "https://default", Drain: time.Minute}
	err := settings.Load(settings.Source{
		Role: "broker", Name: "broker.yaml", Data: []byte(data), Environ: environ,
		Reserved: []string{"POSTERN_BROKER_TOKEN"},
	}, &c)
	return c, err
}

func TestLoadReadsEveryKind(t *testing.T) {
	got, err := load(t, `
url: https://zt.example
drain: 1m30s
memory-budget: 64MiB
proxies: [a, b]
listen: {tcp: ":443", on: true}
issuers:
  - name: corp
labels: {any: thing}
`)
	if err != nil {
		t.Fatal(err)
	}
	want := config{
		URL: "https://zt.example", Drain: 90 * time.Second, Budget: 64 << 20,
		Proxies: []string{"a", "b"}, Issuers: []issuer{{Name: "corp"}}, Labels: map[string]string{"any": "thing"},
	}
	want.Listen.TCP, want.Listen.On = ":443", true
	if d := cmp.Diff(want, got, cmp.AllowUnexported(config{})); d != "" {
		t.Errorf("Load (-want +got):\n%s", d)
	}
}

func TestLoadKeepsDefaults(t *testing.T) {
	for _, data := range []string{"", "# only a comment\n", "---\n", "drain: 2m\n"} {
		got, err := load(t, data)
		if err != nil || got.URL != "https://default" {
			t.Errorf("Load(%q) = %q, %v, want the default URL", data, got.URL, err)
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	tests := []struct{ name, data, want string }{
		{"misspelt key", "url: x\nmemory-bugdet: 1\n", `broker.yaml: line 2: unknown setting "memory-bugdet", did you mean "memory-budget"?`},
		{"misspelt nested key", "listen:\n  tpc: x\n", `line 2: unknown setting "listen.tpc", did you mean "listen.tcp"?`},
		{"misspelt key in list", "issuers:\n- nane: x\n", `line 2: unknown setting "issuers[0].nane", did you mean "issuers[0].name"?`},
		{"key like no other", "zzzzzzzzzzzz: 1\n", `line 1: unknown setting "zzzzzzzzzzzz"`},
		{"key in capitals", "URL: x\n", `did you mean "url"?`},
		{"field without setting", "Hidden: x\n", "unknown setting"},
		{"the same key twice", "url: a\nurl: b\n", "already defined"},
		{"wrong kind", "drain: often\n", "often"},
		{"list for a word", "url: [a]\n", "cannot unmarshal"},
		{"list at the top", "- a\n", "cannot unmarshal"},
		{"two documents", "url: a\n---\nurl: b\n", "more than one document"},
		{"alias", "url: &a x\nproxies: [*a]\n", "anchors and aliases"},
		{"merge key", "listen:\n  <<: {tcp: x}\n", "plain word"},
		{"not YAML", "url: [\n", "broker.yaml"},
		{"size without number", "memory-budget: many\n", "is not a number"},
		{"size below zero", "memory-budget: -1\n", "is not a number"},
		{"size too large", "memory-budget: 9999999999TiB\n", "too large"},
		{"deep", "labels: " + strings.Repeat("[", 40) + strings.Repeat("]", 40), "nested deeper"},
		{"long", strings.Repeat("#", settings.MaxFile+1), "longer than"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := load(t, tt.data)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Load = %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestKeyErrorIsTyped(t *testing.T) {
	_, err := load(t, "drian: 1s\n")
	var ke *settings.KeyError
	if !errors.As(err, &ke) || ke.Line != 1 || ke.Key != "drian" || ke.Nearest != "drain" {
		t.Errorf("Load = %#v, want KeyError for drian", err)
	}
}

func TestEnvironmentOverridesFile(t *testing.T) {
	got, err := load(t, "url: file\ndrain: 1s\nproxies: [x]\n",
		"POSTERN_BROKER_URL=12345",
		"POSTERN_BROKER_DRAIN=5s",
		"POSTERN_BROKER_PROXIES=a, b",
		"POSTERN_BROKER_MEMORY_BUDGET=1KiB",
		"POSTERN_BROKER_LISTEN_TCP=:8443",
		"POSTERN_BROKER_LISTEN_ON=true",
		"POSTERN_BROKER_TOKEN=reserved",
		"POSTERN_CONNECTOR_URL=another role",
		"PATH=/bin",
	)
	if err != nil {
		t.Fatal(err)
	}
	want := config{URL: "12345", Drain: 5 * time.Second, Budget: 1024, Proxies: []string{"a", "b"}}
	want.Listen.TCP, want.Listen.On = ":8443", true
	if d := cmp.Diff(want, got, cmp.AllowUnexported(config{})); d != "" {
		t.Errorf("Load (-want +got):\n%s", d)
	}
}

func TestEnvironmentRefuses(t *testing.T) {
	for env, want := range map[string]string{
		"POSTERN_BROKER_LISTEN_TPC=x": `did you mean "POSTERN_BROKER_LISTEN_TCP"?`,
		"POSTERN_BROKER_DRAIN=hidden": "POSTERN_BROKER_DRAIN: not a valid time.Duration",
		"POSTERN_BROKER_LABELS=a":     "unknown setting",
		"POSTERN_BROKER_LISTEN=a":     "unknown setting",
	} {
		_, err := load(t, "", env)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hidden") {
			t.Errorf("Load with %s = %v, want %q without the value", env, err, want)
		}
	}
}

func TestLoadAsksTheConfigurationToValidate(t *testing.T) {
	bad := errors.New("url: must be https")
	c := config{bad: bad}
	err := settings.Load(settings.Source{Role: "broker", Name: "b.yaml"}, &c)
	if !errors.Is(err, bad) || !strings.HasPrefix(err.Error(), "b.yaml: ") {
		t.Errorf("Load = %v, want %v", err, bad)
	}
}

func TestLoadRefusesUnfitTargets(t *testing.T) {
	type untagged struct{ A string }
	type twice struct {
		A string `yaml:"a-b"`
		B string `yaml:"a_b"`
	}
	for _, dst := range []any{nil, config{}, new(string), (*config)(nil), &untagged{}, &twice{}} {
		if err := settings.Load(settings.Source{Role: "broker", Data: []byte("A: x")}, dst); err == nil {
			t.Errorf("Load into %T succeeded", dst)
		}
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	if data, err := settings.Read(filepath.Join(dir, "none.yaml")); data != nil || err != nil {
		t.Errorf("Read(missing) = %q, %v, want nothing", data, err)
	}
	path := filepath.Join(dir, "some.yaml")
	if err := os.WriteFile(path, []byte("url: x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if data, err := settings.Read(path); string(data) != "url: x" || err != nil {
		t.Errorf("Read = %q, %v", data, err)
	}
	if err := os.Truncate(path, settings.MaxFile+1); err != nil {
		t.Fatal(err)
	}
	if _, err := settings.Read(path); err == nil {
		t.Error("Read of a huge file succeeded")
	}
}

// TestReadChosen: only the standard file may be missing.
func TestReadChosen(t *testing.T) {
	none, some := filepath.Join(t.TempDir(), "none.yaml"), filepath.Join(t.TempDir(), "some.yaml")
	if err := os.WriteFile(some, []byte("url: x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ named, standard, path, data string }{
		{"", none, none, ""}, {"", some, some, "url: x"}, {some, none, some, "url: x"},
	} {
		if path, data, err := settings.ReadChosen(c.named, c.standard); path != c.path || string(data) != c.data || err != nil {
			t.Errorf("ReadChosen(%q, %q) = %q, %q, %v", c.named, c.standard, path, data, err)
		}
	}
	if _, _, err := settings.ReadChosen(none, some); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), none) {
		t.Errorf("a named file that is missing: %v", err)
	}
}

func TestSizeRoundTrip(t *testing.T) {
	for text, want := range map[string]settings.Size{
		"0": 0, "1": 1, "7B": 7, "64KiB": 64 << 10, "3 MiB": 3 << 20, "2GiB": 2 << 30, "1TiB": 1 << 40, "5kB": 5000, "5MB": 5e6,
	} {
		var s settings.Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("UnmarshalText(%q) = %d, %v, want %d", text, s, err, want)
		}
		var again settings.Size
		if err := again.UnmarshalText([]byte(s.String())); err != nil || again != s {
			t.Errorf("%d written as %q is read as %d, %v", s, s, again, err)
		}
	}
}

func FuzzLoad(f *testing.F) {
	for _, seed := range []string{"url: x", "listen: {tcp: a}", "issuers: [{name: b}]", "a: &b c\nd: *b", "drain: 1h", "? [a]\n: b", "memory-budget: 1KiB"} {
		f.Add([]byte(seed), "POSTERN_BROKER_URL=x")
	}
	f.Fuzz(func(t *testing.T, data []byte, environ string) {
		var c config
		_ = settings.Load(settings.Source{Role: "broker", Data: data, Environ: []string{environ}}, &c)
	})
}
