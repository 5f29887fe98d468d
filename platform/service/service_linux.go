package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// unitDir is where an administrator's units live.
const unitDir = "/etc/systemd/system"

// New gives the manager of this machine. The error is [errors.ErrUnsupported] when
// systemd does not run it.
func New() (*Manager, error) {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return nil, fmt.Errorf("service: systemd does not run this machine: %w", errors.ErrUnsupported)
	}
	return &Manager{dir: unitDir, runner: command{}}, nil
}

// command runs programs and puts their words into the error.
type command struct{}

func (command) Run(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, args[0], err, strings.TrimSpace(string(out)))
	}
	return nil
}
