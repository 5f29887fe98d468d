// Package demo shows the product on one machine: it starts the real programs, does what an
// owner, an admin and an employee would do, and checks that each step holds. The command
// postern-broker demo runs it.
//
// Programs stand on loopback, or, as root, each in a network namespace of its own with a
// tunnel interface on the employee's side. Everything lives in one temporary directory;
// nothing of the host is changed and nothing stays. The package must not reach into a
// program: it sees terminals, pages, local sockets and the network, as people do.
//
// Run owns every process and goroutine.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// stepTimeout bounds each step; all of them take milliseconds to few seconds.
const stepTimeout = 45 * time.Second

// endTimeout is how long programs have to end.
const endTimeout = 10 * time.Second

// Config is what the demo needs.
type Config struct {
	// Bin is the directory of the programs.
	Bin string
	// Self is the running program, which also serves the two small apps.
	Self string
	// Proxy keeps to loopback and the SOCKS proxy even as root.
	Proxy bool
	// Once ends after the last step; else the demo stays up until ctx ends.
	Once bool
	Out  io.Writer
	// Environ is the environment of the programs.
	Environ []string
}

// demo is one run.
type demo struct {
	cfg      Config
	dir      string
	net      network
	programs []*program
	started  time.Time
	broker   *program
	url      string
	owner    string
	invite   string
	admin    *admin
	rule     string
	door     door
}

// step is one line of the story.
type step struct {
	title string
	do    func(ctx context.Context) (shown string, err error)
}

// Run tells the story. The error is that of the first step that does not hold.
func Run(ctx context.Context, cfg Config) (err error) {
	d := &demo{cfg: cfg, started: time.Now()}
	if d.dir, err = os.MkdirTemp("", "postern-demo-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.end(ctx)) }()
	if err := d.tell(ctx); err != nil {
		return err
	}
	fmt.Fprintf(cfg.Out, "\n  All of it held, in %.1f s.\n", time.Since(d.started).Seconds())
	if cfg.Once {
		return nil
	}
	d.sayWhatToTry()
	<-ctx.Done()
	fmt.Fprintln(cfg.Out, "\n  Ending, and removing everything.")
	return nil
}

// tell runs the steps in order.
func (d *demo) tell(ctx context.Context) error {
	if err := d.build(ctx); err != nil {
		return err
	}
	fmt.Fprintf(d.cfg.Out, "\n  Postern, on this machine: %s\n\n", d.net.describe())
	for _, s := range d.story() {
		if err := d.take(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// take does one step and prints it.
func (d *demo) take(ctx context.Context, s step) error {
	limited, cancel := context.WithTimeoutCause(ctx, stepTimeout, fmt.Errorf("nothing happened for %v", stepTimeout))
	defer cancel()
	shown, err := s.do(limited)
	if err != nil {
		fmt.Fprintf(d.cfg.Out, "  ✗ %s\n", s.title)
		return errors.Join(fmt.Errorf("%s: %w", s.title, err), d.lastWords())
	}
	fmt.Fprintf(d.cfg.Out, "  ✓ %s\n", s.title)
	return printIndented(d.cfg.Out, shown)
}

// build makes the network that the programs stand in.
func (d *demo) build(ctx context.Context) (err error) {
	for _, name := range []string{"postern-broker", "postern-connector", "postern"} {
		if _, err := os.Stat(filepath.Join(d.cfg.Bin, name)); err != nil {
			return fmt.Errorf("the demo needs %s beside this program: %w", name, err)
		}
	}
	if err := needs("curl"); err != nil {
		return err
	}
	if d.wantsTunnel() {
		if d.net, err = newSpaces(ctx); err == nil {
			d.door = &tunnelDoor{d}
			return nil
		}
		fmt.Fprintf(d.cfg.Out, "\n  This machine gives no network namespaces or no tunnel interface (%v): loopback instead.\n", err)
	}
	d.net, err = newLoopback()
	d.door = &proxyDoor{demo: d}
	return err
}

// wantsTunnel reports whether this process may try to make namespaces and interfaces.
func (d *demo) wantsTunnel() bool {
	if d.cfg.Proxy || os.Geteuid() != 0 || !spacesSupported() {
		return false
	}
	_, err := os.Stat(filepath.Join(d.cfg.Bin, "posternd"))
	return err == nil
}

// end stops the programs, the last one first, and removes what was made. It does not
// depend on ctx, which has ended after an interrupt.
func (d *demo) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	var errs []error
	if d.admin != nil {
		d.admin.close()
	}
	for i := len(d.programs) - 1; i >= 0; i-- {
		d.programs[i].stop(ctx)
	}
	if d.net != nil {
		errs = append(errs, d.net.remove(ctx))
	}
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}

// network is where the programs stand.
type network interface {
	describe() string
	// place is where a machine's programs run.
	place(m machine) place
	// broker is the address that the broker listens on; wiki and payroll those of the apps.
	broker() netip.AddrPort
	wiki() netip.AddrPort
	payroll() netip.AddrPort
	remove(ctx context.Context) error
}

// machine is one of the three that the demo shows.
type machine string

const (
	brokerHost machine = "broker"
	siteHost   machine = "site"
	laptop     machine = "laptop"
)
