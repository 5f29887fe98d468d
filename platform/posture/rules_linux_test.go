package posture

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inNamespace runs f in a fresh network namespace with the given nftables rules.
// The thread is thrown away with its namespace.
func inNamespace(t *testing.T, rules string, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			cmd := exec.Command("nft", "-f", "-")
			cmd.Stdin = strings.NewReader(strings.ReplaceAll(rules, "}", "\n}\n"))
			cmd.Stderr = os.Stderr
			if err := cmd.Run(); err != nil {
				return err
			}
			f()
			return nil
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestFirewallFromTheKernel(t *testing.T) {
	tests := []struct {
		name, rules string
		want        State
	}{
		{"empty", "", Fail},
		{"policy drop", `table inet f { chain in { type filter hook input priority 0; policy drop; ct state established accept; tcp dport 22 accept; } }`, Pass},
		{"policy accept", `table inet f { chain in { type filter hook input priority 0; tcp dport 23 drop; } }`, Fail},
		{"last rule rejects", `table inet f { chain in { type filter hook input priority 0; iif lo accept; counter log prefix "x" reject; } }`, Pass},
		{"output only", `table inet f { chain out { type filter hook output priority 0; policy drop; } }`, Fail},
		{"jump", `table inet f { chain end { counter drop; } chain in { type filter hook input priority 0; jump end; } }`, Pass},
		{"limited drop", `table inet f { chain in { type filter hook input priority 0; limit rate 5/second drop; } }`, Fail},
		{"bridge", `table bridge f { chain in { type filter hook input priority 0; policy drop; } }`, Fail},
		// An expression that the nftables package does not know: with it left out
		// the rule would read as "drop everything".
		{"condition of an unknown kind", `table inet f { chain in { type filter hook input priority 0; osf name "Linux" drop; } }`, Fail},
		{"one dropped set", `table ip f { set s { type ipv4_addr; elements = { 192.0.2.1 } } chain in { type filter hook input priority 0; ip saddr @s drop; } }`, Fail},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inNamespace(t, tt.rules, func() {
				got := New(Config{Root: files()}).firewall()
				if got.State != tt.want {
					t.Errorf("firewall = %v (%s), want %v", got.State, got.Evidence, tt.want)
				}
			})
		})
	}
}

func FuzzDecodeRule(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0})
	f.Add([]byte{2, 0, 0, 0, 8, 0, 1, 0, 'f', 0, 0, 0, 8, 0, 4, 0, 4, 0, 1, 0})
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _, _ = decodeRule(data)
	})
}
