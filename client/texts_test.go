package client

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/postern-zt/postern/client/auth"
	"github.com/postern-zt/postern/client/tunnels"
	"github.com/postern-zt/postern/netstack/control"
)

func TestWrongPinSaysWhatToDo(t *testing.T) {
	s := &signIn{broker: control.Broker{Address: "10.0.0.1:8443"}}
	err := s.explainPin(fmt.Errorf("%w: %w", tunnels.ErrBroker, control.ErrPin))
	if !strings.Contains(err.Error(), "answers at 10.0.0.1:8443. Copy the URL again") || !errors.Is(err, control.ErrPin) {
		t.Error(err)
	}
	if err := s.explainPin(tunnels.ErrBroker); !errors.Is(err, tunnels.ErrBroker) || errors.Is(err, control.ErrPin) {
		t.Error(err)
	}
}

func TestDeviceCodeIsTyped(t *testing.T) {
	if e := promptEvent(auth.Prompt{URL: "https://b/device", Code: "ABCD-EFGH"}); e.UserCode == "" || !strings.Contains(e.Text, "type the code there") {
		t.Errorf("%+v", e)
	}
}
