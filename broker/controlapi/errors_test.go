package controlapi

import (
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker/catalog"
)

// TestWireCodeOfTargets: whoever publishes learns what to write instead.
func TestWireCodeOfTargets(t *testing.T) {
	for target, want := range map[string]string{
		"http://10.0.0.5/": "host:port without http://",
		"10.0.0.0/8":       "not yet supported",
	} {
		_, err := catalog.ParseTarget(target)
		if code, text := wireCode(err); code != connect.CodeInvalidArgument || !strings.Contains(text, want) {
			t.Errorf("%s: %v %q, want %q", target, code, text, want)
		}
	}
}
