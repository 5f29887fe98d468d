package daemon

import (
	"fmt"
	"net"
	"strings"
	"time"
)

// Messages of the service manager's notify protocol, see sd_notify(3).
const (
	Ready    = "READY=1"
	Stopping = "STOPPING=1"
)

// notifyWait bounds the write to the service manager, which reads at once or is
// stuck.
const notifyWait = time.Second

// Notify sends state to the service manager. socket is the value of
// NOTIFY_SOCKET, which main reads; empty means that nobody listens, and Notify
// does nothing.
func Notify(socket, state string) error {
	if socket == "" {
		return nil
	}
	if !strings.HasPrefix(socket, "/") && !strings.HasPrefix(socket, "@") {
		return fmt.Errorf("notify socket %q is neither a path nor abstract", socket)
	}
	conn, err := net.DialTimeout("unixgram", socket, notifyWait)
	if err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(notifyWait)); err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	return nil
}
