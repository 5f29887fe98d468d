package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/postern-zt/postern/connector/enroll"
	"github.com/postern-zt/postern/platform/paths"
	"github.com/postern-zt/postern/platform/service"
)

// serviceCmd installs or removes the system service.
type serviceCmd struct {
	Install serviceInstallCmd `cmd:"" help:"Start the connector now and at every boot. It must have joined as root."`
	Remove  serviceRemoveCmd  `cmd:"" help:"Stop the connector and start it no more. Its membership stays."`
}

type (
	serviceInstallCmd struct{}
	serviceRemoveCmd  struct{}
)

// unit says what a connector needs of the machine: nothing but its state directory.
func unit(exec string) service.Unit {
	return service.Unit{
		Role: string(paths.Connector), Description: "Postern connector", Exec: exec, Args: []string{"run"},
	}
}

// Run installs.
func (serviceInstallCmd) Run(e *env) error {
	if e.dir != e.state.State {
		return fmt.Errorf("the service keeps its state in %s; it takes no --state-dir", e.state.State)
	}
	if !enroll.Joined(e.dir) {
		return fmt.Errorf("%w; start it once as root: postern-connector run --join URL", enroll.ErrNotJoined)
	}
	exec, err := os.Executable()
	if err == nil {
		exec, err = filepath.EvalSymlinks(exec)
	}
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	m, err := service.New()
	if err != nil {
		return err
	}
	if err := m.Install(e.ctx, unit(exec)); err != nil {
		return err
	}
	_, err = fmt.Fprintln(e.out, "Installed. See it with: postern-connector status")
	return err
}

// Run removes.
func (serviceRemoveCmd) Run(e *env) error {
	m, err := service.New()
	if err != nil {
		return err
	}
	if err := m.Remove(e.ctx, string(paths.Connector)); err != nil {
		return err
	}
	_, err = fmt.Fprintln(e.out, "Removed. The membership stays; postern-connector leave ends it.")
	return err
}
