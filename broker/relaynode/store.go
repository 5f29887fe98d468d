package relaynode

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/platform/keystore"
	"github.com/postern-zt/postern/platform/paths"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/ticket"
)

// ErrNotJoined says that the data directory holds no membership yet.
var ErrNotJoined = errors.New("this relay has not joined a broker")

// ErrOtherBroker says that the data directory belongs to another broker.
var ErrOtherBroker = errors.New("this relay belongs to another broker")

const (
	membershipFile = "relay.json"
	ticketKeyFile  = "ticket.key"
	keysFile       = "keys.json"
	// maxFile bounds what is read from the data directory: a chain of two certificates,
	// or those of all brokers, has a few KiB.
	maxFile = 1 << 20
)

// Membership is what the broker gave at the join.
type Membership struct {
	// URL is the broker's URL with its pin.
	URL   string      `json:"url"`
	Relay ids.RelayID `json:"relay"`
	// Addresses are what the broker tells clients and connectors.
	Addresses []string `json:"addresses"`
	Chain     [][]byte `json:"chain"`
	CA        []byte   `json:"ca"`
}

// Broker returns the parsed URL.
func (m Membership) Broker() (control.Broker, error) { return control.ParseURL(m.URL) }

// Store keeps a relay's identity in a directory for its owner alone:
//
//	DIR/identity.key   the identity key (platform/keystore)
//	DIR/ticket.key     the key that opens tickets: who has it can read them, which shows
//	                   who may talk to whom, and nothing of what they say
//	DIR/relay.json     Membership
//	DIR/keys.json      certificates of the signing keys heard last
//
// A Store is used by one process at a time.
type Store struct {
	dir string
	key keystore.Key
}

// Open makes sure of the directory and of the identity key in it.
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

// Key is the relay's identity key.
func (s *Store) Key() keystore.Key { return s.key }

// Dir is the data directory.
func (s *Store) Dir() string { return s.dir }

// TicketKey returns the key that tickets are sealed to, made at the first call.
func (s *Store) TicketKey() (ticket.PrivateKey, error) {
	b, err := s.read(ticketKeyFile)
	if errors.Is(err, os.ErrNotExist) {
		return s.makeTicketKey()
	}
	if err != nil {
		return ticket.PrivateKey{}, err
	}
	key, err := ticket.ParsePrivateKey(b)
	if err != nil {
		return ticket.PrivateKey{}, fmt.Errorf("%s: %w", filepath.Join(s.dir, ticketKeyFile), err)
	}
	return key, nil
}

func (s *Store) makeTicketKey() (ticket.PrivateKey, error) {
	key, err := ticket.GenerateKey()
	if err != nil {
		return ticket.PrivateKey{}, err
	}
	b, err := key.Bytes()
	if err != nil {
		return ticket.PrivateKey{}, fmt.Errorf("ticket key: %w", err)
	}
	return key, paths.WriteFile(filepath.Join(s.dir, ticketKeyFile), b, 0o600)
}

// Load returns the membership, or ErrNotJoined.
func (s *Store) Load() (Membership, error) {
	var m Membership
	err := s.readJSON(membershipFile, &m)
	if errors.Is(err, os.ErrNotExist) {
		return Membership{}, ErrNotJoined
	}
	return m, err
}

// Save replaces the membership.
func (s *Store) Save(m Membership) error { return s.writeJSON(membershipFile, m) }

// LoadKeys returns the certificates of the signing keys heard last; none at first.
func (s *Store) LoadKeys() ([][]byte, error) {
	var certs [][]byte
	err := s.readJSON(keysFile, &certs)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return certs, err
}

// SaveKeys replaces them.
func (s *Store) SaveKeys(certs [][]byte) error { return s.writeJSON(keysFile, certs) }

func (s *Store) read(name string) ([]byte, error) {
	f, err := os.Open(filepath.Join(s.dir, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("%s: not a file of a relay", f.Name())
	}
	return b, nil
}

func (s *Store) readJSON(name string, v any) error {
	b, err := s.read(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", filepath.Join(s.dir, name), err)
	}
	return nil
}

func (s *Store) writeJSON(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return paths.WriteFile(filepath.Join(s.dir, name), append(b, '\n'), 0o600)
}
