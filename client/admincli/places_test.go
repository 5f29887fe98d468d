package admincli

import (
	"strings"
	"testing"
)

// TestTokenSaysWhatBecomesOfApps: whether they are published, and else how to approve them.
func TestTokenSaysWhatBecomesOfApps(t *testing.T) {
	for want, cmd := range map[string]tokenAddCmd{
		"app approve": {}, "published at once": {Publish: true},
	} {
		if got := cmd.afterwards(); !strings.Contains(got, want) {
			t.Errorf("%+v: %q lacks %q", cmd, got, want)
		}
	}
	if got := (&tokenAddCmd{Relay: true}).afterwards(); got != "" {
		t.Errorf("for a relay: %q", got)
	}
}
