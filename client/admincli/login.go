package admincli

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"

	"github.com/postern-zt/postern/client/state"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/platform/paths"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
)

const (
	loginFile = "admin.json"
	// membershipFile shows that a state directory has signed in; state.Open would make a
	// key where there is none.
	membershipFile = "broker.json"
	maxLoginFile   = 1 << 16
	// stateVariable names the directory of a client without the daemon.
	stateVariable = "POSTERN_STATE"
)

// login is which broker `postern admin` talks to. It holds no secret.
type login struct {
	URL string `json:"url"`
}

type loginCmd struct {
	URL string `arg:"" help:"URL of the broker with its pin, as the broker prints it."`
}

// Run checks that this device may administer the broker and stores its URL.
func (l *loginCmd) Run(ctx context.Context, a *Admin, e *Env) error {
	if _, err := control.ParseURL(l.URL); err != nil {
		return &Error{Code: ExitUsage, err: err}
	}
	hc, base, where, err := remote(e, l.URL)
	if err != nil {
		return err
	}
	c := newConn(hc, base, where, printer{out: e.Out, json: a.JSON, now: e.Now()})
	s, err := ask(ctx, c, c.system.Status, &adminv1.StatusRequest{})
	if err != nil {
		return err
	}
	if err := storeLogin(e, login{URL: l.URL}); err != nil {
		return err
	}
	return c.print.show(s, func(w io.Writer) { fmt.Fprintf(w, "postern admin talks to %s now.\n", clean(where)) })
}

type logoutCmd struct{}

// Run forgets the broker.
func (*logoutCmd) Run(_ context.Context, e *Env) error {
	name, err := loginPath(e)
	if err != nil {
		return err
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	_, err = fmt.Fprintln(e.Out, "postern admin talks to the broker of this machine now.")
	return err
}

// loginPath is where this person's choice lies: also root has one of its own.
func loginPath(e *Env) (string, error) {
	set, err := paths.User(paths.Client, e.Environ)
	if err != nil {
		return "", err
	}
	return filepath.Join(filepath.Dir(set.Config), loginFile), nil
}

// loadLogin returns the stored choice, empty for none.
func loadLogin(e *Env) (login, error) {
	name, err := loginPath(e)
	if err != nil {
		return login{}, nil // without a home nothing was stored
	}
	f, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return login{}, nil
	}
	if err != nil {
		return login{}, err
	}
	defer f.Close()
	var l login
	if err := json.NewDecoder(io.LimitReader(f, maxLoginFile)).Decode(&l); err != nil {
		return login{}, fmt.Errorf("%s cannot be read (%w); run `postern admin logout`", name, err)
	}
	return l, nil
}

func storeLogin(e *Env, l login) error {
	name, err := loginPath(e)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	data, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return paths.WriteFile(name, append(data, '\n'), 0o600)
}

// remote is the way over the control plane, with the certificate of this device.
func remote(e *Env, url string) (hc *http.Client, base, where string, err error) {
	broker, err := control.ParseURL(url)
	if err != nil {
		return nil, "", "", fmt.Errorf("stored broker: %w; run `postern admin login URL` again", err)
	}
	cert, err := certificate(e, broker)
	if err != nil {
		return nil, "", "", err
	}
	hc = control.NewClient(control.ClientConfig{
		Broker: broker, Now: e.Now,
		Certificate: func() (*tls.Certificate, error) { return cert, nil },
	})
	return hc, broker.BaseURL(), broker.Address, nil
}

// certificate finds the device of this person, or of the daemon, that is enrolled at the
// broker.
func certificate(e *Env, broker control.Broker) (*tls.Certificate, error) {
	for _, dir := range stateDirs(e) {
		if _, err := os.Stat(filepath.Join(dir, membershipFile)); err != nil {
			continue
		}
		cert, err := memberOf(dir, broker)
		if cert != nil || err != nil {
			return cert, err
		}
	}
	return nil, refused("this device has not signed in at the broker at %s; run `postern up URL` first (if the daemon signed in, its key is root's: run this as root)", broker.Address)
}

func stateDirs(e *Env) []string {
	if dir := variable(e, stateVariable); dir != "" {
		return []string{dir}
	}
	var dirs []string
	if set, err := paths.User(paths.Client, e.Environ); err == nil {
		dirs = append(dirs, set.State)
	}
	if set, err := paths.System(paths.Client, e.Environ); err == nil {
		dirs = append(dirs, set.State)
	}
	return dirs
}

// memberOf returns the certificate in a state directory, nil when it belongs to another
// broker: the pin decides, not the address.
func memberOf(dir string, broker control.Broker) (*tls.Certificate, error) {
	s, err := state.Open(dir)
	if err != nil {
		return nil, err
	}
	m, err := s.Load()
	if err != nil {
		return nil, err
	}
	own, err := m.Broker()
	if err != nil || own.Pin != broker.Pin {
		return nil, err
	}
	return &tls.Certificate{Certificate: m.Chain, PrivateKey: s.Key()}, nil
}
