package paths

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPlaces(t *testing.T) {
	tests := []struct {
		name    string
		of      func(string, Role, []string) (Set, error)
		goos    string
		role    Role
		environ []string
		want    Set
	}{
		{"linux system", system, "linux", Broker, nil, Set{
			"/etc/postern/broker.yaml", "/var/lib/postern/broker", "/run/postern/broker", "/run/postern/broker/local.sock"}},
		{"darwin system", system, "darwin", Client, nil, Set{
			"/etc/postern/client.yaml", "/Library/Application Support/Postern/client", "/var/run/postern/client", "/var/run/postern/client/local.sock"}},
		{"windows system", system, "windows", Connector, []string{`ProgramData=D:\Data`}, Set{
			`D:\Data\Postern\connector.yaml`, `D:\Data\Postern\connector`, `D:\Data\Postern\run\connector`, `D:\Data\Postern\run\connector\local.sock`}},
		{"linux user", user, "linux", Client, []string{"HOME=/home/ann", "XDG_RUNTIME_DIR=/run/user/1000"}, Set{
			"/home/ann/.config/postern/client.yaml", "/home/ann/.local/state/postern/client", "/run/user/1000/postern/client", "/run/user/1000/postern/client/local.sock"}},
		{"linux user with XDG", user, "linux", Client, []string{"XDG_CONFIG_HOME=/c", "XDG_STATE_HOME=/s"}, Set{
			"/c/postern/client.yaml", "/s/postern/client", "/s/postern/run/client", "/s/postern/run/client/local.sock"}},
		{"linux user ignores relative XDG", user, "linux", Client, []string{"HOME=/h", "XDG_STATE_HOME=../x", "XDG_RUNTIME_DIR=x"}, Set{
			"/h/.config/postern/client.yaml", "/h/.local/state/postern/client", "/h/.local/state/postern/run/client", "/h/.local/state/postern/run/client/local.sock"}},
		{"darwin user", user, "darwin", Client, []string{"HOME=/Users/ann"}, Set{
			"/Users/ann/Library/Application Support/Postern/client.yaml", "/Users/ann/Library/Application Support/Postern/client",
			"/Users/ann/Library/Application Support/Postern/run/client", "/Users/ann/Library/Application Support/Postern/run/client/local.sock"}},
		{"windows user", user, "windows", Client, []string{`LOCALAPPDATA=C:\U`}, Set{
			`C:\U\Postern\client.yaml`, `C:\U\Postern\client`, `C:\U\Postern\run\client`, `C:\U\Postern\run\client\local.sock`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.of(tt.goos, tt.role, tt.environ)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestUnknownRoleHasNoPlace(t *testing.T) {
	for _, r := range []Role{"", "../etc", "relay"} {
		if _, err := System(r, nil); err == nil {
			t.Errorf("System(%q) succeeded", r)
		}
		if _, err := User(r, []string{"HOME=/h"}); err == nil {
			t.Errorf("User(%q) succeeded", r)
		}
	}
}

func TestUserWithoutHome(t *testing.T) {
	for _, goos := range []string{"linux", "darwin", "windows"} {
		if _, err := user(goos, Client, []string{"HOME="}); !errors.Is(err, ErrNoHome) {
			t.Errorf("user(%s) = %v, want ErrNoHome", goos, err)
		}
	}
	if _, err := user("linux", Client, []string{"HOME=relative"}); !errors.Is(err, ErrNoHome) {
		t.Errorf("user with relative home = %v, want ErrNoHome", err)
	}
}
