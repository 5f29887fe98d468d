package service

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func units() map[string]Unit {
	return map[string]Unit{
		"broker": {
			Role: "broker", Description: "Postern broker", Exec: "/usr/bin/postern-broker", Args: []string{"run"},
			Capabilities: []string{"CAP_NET_BIND_SERVICE"}, Drain: time.Minute,
		},
		"connector": {
			Role: "connector", Description: "Postern connector", Exec: "/usr/bin/postern-connector",
			Args: []string{"run", "--name", `100% of "$HOME" \ it`},
		},
		"client": {
			Role: "client", Description: "Postern client", Exec: "/usr/bin/posternd", Args: []string{"run"}, CleanUp: []string{"clean-up"},
			Capabilities: []string{"CAP_NET_ADMIN", "CAP_NET_RAW"}, Devices: []string{"/dev/net/tun"}, WritesEtc: true,
		},
	}
}

// To accept new output: POSTERN_GOLDEN=write go test ./platform/service
func TestRenderMatchesGolden(t *testing.T) {
	for name, unit := range units() {
		got, err := Render(unit)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", name+".golden")
		if os.Getenv("POSTERN_GOLDEN") == "write" {
			if err := os.WriteFile(path, got, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), string(got)); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

func TestRenderRefusesWhatWouldBreakOut(t *testing.T) {
	for name, change := range map[string]func(*Unit){
		"role with a path":       func(u *Unit) { u.Role = "../x" },
		"no role":                func(u *Unit) { u.Role = "" },
		"two lines":              func(u *Unit) { u.Description = "a\nExecStart=/bin/sh" },
		"no description":         func(u *Unit) { u.Description = "" },
		"relative program":       func(u *Unit) { u.Exec = "postern" },
		"program with blank":     func(u *Unit) { u.Exec = "/opt/my programs/x" },
		"program with specifier": func(u *Unit) { u.Exec = "/opt/%n" },
		"argument with line end": func(u *Unit) { u.Args = []string{"a\nUser=root"} },
		"clean-up with line end": func(u *Unit) { u.CleanUp = []string{"a\n"} },
		"capability":             func(u *Unit) { u.Capabilities = []string{"CAP_SYS_ADMIN\nUser=x"} },
		"device":                 func(u *Unit) { u.Devices = []string{"char-* rw"} },
		"drain":                  func(u *Unit) { u.Drain = -1 },
	} {
		u := units()["client"]
		change(&u)
		if got, err := Render(u); err == nil {
			t.Errorf("%s: rendered\n%s", name, got)
		}
	}
}

// fakeSystemd records the commands and fails at the chosen one.
type fakeSystemd struct {
	calls  []string
	failAt string
}

var errSystemd = errors.New("systemd says no")

func (f *fakeSystemd) Run(_ context.Context, name string, args ...string) error {
	call := name + " " + strings.Join(args, " ")
	f.calls = append(f.calls, call)
	if f.failAt != "" && strings.Contains(call, f.failAt) {
		return errSystemd
	}
	return nil
}

func TestInstallAndRemove(t *testing.T) {
	fake := &fakeSystemd{}
	m := &Manager{dir: t.TempDir(), runner: fake}
	path := filepath.Join(m.dir, "postern-broker.service")
	for range 2 {
		if err := m.Install(t.Context(), units()["broker"]); err != nil {
			t.Fatal(err)
		}
	}
	if text, err := os.ReadFile(path); err != nil || !strings.Contains(string(text), "ExecStart=/usr/bin/postern-broker \"run\"") {
		t.Errorf("unit = %q, %v", text, err)
	}
	fake.calls = nil
	for range 2 {
		if err := m.Remove(t.Context(), "broker"); err != nil {
			t.Fatal(err)
		}
	}
	if entries, _ := os.ReadDir(m.dir); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
	want := []string{"systemctl disable --now postern-broker.service", "systemctl daemon-reload"}
	if d := cmp.Diff(want, fake.calls); d != "" {
		t.Errorf("commands (-want +got):\n%s", d)
	}
}

func TestInstallStopsAtTheFirstError(t *testing.T) {
	fake := &fakeSystemd{failAt: "enable"}
	m := &Manager{dir: t.TempDir(), runner: fake}
	if err := m.Install(t.Context(), units()["broker"]); !errors.Is(err, errSystemd) {
		t.Errorf("Install = %v, want %v", err, errSystemd)
	}
	if n := len(fake.calls); n != 2 {
		t.Errorf("%d commands, want 2: %v", n, fake.calls)
	}
	m = &Manager{dir: filepath.Join(m.dir, "none"), runner: fake}
	if err := m.Install(t.Context(), units()["broker"]); err == nil {
		t.Error("Install into a missing directory succeeded")
	}
}

func TestRemoveGoesOnAfterAnError(t *testing.T) {
	fake := &fakeSystemd{}
	m := &Manager{dir: t.TempDir(), runner: fake}
	if err := m.Install(t.Context(), units()["broker"]); err != nil {
		t.Fatal(err)
	}
	fake.failAt = "disable"
	if err := m.Remove(t.Context(), "broker"); !errors.Is(err, errSystemd) {
		t.Errorf("Remove = %v, want %v", err, errSystemd)
	}
	if entries, _ := os.ReadDir(m.dir); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
	if err := m.Remove(t.Context(), "../broker"); err == nil {
		t.Error("Remove of a path succeeded")
	}
}
