package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/postern-zt/postern/broker/demo"
	"github.com/postern-zt/postern/broker/demo/apps"
)

// demoCmd shows the product on this machine.
type demoCmd struct {
	Once     bool   `help:"End when everything was shown."`
	Proxy    bool   `help:"Use loopback and the SOCKS proxy, even as root."`
	Bin      string `help:"Directory of the programs (default: beside this one)." placeholder:"DIR"`
	ServeApp string `help:"Serve one of the demo's apps." placeholder:"NAME=ADDR" hidden:""`
}

// Help shows an example.
func (demoCmd) Help() string {
	return "As root it uses network namespaces and a tunnel interface, else loopback and the proxy.\n" +
		"Nothing of this machine is changed and nothing stays.\n\nExample:\n  postern-broker demo --once"
}

// Run tells the story.
func (d *demoCmd) Run(e *env) error {
	if name, addr, ok := strings.Cut(d.ServeApp, "="); ok {
		return apps.Serve(e.ctx, name, addr, e.out)
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	if d.Bin == "" {
		d.Bin = filepath.Dir(self)
	}
	err = demo.Run(e.ctx, demo.Config{Bin: d.Bin, Self: self, Proxy: d.Proxy, Once: d.Once, Out: e.out, Environ: e.environ})
	if err != nil && e.ctx.Err() != nil {
		return errors.New("interrupted; everything was removed")
	}
	return err
}
