package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/postern-zt/postern/netstack/control"
)

const (
	discoveryPath = "/.well-known/openid-configuration"
	maxDocument   = 64 << 10
	dialTimeout   = 10 * time.Second
)

// document is the part of the discovery document that a sign-in needs.
type document struct {
	Issuer        string `json:"issuer"`
	Authorization string `json:"authorization_endpoint"`
	Token         string `json:"token_endpoint"`
	Device        string `json:"device_authorization_endpoint"`
}

// check refuses a document that leads elsewhere.
func (d document) check(issuer string) error {
	if d.Issuer != issuer {
		return fmt.Errorf("%w: it names another issuer", ErrProvider)
	}
	for _, e := range []string{d.Authorization, d.Token, d.Device} {
		if !strings.HasPrefix(e, issuer+"/") {
			return fmt.Errorf("%w: an endpoint lies outside of the broker", ErrProvider)
		}
	}
	return nil
}

// provider is the broker's sign-in service, reached over pinned connections.
type provider struct {
	cfg       Config
	doc       document
	transport *http.Transport
	// trusted says that the broker showed a certificate which browsers accept.
	trusted atomic.Bool
}

func discover(ctx context.Context, cfg Config) (*provider, error) {
	u, err := url.Parse(cfg.Issuer)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%w: its address is %.100q", ErrProvider, cfg.Issuer)
	}
	if cfg.Dialer == nil {
		cfg.Dialer = &net.Dialer{}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	p := &provider{cfg: cfg}
	p.transport = &http.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return p.dial(ctx, u.Hostname()) },
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return nil, fmt.Errorf("%w: a plain connection", ErrProvider)
		},
		MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute, ResponseHeaderTimeout: requestTimeout,
	}
	if p.doc, err = p.fetch(ctx); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *provider) close() { p.transport.CloseIdleConnections() }

func (p *provider) fetch(ctx context.Context) (document, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.cfg.Issuer+discoveryPath, nil)
	if err != nil {
		return document{}, err
	}
	resp, err := p.transport.RoundTrip(req)
	if err != nil {
		return document{}, fmt.Errorf("reach the broker's sign-in service: %w", err)
	}
	defer resp.Body.Close()
	var d document
	if resp.StatusCode != http.StatusOK {
		return document{}, fmt.Errorf("%w: status %d", ErrProvider, resp.StatusCode)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxDocument)).Decode(&d); err != nil {
		return document{}, fmt.Errorf("%w: %w", ErrProvider, err)
	}
	return d, d.check(p.cfg.Issuer)
}

// dial always ends at the broker's own address, whatever the request names.
func (p *provider) dial(ctx context.Context, host string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := p.cfg.Dialer.DialContext(ctx, "tcp", p.cfg.Broker.Address)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, p.tls(host))
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// tls accepts the pinned CA, or an operator's certificate for the broker's name that this
// system trusts: that is what the browser would accept as well, and the tokens are worth
// nothing to anybody without the device key.
func (p *provider) tls(host string) *tls.Config {
	c := &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"},
		InsecureSkipVerify: true, // VerifyConnection does the whole verification
		VerifyConnection: func(cs tls.ConnectionState) error {
			now := p.cfg.Now()
			err := control.VerifyServer(cs, p.cfg.Broker.Pin, control.KindBroker, "", now)
			if err == nil || errors.Is(err, control.ErrClock) {
				return err
			}
			if publicly(cs, host, now) != nil {
				return err
			}
			p.trusted.Store(true)
			return nil
		},
	}
	if _, err := netip.ParseAddr(host); err != nil {
		c.ServerName = host
	}
	return c
}

// publicly verifies a chain as a browser does.
func publicly(cs tls.ConnectionState, host string, now time.Time) error {
	if len(cs.PeerCertificates) == 0 {
		return ErrProvider
	}
	between := x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{
		DNSName: host, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return err
}
