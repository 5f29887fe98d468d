package relaynode

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/netstack/control"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/control/v1/controlv1connect"
	"github.com/postern-zt/postern/proto/ids"
)

const (
	// joinTimeout bounds the whole join; a broker answers in milliseconds.
	joinTimeout = 30 * time.Second
	// maxAddresses bounds how many addresses clients are told of one relay.
	maxAddresses = 8
)

// Join describes one join. The token is used once and not stored.
type Join struct {
	URL   string
	Token string
	Name  string
	// Addresses are host:port under which clients and connectors reach this relay.
	Addresses []string
	Version   string
	Dialer    control.Dialer
}

// String leaves the token out.
func (j Join) String() string { return "join of " + j.Name }

// GoString leaves the token out.
func (j Join) GoString() string { return j.String() }

// CheckAddresses names the first address that clients could not use.
func CheckAddresses(list []string) error {
	if len(list) == 0 || len(list) > maxAddresses {
		return fmt.Errorf("a relay needs one to %d addresses, host:port, under which clients and connectors reach it", maxAddresses)
	}
	for _, a := range list {
		host, port, err := net.SplitHostPort(a)
		p, perr := strconv.ParseUint(port, 10, 16)
		if err != nil || perr != nil || p == 0 || host == "" || net.ParseIP(host).IsUnspecified() {
			return fmt.Errorf("address %q: want host:port that others reach, such as relay.example:8444", a)
		}
	}
	return nil
}

// Join redeems a token and stores the membership.
func (s *Store) Join(ctx context.Context, j Join) (Membership, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	if err := CheckAddresses(j.Addresses); err != nil {
		return Membership{}, err
	}
	broker, err := control.ParseURL(j.URL)
	if err != nil {
		return Membership{}, err
	}
	member, err := control.NewMember(s.key, nil, nil)
	if err != nil {
		return Membership{}, err
	}
	hc := control.NewClient(control.ClientConfig{Broker: broker, Certificate: member.Certificate, Dialer: j.Dialer})
	defer hc.CloseIdleConnections()
	m, err := s.redeem(ctx, controlv1connect.NewEnrollServiceClient(hc, broker.BaseURL()), broker, member, j)
	if err != nil {
		return Membership{}, err
	}
	return m, s.Save(m)
}

func (s *Store) redeem(ctx context.Context, client controlv1connect.EnrollServiceClient, broker control.Broker, member *control.Member, j Join) (Membership, error) {
	hello, err := client.Hello(ctx, connect.NewRequest(&controlv1.HelloRequest{Role: "relay", Version: j.Version}))
	if err != nil {
		return Membership{}, err
	}
	if _, err := control.ParseCA(hello.Msg.CaDer, broker.Pin); err != nil {
		return Membership{}, err
	}
	key, err := s.TicketKey()
	if err != nil {
		return Membership{}, err
	}
	csr, err := member.Request()
	if err != nil {
		return Membership{}, err
	}
	resp, err := client.JoinRelay(ctx, connect.NewRequest(&controlv1.JoinRelayRequest{
		Token: j.Token, CsrDer: csr, Name: j.Name, Version: j.Version, HpkePublic: key.Public().Bytes(), Addresses: j.Addresses,
	}))
	if err != nil {
		return Membership{}, err
	}
	id, err := ids.Parse[ids.RelayID](resp.Msg.Id)
	if err != nil {
		return Membership{}, fmt.Errorf("answer of the broker: %w", err)
	}
	if err := member.SetChain(resp.Msg.ChainDer); err != nil {
		return Membership{}, fmt.Errorf("answer of the broker: %w", err)
	}
	return Membership{
		URL: broker.String(), Relay: id, Addresses: j.Addresses, Chain: resp.Msg.ChainDer, CA: hello.Msg.CaDer,
	}, nil
}

// errAddresses says that what was asked for differs from what the broker tells people.
var errAddresses = errors.New("this relay joined with other addresses; remove it at the broker and join anew with an empty data directory")

// Same checks that a repeated join means the broker and the addresses that this relay has.
// Empty values ask for nothing.
func (m Membership) Same(url string, addresses []string) error {
	if url != "" {
		want, err := control.ParseURL(url)
		if err != nil {
			return err
		}
		have, err := m.Broker()
		if err != nil {
			return err
		}
		if want.Pin != have.Pin {
			return fmt.Errorf("%w (%s); give another --data-dir", ErrOtherBroker, have.Address)
		}
	}
	if len(addresses) > 0 && !slices.Equal(addresses, m.Addresses) {
		return fmt.Errorf("%w (it has %v)", errAddresses, m.Addresses)
	}
	return nil
}
