// Package service installs a role as a service of the machine: it writes a unit
// for systemd, starts it, and takes it away again.
//
// The `service install` and `service remove` commands of the roles use it. It
// decides nothing about what the service does; each role says in its [Unit] what
// it needs, and everything else is taken from the process by the unit.
//
// Rendering is pure. A [Manager] is for one goroutine at a time.
package service

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"text/template"
	"time"
)

// Unit says what a service needs.
type Unit struct {
	// Role is the word in the unit's name, "postern-<role>", and in its folders
	// below /var/lib/postern and /run/postern.
	Role string
	// Description is one line for people.
	Description string
	// Exec is the absolute path of the program.
	Exec string
	// Args are its arguments. They are visible to every user of the machine, so no
	// secret may stand here.
	Args []string
	// CleanUp are the arguments that undo what a killed process left on the host;
	// empty means nothing is to undo.
	CleanUp []string
	// Capabilities are what the process keeps of the rights of root, such as
	// CAP_NET_ADMIN. Empty means none.
	Capabilities []string
	// Devices are device files that the process opens, such as /dev/net/tun.
	Devices []string
	// WritesEtc says that the process changes files in /etc: the resolver's.
	WritesEtc bool
	// Drain is how long the process may take to end; zero means 30 s.
	Drain time.Duration
}

// defaultDrain lets flows end before the service manager kills.
const defaultDrain = 30 * time.Second

//go:embed unit.tmpl
var unitTemplate string

// Patterns of what may stand in a unit without quoting.
const (
	rolePattern       = `^[a-z][a-z-]{0,30}$`
	capabilityPattern = `^CAP_[A-Z_]{2,40}$`
	pathPattern       = `^/[A-Za-z0-9/._+@-]{1,200}$`
)

// Name gives the name of the unit with its suffix.
func (u Unit) Name() string { return "postern-" + u.Role + ".service" }

// Validate names the first field that cannot stand in a unit.
func (u Unit) Validate() error {
	switch {
	case !matches(rolePattern, u.Role):
		return fmt.Errorf("service: role %q", u.Role)
	case u.Description == "" || strings.ContainsFunc(u.Description, isControl):
		return fmt.Errorf("service: description %q", u.Description)
	case !matches(pathPattern, u.Exec):
		return fmt.Errorf("service: program %q is no plain absolute path", u.Exec)
	case u.Drain < 0:
		return fmt.Errorf("service: drain %v", u.Drain)
	}
	for _, c := range u.Capabilities {
		if !matches(capabilityPattern, c) {
			return fmt.Errorf("service: capability %q", c)
		}
	}
	for _, d := range u.Devices {
		if !matches(pathPattern, d) {
			return fmt.Errorf("service: device %q", d)
		}
	}
	for _, a := range append(append([]string{}, u.Args...), u.CleanUp...) {
		if strings.ContainsFunc(a, isControl) {
			return fmt.Errorf("service: argument %q has a control character", a)
		}
	}
	return nil
}

func matches(pattern, s string) bool { return regexp.MustCompile(pattern).MatchString(s) }

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// Render writes the unit.
func Render(u Unit) ([]byte, error) {
	if err := u.Validate(); err != nil {
		return nil, err
	}
	tmpl, err := template.New("unit").Funcs(template.FuncMap{"words": words, "join": joined}).Parse(unitTemplate)
	if err != nil {
		return nil, fmt.Errorf("service: %w", err)
	}
	if u.Drain == 0 {
		u.Drain = defaultDrain
	}
	var b strings.Builder
	if err := tmpl.Execute(&b, u); err != nil {
		return nil, fmt.Errorf("service: %w", err)
	}
	return []byte(b.String()), nil
}

func joined(list []string) string { return strings.Join(list, " ") }

// words writes arguments so that systemd.service(5) reads them back unchanged:
// quoted, without specifiers and without variables.
func words(args []string) string {
	var b strings.Builder
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`, `%`, `%%`, `$`, `$$`)
	for _, a := range args {
		b.WriteString(` "` + escape.Replace(a) + `"`)
	}
	return b.String()
}

// Runner runs a command of the service manager.
type Runner interface {
	Run(ctx context.Context, name string, args ...string) error
}

// Manager installs units into one directory.
type Manager struct {
	dir    string
	runner Runner
}

// Install writes the unit and starts it now and at every boot. Installing again
// replaces the unit and restarts the service.
func (m *Manager) Install(ctx context.Context, u Unit) error {
	text, err := Render(u)
	if err != nil {
		return err
	}
	if err := replace(filepath.Join(m.dir, u.Name()), text); err != nil {
		return fmt.Errorf("install %s: %w", u.Name(), err)
	}
	for _, args := range [][]string{{"daemon-reload"}, {"enable", u.Name()}, {"restart", u.Name()}} {
		if err := m.runner.Run(ctx, "systemctl", args...); err != nil {
			return fmt.Errorf("install %s: %w", u.Name(), err)
		}
	}
	return nil
}

// Remove stops the service of a role and removes its unit. Without a unit it does
// nothing. The role's own files stay.
func (m *Manager) Remove(ctx context.Context, role string) error {
	u := Unit{Role: role}
	if !matches(rolePattern, role) {
		return fmt.Errorf("service: role %q", role)
	}
	path := filepath.Join(m.dir, u.Name())
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	err := m.runner.Run(ctx, "systemctl", "disable", "--now", u.Name())
	err = errors.Join(err, os.Remove(path), m.runner.Run(ctx, "systemctl", "daemon-reload"))
	if err != nil {
		return fmt.Errorf("remove %s: %w", u.Name(), err)
	}
	return nil
}

// replace writes the unit beside its place and moves it there, so that the
// service manager never reads a half.
func replace(path string, text []byte) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, text, 0o644); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}
