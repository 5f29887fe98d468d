// Package enroll is the connector's membership at one broker: joining with a token,
// keeping what the join gave in the state directory, and leaving. The identity key is
// made here and never leaves; the token is used once and never stored.
//
//	STATE/identity.key   the identity key (platform/keystore)
//	STATE/broker.json    Membership
//	STATE/mark.json      what the guard has applied (connector/guard.Mark)
//	STATE/audit.json     what is remembered of the broker's audit (proto/chain.Memory)
//	STATE/flows          its flow records (connector/flowlog); after a leave STATE/flows-ID
//
// A Store is used by one process at a time, which the state directory's lock ensures.
package enroll

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/connector/flowlog"
	"github.com/postern-zt/postern/connector/guard"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/platform/keystore"
	"github.com/postern-zt/postern/platform/paths"
	"github.com/postern-zt/postern/proto/chain"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/control/v1/controlv1connect"
	"github.com/postern-zt/postern/proto/ids"
)

// ErrNotJoined says that the state directory holds no membership yet.
var ErrNotJoined = errors.New("this connector has not joined a broker")

// ErrOtherBroker says that the state directory belongs to another broker.
var ErrOtherBroker = errors.New("this connector belongs to another broker")

const (
	membershipFile = "broker.json"
	markFile       = "mark.json"
	auditFile      = "audit.json"
	flowsDir       = "flows"
	maxFile        = 1 << 20
)

// Membership is what the broker gave at the join.
type Membership struct {
	// URL is the broker's URL with its pin.
	URL       string          `json:"url"`
	Connector ids.ConnectorID `json:"connector"`
	Site      ids.SiteID      `json:"site"`
	SiteName  string          `json:"site_name"`
	Chain     [][]byte        `json:"chain"`
	CA        []byte          `json:"ca"`
}

// Broker returns the parsed URL.
func (m Membership) Broker() (control.Broker, error) { return control.ParseURL(m.URL) }

// Store keeps a membership in a directory.
type Store struct {
	dir string
	key keystore.Key
}

// Joined reports whether dir holds a membership; it makes nothing.
func Joined(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, membershipFile))
	return err == nil
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

// Key is the connector's identity key.
func (s *Store) Key() keystore.Key { return s.key }

// Dir is the state directory.
func (s *Store) Dir() string { return s.dir }

// Flows is the directory of the flow records.
func (s *Store) Flows() string { return filepath.Join(s.dir, flowsDir) }

// Load returns the membership, or ErrNotJoined.
func (s *Store) Load() (Membership, error) {
	var m Membership
	err := s.read(membershipFile, &m)
	if errors.Is(err, os.ErrNotExist) {
		return Membership{}, ErrNotJoined
	}
	return m, err
}

// Save replaces the membership.
func (s *Store) Save(m Membership) error { return s.write(membershipFile, m) }

// LoadMark returns what the guard had applied; nothing before the first statement.
func (s *Store) LoadMark() (guard.Mark, error) {
	var m guard.Mark
	err := s.read(markFile, &m)
	if errors.Is(err, os.ErrNotExist) {
		return guard.Mark{}, nil
	}
	return m, err
}

// SaveMark makes the mark durable.
func (s *Store) SaveMark(m guard.Mark) error { return s.write(markFile, m) }

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

// Forget removes the membership and the identity key and sets the flow records aside: the
// next join is a new connector.
func (s *Store) Forget() error {
	var errs []error
	for _, f := range []string{membershipFile, markFile, auditFile} {
		if err := os.Remove(filepath.Join(s.dir, f)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, flowlog.SetAside(s.Flows()), keystore.Remove(s.dir))...)
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

// Join describes one join.
type Join struct {
	URL     string
	Token   string
	Name    string
	Version string
	Publish []*controlv1.PublishRequest
	Dialer  control.Dialer
}

// String leaves the token out.
func (j Join) String() string { return "join of " + j.Name }

// GoString leaves the token out.
func (j Join) GoString() string { return j.String() }

// Join redeems a token and stores the membership. It returns what became of the apps that
// were to be published.
func (s *Store) Join(ctx context.Context, j Join) (Membership, []*controlv1.PublishResult, error) {
	broker, err := control.ParseURL(j.URL)
	if err != nil {
		return Membership{}, nil, err
	}
	if err := s.ready(); err != nil {
		return Membership{}, nil, err
	}
	member, err := control.NewMember(s.key, nil, nil)
	if err != nil {
		return Membership{}, nil, err
	}
	hc := control.NewClient(control.ClientConfig{Broker: broker, Certificate: member.Certificate, Dialer: j.Dialer})
	defer hc.CloseIdleConnections()
	client := controlv1connect.NewEnrollServiceClient(hc, broker.BaseURL())
	ca, err := fetchCA(ctx, client, broker, j.Version)
	if err != nil {
		return Membership{}, nil, err
	}
	csr, err := member.Request()
	if err != nil {
		return Membership{}, nil, err
	}
	resp, err := client.JoinConnector(ctx, connect.NewRequest(&controlv1.JoinConnectorRequest{
		Token: j.Token, CsrDer: csr, Name: j.Name, Version: j.Version, Publish: j.Publish,
	}))
	if err != nil {
		return Membership{}, nil, err
	}
	if err := member.SetChain(resp.Msg.ChainDer); err != nil {
		return Membership{}, nil, fmt.Errorf("answer of the broker: %w", err)
	}
	m, err := membership(broker, ca, resp.Msg)
	if err != nil {
		return Membership{}, nil, err
	}
	return m, resp.Msg.Published, s.Save(m)
}

// ready finds out what would fail after the join, before the token is spent on it. Flow
// records of a membership that has gone are set aside.
func (s *Store) ready() error {
	if _, err := s.LoadMark(); err != nil {
		return err
	}
	if Joined(s.dir) {
		return nil
	}
	return flowlog.SetAside(s.Flows())
}

func fetchCA(ctx context.Context, client controlv1connect.EnrollServiceClient, broker control.Broker, version string) ([]byte, error) {
	hello, err := client.Hello(ctx, connect.NewRequest(&controlv1.HelloRequest{Role: "connector", Version: version}))
	if err != nil {
		return nil, err
	}
	if _, err := control.ParseCA(hello.Msg.CaDer, broker.Pin); err != nil {
		return nil, err
	}
	return hello.Msg.CaDer, nil
}

func membership(broker control.Broker, ca []byte, resp *controlv1.JoinResponse) (Membership, error) {
	id, err := ids.Parse[ids.ConnectorID](resp.Id)
	if err != nil {
		return Membership{}, fmt.Errorf("answer of the broker: %w", err)
	}
	site, err := ids.Parse[ids.SiteID](resp.SiteId)
	if err != nil {
		return Membership{}, fmt.Errorf("answer of the broker: %w", err)
	}
	return Membership{
		URL: broker.String(), Connector: id, Site: site, SiteName: resp.SiteName, Chain: resp.ChainDer, CA: ca,
	}, nil
}

// Renew asks the broker for a new certificate by proof of possession.
func Renew(hc *http.Client, broker control.Broker) func(ctx context.Context, csr []byte) ([][]byte, error) {
	client := controlv1connect.NewEnrollServiceClient(hc, broker.BaseURL())
	return func(ctx context.Context, csr []byte) ([][]byte, error) {
		resp, err := client.Renew(ctx, connect.NewRequest(&controlv1.RenewRequest{CsrDer: csr}))
		if err != nil {
			return nil, err
		}
		return resp.Msg.ChainDer, nil
	}
}
