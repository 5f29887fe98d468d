package netns

import (
	"os"
	"path/filepath"
	"testing"
)

const (
	// resolvedEnv names the directory into which .ci/deps unpacks systemd-resolved.
	resolvedEnv = "POSTERN_RESOLVED_DIR"
	resolvedDir = "/var/cache/postern-test/resolved"
)

// Resolved returns the path of systemd-resolved or resolvectl. Without it the test skips,
// and fails with CI=true.
func Resolved(t testing.TB, program string) string {
	t.Helper()
	dir := os.Getenv(resolvedEnv)
	if dir == "" {
		dir = resolvedDir
	}
	for _, dir := range []string{filepath.Join(dir, "bin"), "/usr/lib/systemd", "/lib/systemd", "/usr/bin"} {
		path := filepath.Join(dir, program)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path
		}
	}
	const why = "needs systemd-resolved, unpacked by .ci/deps"
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
	return ""
}

// BusConfig is the configuration of a message bus on which everybody may do everything.
func BusConfig(listen string) string {
	return `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>` + listen + `</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/><allow user="*"/></policy>
</busconfig>`
}
