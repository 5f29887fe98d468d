package controlapi

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/broker/enroll"
	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/identity"
	"github.com/postern-zt/postern/broker/keys"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/session"
	"github.com/postern-zt/postern/proto/chain"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/ids"
)

// maxPublish bounds the apps that one join may name.
const maxPublish = 64

type enrollService struct{ *API }

// Hello answers anybody: it says nothing that the sign-in page does not say.
func (s enrollService) Hello(ctx context.Context, _ *connect.Request[controlv1.HelloRequest]) (*connect.Response[controlv1.HelloResponse], error) {
	return connect.NewResponse(&controlv1.HelloResponse{
		BrokerName: string(s.cfg.CA.Org()), Version: s.cfg.Version, TimeMs: s.cfg.Now().UnixMilli(),
		Issuer: s.cfg.Identity.Issuer(), ClientId: identity.ClientID, Suffixes: s.cfg.Catalog.Current().Suffixes(),
		CaDer: s.cfg.CA.Certificate().Raw, Ready: s.cfg.Ready(ctx),
	}), nil
}

// requested reads a certificate request and checks that it is for the key which the TLS
// handshake has proved: nobody enrols a key for somebody else.
func requested(ctx context.Context, der []byte) (*ecdsa.PublicKey, registry.Identity, error) {
	pub, err := keys.ParseCSR(der)
	if err != nil {
		return nil, registry.Identity{}, err
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, registry.Identity{}, err
	}
	id := registry.Identity{Key: ids.KeyIDOf(spki), SPKI: spki}
	if c := callerOf(ctx); c.cert == nil || c.key != id.Key {
		return nil, registry.Identity{}, unauthenticated("the certificate request is for another key than the connection")
	}
	return pub, id, nil
}

// EnrollDevice admits the device whose key the token is bound to, and signs its user in.
func (s enrollService) EnrollDevice(ctx context.Context, req *connect.Request[controlv1.EnrollDeviceRequest]) (*connect.Response[controlv1.EnrollDeviceResponse], error) {
	m := req.Msg
	pub, id, err := requested(ctx, m.CsrDer)
	if err != nil {
		return nil, err
	}
	who, err := s.cfg.Identity.Verifier().Verify(ctx, m.AccessToken, id.Key)
	if err != nil {
		return nil, err
	}
	now := s.cfg.Now()
	d, err := s.cfg.Registry.EnrolDevice(ctx, registry.Device{
		User: who.User, Name: m.Device.GetName(), OS: m.Device.GetOs(), Identity: id,
		Seen: registry.Seen{Address: callerOf(ctx).addr, Version: m.Device.GetClientVersion()},
	}, now)
	if err != nil {
		return nil, err
	}
	if _, err := s.cfg.Audit.Append(ctx, audit.Event{Kind: chain.Enrolled, User: who.User, Device: d.ID, Details: map[string]string{"what": "device"}}); err != nil {
		return nil, err
	}
	der, err := s.cfg.CA.IssueDevice(pub, d.ID, keys.LeafLifetime)
	if err != nil {
		return nil, err
	}
	if err := s.renewed(der, func(serial string, end time.Time) error { return s.cfg.Registry.RenewDevice(ctx, d.ID, serial, end) }); err != nil {
		return nil, err
	}
	ses, err := s.signIn(ctx, who, d)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&controlv1.EnrollDeviceResponse{DeviceId: string(d.ID), ChainDer: s.chain(der), Session: ses}), nil
}

// chain is a leaf with the CA behind it.
func (a *API) chain(leaf []byte) [][]byte { return [][]byte{leaf, a.cfg.CA.Certificate().Raw} }

// renewed notes serial number and end of a certificate that was just issued.
func (a *API) renewed(der []byte, note func(serial string, end time.Time) error) error {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("issued certificate: %w", err)
	}
	return note(cert.SerialNumber.Text(16), cert.NotAfter)
}

// signIn opens a session for somebody who has just proved who they are. A device acts for
// one person: whoever was signed in on it before, also somebody else, is signed out.
func (a *API) signIn(ctx context.Context, who identity.Identity, d registry.Device) (*controlv1.Session, error) {
	now := a.cfg.Now()
	replaced, err := a.cfg.Sessions.EndDevice(ctx, d.ID, session.CauseReplaced, now)
	if err != nil {
		return nil, err
	}
	for _, id := range replaced {
		a.GrantsEndedBy(a.cfg.Authorize.Revoke(grants.Session(id), grants.CauseSessionEnded, ""))
	}
	ses, _, err := a.cfg.Sessions.Create(ctx, session.Session{
		User: who.User, Device: d.ID, DeviceKey: d.Identity.Key, ACR: who.ACR, AMR: who.AMR, AuthTime: who.AuthTime,
		MaxAge: sessionMaxAge, Source: callerOf(ctx).addr.String(),
	}, now)
	if err != nil {
		return nil, err
	}
	_, err = a.cfg.Audit.Append(ctx, signedIn(ctx, who, ses))
	if err != nil {
		return nil, err
	}
	return a.sessionView(ctx, ses), nil
}

// signedIn is the record of a new session: how the person proved who they are, and from where.
func signedIn(ctx context.Context, who identity.Identity, ses session.Session) audit.Event {
	e := audit.Event{
		Kind: chain.SignedIn, User: who.User, Device: ses.Device, Session: ses.ID,
		Details: map[string]string{"acr": who.ACR, "amr": strings.Join(who.AMR, " ")},
	}
	if at := callerOf(ctx).addr; at.IsValid() {
		e.Personal = map[string]string{"address": at.String()}
	}
	return e
}

func (a *API) sessionView(ctx context.Context, ses session.Session) *controlv1.Session {
	v := &controlv1.Session{Id: string(ses.ID), UserId: string(ses.User)}
	if ses.MaxAge > 0 {
		v.ExpiresMs = ses.Created.Add(ses.MaxAge).UnixMilli()
	}
	if u, err := a.cfg.Directory.User(ctx, ses.User); err == nil {
		v.UserName = u.Login
		if v.UserName == "" {
			v.UserName = u.Mail
		}
	}
	return v
}

// JoinConnector redeems a join token.
func (s enrollService) JoinConnector(ctx context.Context, req *connect.Request[controlv1.JoinConnectorRequest]) (*connect.Response[controlv1.JoinResponse], error) {
	m := req.Msg
	pub, id, err := requested(ctx, m.CsrDer)
	if err != nil {
		return nil, err
	}
	text, err := enroll.ParseText(m.Token)
	if err != nil {
		return nil, err
	}
	if len(m.Publish) > maxPublish {
		return nil, badRequest("at most %d apps may be published at a join", maxPublish)
	}
	c, err := s.cfg.Enroller.JoinConnector(ctx, text, registry.Connector{
		Name: m.Name, Identity: id, Seen: registry.Seen{Address: callerOf(ctx).addr, Version: m.Version},
	}, s.cfg.Now())
	if err != nil {
		return nil, err
	}
	if _, err := s.cfg.Audit.Append(ctx, audit.Event{Kind: chain.Enrolled, Connector: c.ID, Details: map[string]string{"what": "connector", "site": string(c.Site)}}); err != nil {
		return nil, err
	}
	der, err := s.cfg.CA.IssueConnector(pub, c.ID, keys.LeafLifetime)
	if err != nil {
		return nil, err
	}
	if err := s.renewed(der, func(serial string, end time.Time) error {
		return s.cfg.Registry.RenewConnector(ctx, c.ID, serial, end)
	}); err != nil {
		return nil, err
	}
	site, _ := s.cfg.Catalog.Current().Site(c.Site)
	return connect.NewResponse(&controlv1.JoinResponse{
		Id: string(c.ID), SiteId: string(c.Site), SiteName: site.Name, ChainDer: s.chain(der), Published: s.publish(ctx, c, m.Publish),
	}), nil
}

// publish handles the wishes of a connector, each on its own.
func (a *API) publish(ctx context.Context, c registry.Connector, wishes []*controlv1.PublishRequest) []*controlv1.PublishResult {
	var out []*controlv1.PublishResult
	for _, w := range wishes {
		for _, target := range w.GetTargets() {
			out = append(out, a.publishOne(ctx, c, w.GetName(), target))
		}
	}
	return out
}

func (a *API) publishOne(ctx context.Context, c registry.Connector, name, target string) *controlv1.PublishResult {
	target, protocol := splitProtocol(target)
	r := &controlv1.PublishResult{Name: name, State: "refused"}
	outcome, err := a.cfg.Catalog.Publish(ctx, c.ID, c.Site, c.MayPublish, catalog.Wish{Name: name, Protocol: protocol, Target: target}, a.cfg.Now())
	if err != nil {
		r.Message = refusalOf(err).text
		return r
	}
	r.State = string(outcome)
	if app, ok := a.cfg.Catalog.Current().Lookup(name); ok {
		r.AppId = string(app.ID)
	}
	a.cfg.Audit.AppendBestEffort(audit.Event{Kind: chain.Changed, Connector: c.ID, App: ids.AppID(r.AppId), Details: map[string]string{"what": "publish", "app": name, "target": target, "outcome": r.State}})
	return r
}

// JoinRelay redeems a join token for a relay.
func (s enrollService) JoinRelay(ctx context.Context, req *connect.Request[controlv1.JoinRelayRequest]) (*connect.Response[controlv1.JoinResponse], error) {
	m := req.Msg
	pub, id, err := requested(ctx, m.CsrDer)
	if err != nil {
		return nil, err
	}
	text, err := enroll.ParseText(m.Token)
	if err != nil {
		return nil, err
	}
	names, addrs, err := hosts(m.Addresses)
	if err != nil {
		return nil, err
	}
	r, err := s.cfg.Enroller.JoinRelay(ctx, text, registry.Relay{
		Name: m.Name, Identity: id, HPKE: m.HpkePublic, TCP: m.Addresses, UDP: m.Addresses,
		Seen: registry.Seen{Address: callerOf(ctx).addr, Version: m.Version},
	}, s.cfg.Now())
	if err != nil {
		return nil, err
	}
	if _, err := s.cfg.Audit.Append(ctx, audit.Event{Kind: chain.Enrolled, Details: map[string]string{"what": "relay", "relay": string(r.ID)}}); err != nil {
		return nil, err
	}
	der, err := s.cfg.CA.IssueRelay(pub, r.ID, names, addrs, keys.LeafLifetime)
	if err != nil {
		return nil, err
	}
	if err := s.renewed(der, func(serial string, end time.Time) error { return s.cfg.Registry.RenewRelay(ctx, r.ID, serial, end) }); err != nil {
		return nil, err
	}
	return connect.NewResponse(&controlv1.JoinResponse{Id: string(r.ID), ChainDer: s.chain(der)}), nil
}

// hosts splits the addresses of a relay into names and addresses for its certificate.
func hosts(list []string) (names []string, addrs []netip.Addr, err error) {
	for _, a := range list {
		host, _, err := net.SplitHostPort(a)
		if err != nil {
			return nil, nil, badRequest("%q is not host:port", a)
		}
		if ip, err := netip.ParseAddr(host); err == nil {
			addrs = append(addrs, ip)
		} else {
			names = append(names, host)
		}
	}
	return names, addrs, nil
}

// Renew replaces a certificate, also an expired one, while its row is active.
func (s enrollService) Renew(ctx context.Context, req *connect.Request[controlv1.RenewRequest]) (*connect.Response[controlv1.RenewResponse], error) {
	sub, err := s.subject(ctx, "", keys.RenewalGrace)
	if err != nil {
		return nil, err
	}
	pub, _, err := requested(ctx, req.Msg.CsrDer)
	if err != nil {
		return nil, err
	}
	der, err := s.renew(ctx, sub, pub)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&controlv1.RenewResponse{ChainDer: s.chain(der)}), nil
}

func (a *API) renew(ctx context.Context, sub keys.Subject, pub *ecdsa.PublicKey) ([]byte, error) {
	switch sub.Kind {
	case keys.Device:
		return a.renewDevice(ctx, sub, pub)
	case keys.Connector:
		return a.renewConnector(ctx, sub, pub)
	case keys.Relay:
		return a.renewRelay(ctx, sub, pub)
	default:
		return nil, unauthenticated("a %s does not renew here", sub.Kind)
	}
}

func (a *API) renewDevice(ctx context.Context, sub keys.Subject, pub *ecdsa.PublicKey) ([]byte, error) {
	d, err := a.cfg.Registry.DeviceByKey(ctx, sub.Key)
	if err != nil {
		return nil, err
	}
	if err := enroll.MayRenew(d.State, sub.NotAfter, 0, a.cfg.Now()); err != nil {
		return nil, err
	}
	der, err := a.cfg.CA.IssueDevice(pub, d.ID, keys.LeafLifetime)
	if err != nil {
		return nil, err
	}
	return der, a.renewed(der, func(serial string, end time.Time) error { return a.cfg.Registry.RenewDevice(ctx, d.ID, serial, end) })
}

func (a *API) renewConnector(ctx context.Context, sub keys.Subject, pub *ecdsa.PublicKey) ([]byte, error) {
	c, err := a.cfg.Registry.ConnectorByKey(ctx, sub.Key)
	if err != nil {
		return nil, err
	}
	if err := enroll.MayRenew(c.State, sub.NotAfter, 0, a.cfg.Now()); err != nil {
		return nil, err
	}
	der, err := a.cfg.CA.IssueConnector(pub, c.ID, keys.LeafLifetime)
	if err != nil {
		return nil, err
	}
	return der, a.renewed(der, func(serial string, end time.Time) error { return a.cfg.Registry.RenewConnector(ctx, c.ID, serial, end) })
}

func (a *API) renewRelay(ctx context.Context, sub keys.Subject, pub *ecdsa.PublicKey) ([]byte, error) {
	r, err := a.cfg.Registry.RelayByKey(ctx, sub.Key)
	if err != nil {
		return nil, err
	}
	if err := enroll.MayRenew(r.State, sub.NotAfter, 0, a.cfg.Now()); err != nil {
		return nil, err
	}
	names, addrs, err := hosts(r.TCP)
	if err != nil {
		return nil, err
	}
	der, err := a.cfg.CA.IssueRelay(pub, r.ID, names, addrs, keys.LeafLifetime)
	if err != nil {
		return nil, err
	}
	return der, a.renewed(der, func(serial string, end time.Time) error { return a.cfg.Registry.RenewRelay(ctx, r.ID, serial, end) })
}
