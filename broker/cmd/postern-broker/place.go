package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"

	"github.com/postern-zt/postern/broker"
	"github.com/postern-zt/postern/broker/backup"
)

// maxPassphrase bounds what is read as a passphrase.
const maxPassphrase = 4096

// place says which broker on this host is meant.
type place struct {
	Config  string `help:"Configuration file (default: the system's)." placeholder:"FILE"`
	DataDir string `help:"Directory of database and keys." placeholder:"DIR"`
	URL     string `help:"How clients and connectors reach this broker, if the configuration does not say." placeholder:"URL"`
}

func (p place) config(e *env) (broker.Config, error) {
	cfg, err := (&runCmd{Config: p.Config, DataDir: p.DataDir, URL: p.URL}).config(e)
	if err != nil {
		return cfg, fmt.Errorf("configuration: %w", err)
	}
	return cfg, nil
}

// open opens the broker of this host for maintenance.
func (p place) open(e *env) (*broker.Maintenance, error) {
	cfg, err := p.config(e)
	if err != nil {
		return nil, err
	}
	return broker.OpenMaintenance(e.ctx, cfg, version, logger("warn"))
}

// unlock is what opens and closes a backup. Neither is ever an argument: arguments are
// seen by everybody on the host.
type unlock struct {
	PassphraseFile string `xor:"unlock" help:"File with the passphrase in its first line, - for stdin (default: ask)." placeholder:"FILE"`
	KeyFile        string `xor:"unlock" help:"Key file instead of a passphrase." placeholder:"FILE"`
}

func (u unlock) secret() (backup.Secret, error) {
	if u.KeyFile != "" {
		return backup.KeyFile(u.KeyFile)
	}
	text, err := u.passphrase()
	if err != nil {
		return backup.Secret{}, fmt.Errorf("passphrase: %w", err)
	}
	return backup.Passphrase(text)
}

func (u unlock) passphrase() ([]byte, error) {
	switch {
	case u.PassphraseFile == "-":
		return firstLine(os.Stdin)
	case u.PassphraseFile != "":
		f, err := os.Open(u.PassphraseFile)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return firstLine(f)
	case !term.IsTerminal(int(os.Stdin.Fd())):
		return nil, errors.New("give --passphrase-file FILE (- for stdin) or --key-file FILE")
	}
	fmt.Fprint(os.Stderr, "Passphrase of the backup: ")
	text, err := term.ReadPassword(int(os.Stdin.Fd()))
	fmt.Fprintln(os.Stderr)
	return text, err
}

func firstLine(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxPassphrase))
	if err != nil {
		return nil, err
	}
	for i, c := range data {
		if c == '\n' || c == '\r' {
			return data[:i], nil
		}
	}
	return data, nil
}
