// Package state is what a client keeps in its state directory: the device key, the
// membership at one broker, the connectors it has met, and what the daemon wants of the
// host. The root package uses it, for the daemon with the system's directory, for a
// person without the daemon with that person's own.
//
//	STATE/identity.key   the device key (platform/keystore)
//	STATE/broker.json    Membership
//	STATE/pins.json      identity keys of connectors, by first use (decisions rule 2)
//	STATE/host.json      Host
//	STATE/audit.json     what is remembered of the broker's audit (proto/chain.Memory)
//
// Tokens are never stored: a session lives at the broker and is bound to the device key.
// A Store is used by one process at a time, which the local socket ensures; its methods
// are safe for concurrent use.
package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/platform/keystore"
	"github.com/postern-zt/postern/platform/paths"
	"github.com/postern-zt/postern/proto/chain"
	"github.com/postern-zt/postern/proto/ids"
)

const (
	membershipFile = "broker.json"
	pinsFile       = "pins.json"
	hostFile       = "host.json"
	auditFile      = "audit.json"
	maxFile        = 1 << 20
	// maxPins bounds the connectors that are remembered.
	maxPins = 4096
)

// Errors that callers branch on.
var (
	// ErrNotEnrolled says that the directory holds no membership yet.
	ErrNotEnrolled = errors.New("this device has not signed in to a broker yet")
	// ErrConnectorChanged says that a connector shows another identity key than before.
	ErrConnectorChanged = errors.New("the connector shows another identity key than before")
)

// Membership is what the broker gave when it admitted this device.
type Membership struct {
	// URL is the broker's URL with its pin.
	URL    string       `json:"url"`
	Device ids.DeviceID `json:"device"`
	Chain  [][]byte     `json:"chain"`
	CA     []byte       `json:"ca"`
}

// Broker returns the parsed URL.
func (m Membership) Broker() (control.Broker, error) { return control.ParseURL(m.URL) }

// Host is what the daemon wants of this machine.
type Host struct {
	// Up says that the apps shall be reachable; a restart brings them back.
	Up bool `json:"up"`
	// Owner is the user who signed in; only that user's programs pass. Nil is nobody.
	Owner *uint32 `json:"owner,omitempty"`
	// IPv4 is the prefix that was chosen, kept across restarts (rule 22).
	IPv4 netip.Prefix `json:"ipv4"`
}

// Store keeps all of it in a directory.
type Store struct {
	dir string
	key keystore.Key
	mu  sync.Mutex // one writer per file
}

// Open makes sure of the directory and of the device key in it.
func Open(dir string) (*Store, error) {
	if err := paths.PrivateDir(dir); err != nil {
		return nil, err
	}
	key, err := keystore.Open(dir)
	if err != nil {
		return nil, err
	}
	return &Store{dir: dir, key: key}, nil
}

// Key is the device key.
func (s *Store) Key() keystore.Key { return s.key }

// Load returns the membership, or ErrNotEnrolled.
func (s *Store) Load() (Membership, error) {
	var m Membership
	err := s.read(membershipFile, &m)
	if errors.Is(err, os.ErrNotExist) {
		return Membership{}, ErrNotEnrolled
	}
	return m, err
}

// Save replaces the membership.
func (s *Store) Save(m Membership) error { return s.write(membershipFile, m) }

// Host returns what the daemon wants; the zero Host before it wanted anything.
func (s *Store) Host() (Host, error) {
	var h Host
	err := s.read(hostFile, &h)
	if errors.Is(err, os.ErrNotExist) {
		return Host{}, nil
	}
	return h, err
}

// SaveHost replaces what the daemon wants.
func (s *Store) SaveHost(h Host) error { return s.write(hostFile, h) }

// LoadAudit returns what is remembered of the broker's audit.
func (s *Store) LoadAudit() (chain.Memory, error) {
	var m chain.Memory
	err := s.read(auditFile, &m)
	if errors.Is(err, os.ErrNotExist) {
		return chain.Memory{}, nil
	}
	return m, err
}

// SaveAudit replaces it.
func (s *Store) SaveAudit(m chain.Memory) error { return s.write(auditFile, m) }

// CheckConnector pins the identity key of a connector at first use and compares it at
// every later one. An unreadable list of pins refuses.
func (s *Store) CheckConnector(id ids.ConnectorID, key ids.KeyID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	pins := map[ids.ConnectorID]string{}
	if err := s.read(pinsFile, &pins); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	known, ok := pins[id]
	switch {
	case key.IsZero():
		return fmt.Errorf("connector %s: no identity key", id)
	case ok && known == key.String():
		return nil
	case ok:
		return fmt.Errorf("%w (connector %s); if your administrator confirms the change, run: postern logout --forget, then postern up", ErrConnectorChanged, id)
	case len(pins) >= maxPins:
		return fmt.Errorf("connector %s: too many connectors are remembered", id)
	}
	pins[id] = key.String()
	return s.write(pinsFile, pins)
}

// Forget removes the membership, the pins and the device key: the next sign-in is a new
// device.
func (s *Store) Forget() error {
	var errs []error
	for _, f := range []string{membershipFile, pinsFile, hostFile, auditFile} {
		if err := os.Remove(filepath.Join(s.dir, f)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, keystore.Remove(s.dir))...)
}

func (s *Store) read(name string, v any) error {
	f, err := os.Open(filepath.Join(s.dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Size() > maxFile {
		return fmt.Errorf("%s: not a state file", name)
	}
	if err := json.NewDecoder(f).Decode(v); err != nil {
		return fmt.Errorf("%s: %w", filepath.Join(s.dir, name), err)
	}
	return nil
}

func (s *Store) write(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return paths.WriteFile(filepath.Join(s.dir, name), append(b, '\n'), 0o600)
}
