// Package paths knows where Postern keeps its files on each system and writes
// them so that a crash leaves the old or the new content, never a half.
//
// Every role uses it. It reads no environment (main hands it in) and decides
// nothing about content. All functions are safe for concurrent use, with one
// writer per file.
package paths

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
)

// Role is the part of the product whose files are meant.
type Role string

// The roles that keep files.
const (
	Broker    Role = "broker"
	Connector Role = "connector"
	Client    Role = "client"
)

// ErrNoHome says that the environment names no home directory.
var ErrNoHome = errors.New("no home directory in the environment")

// Set is where one role keeps its files. Nothing in it needs to exist.
type Set struct {
	// Config is the configuration file.
	Config string
	// State is the directory of what must survive a restart: keys, database,
	// certificates. It is for the role alone.
	State string
	// Runtime is the directory of what ends with the process: the local socket.
	Runtime string
	// Socket is the local socket inside Runtime.
	Socket string
}

// System gives the places of a role that runs as a service of the machine.
func System(role Role, environ []string) (Set, error) {
	return system(runtime.GOOS, role, environ)
}

// User gives the places of a role that one person runs without privilege.
func User(role Role, environ []string) (Set, error) {
	return user(runtime.GOOS, role, environ)
}

func system(goos string, role Role, environ []string) (Set, error) {
	if err := role.check(); err != nil {
		return Set{}, err
	}
	r := string(role)
	switch goos {
	case "windows":
		base := valueOr(environ, "ProgramData", `C:\ProgramData`) + `\Postern`
		return place(`\`, base, base+`\`+r, base+`\run\`+r, role), nil
	case "darwin":
		return place("/", "/etc/postern", "/Library/Application Support/Postern/"+r, "/var/run/postern/"+r, role), nil
	default:
		return place("/", "/etc/postern", "/var/lib/postern/"+r, "/run/postern/"+r, role), nil
	}
}

func user(goos string, role Role, environ []string) (Set, error) {
	if err := role.check(); err != nil {
		return Set{}, err
	}
	switch goos {
	case "windows":
		return userWindows(role, environ)
	case "darwin":
		return userDarwin(role, environ)
	default:
		return userXDG(role, environ)
	}
}

func userWindows(role Role, environ []string) (Set, error) {
	local := value(environ, "LOCALAPPDATA")
	if local == "" {
		return Set{}, ErrNoHome
	}
	base := local + `\Postern`
	return place(`\`, base, base+`\`+string(role), base+`\run\`+string(role), role), nil
}

func userDarwin(role Role, environ []string) (Set, error) {
	home := value(environ, "HOME")
	if home == "" {
		return Set{}, ErrNoHome
	}
	base := home + "/Library/Application Support/Postern"
	return place("/", base, base+"/"+string(role), base+"/run/"+string(role), role), nil
}

// userXDG follows the XDG base directory specification, which ignores relative
// values.
func userXDG(role Role, environ []string) (Set, error) {
	home := value(environ, "HOME")
	missing := false
	xdg := func(name, rest string) string {
		if v := value(environ, name); strings.HasPrefix(v, "/") {
			return v
		}
		missing = missing || !strings.HasPrefix(home, "/")
		return home + rest
	}
	config, state := xdg("XDG_CONFIG_HOME", "/.config"), xdg("XDG_STATE_HOME", "/.local/state")
	if missing {
		return Set{}, ErrNoHome
	}
	r := string(role)
	run := state + "/postern/run/" + r
	if v := value(environ, "XDG_RUNTIME_DIR"); strings.HasPrefix(v, "/") {
		run = v + "/postern/" + r
	}
	return place("/", config+"/postern", state+"/postern/"+r, run, role), nil
}

func (r Role) check() error {
	switch r {
	case Broker, Connector, Client:
		return nil
	default:
		return fmt.Errorf("unknown role %q", string(r))
	}
}

func place(sep, config, state, run string, role Role) Set {
	return Set{
		Config:  config + sep + string(role) + ".yaml",
		State:   state,
		Runtime: run,
		Socket:  run + sep + "local.sock",
	}
}

// value gives the last setting of name, as a shell would.
func value(environ []string, name string) string {
	for i := len(environ) - 1; i >= 0; i-- {
		if k, v, ok := strings.Cut(environ[i], "="); ok && k == name {
			return v
		}
	}
	return ""
}

func valueOr(environ []string, name, otherwise string) string {
	if v := value(environ, name); v != "" {
		return v
	}
	return otherwise
}
