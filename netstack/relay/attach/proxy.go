package attach

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/net/http/httpproxy"
)

// maxProxyAnswer bounds the header block of a proxy's answer.
const maxProxyAnswer = 16 << 10

// ProxyError is a proxy's refusal of CONNECT.
type ProxyError struct{ Status int }

// Error names the status; the proxy's text is not repeated.
func (e *ProxyError) Error() string {
	return fmt.Sprintf("proxy refused the connection: status %d %s", e.Status, http.StatusText(e.Status))
}

// ProxyDialer opens TCP connections through the HTTP proxy that the configuration names
// for the address, directly where it names none. A password in the proxy's URL is sent
// to the proxy and appears nowhere else.
type ProxyDialer struct {
	choose func(*url.URL) (*url.URL, error)
	dialer Dialer
	tls    *tls.Config
}

// NewProxyDialer returns a dialer for cfg (httpproxy.FromEnvironment for HTTPS_PROXY and
// NO_PROXY). dialer opens the connection to the proxy (nil: a plain one), proxyTLS
// verifies an https proxy (nil: the system's roots).
func NewProxyDialer(cfg *httpproxy.Config, dialer Dialer, proxyTLS *tls.Config) *ProxyDialer {
	if dialer == nil {
		dialer = &net.Dialer{}
	}
	if proxyTLS == nil {
		proxyTLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	return &ProxyDialer{choose: cfg.ProxyFunc(), dialer: dialer, tls: proxyTLS}
}

// DialContext connects to address, host:port.
func (d *ProxyDialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	proxy, err := d.choose(&url.URL{Scheme: "https", Host: address})
	if err != nil {
		return nil, errors.New("proxy setting is not a valid URL") // the cause may quote a password
	}
	if proxy == nil {
		return d.dialer.DialContext(ctx, network, address)
	}
	conn, err := d.dialProxy(ctx, proxy)
	if err != nil {
		return nil, fmt.Errorf("connect to proxy %s: %w", proxy.Host, err)
	}
	if err := connect(ctx, conn, proxy.User, address); err != nil {
		_ = conn.Close() // the refusal is the error to report
		return nil, fmt.Errorf("proxy %s: %w", proxy.Host, err)
	}
	return conn, nil
}

func (d *ProxyDialer) dialProxy(ctx context.Context, proxy *url.URL) (net.Conn, error) {
	port := proxy.Port()
	switch {
	case proxy.Scheme != "http" && proxy.Scheme != "https":
		return nil, fmt.Errorf("scheme %q is not supported", proxy.Scheme)
	case port == "" && proxy.Scheme == "https":
		port = "443"
	case port == "":
		port = "80"
	}
	conn, err := d.dialer.DialContext(ctx, "tcp", net.JoinHostPort(proxy.Hostname(), port))
	if err != nil || proxy.Scheme == "http" {
		return conn, err
	}
	c := d.tls.Clone()
	c.ServerName = proxy.Hostname()
	tc := tls.Client(conn, c)
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return tc, nil
}

// connect speaks CONNECT and reads exactly the header block of the answer.
func connect(ctx context.Context, conn net.Conn, user *url.Userinfo, address string) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := conn.Write(connectRequest(user, address)); err != nil {
		return err
	}
	head, err := readHead(conn)
	if err != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(head)), &http.Request{Method: http.MethodConnect})
	if err != nil {
		return errors.New("answer to CONNECT is not HTTP")
	}
	_ = resp.Body.Close() // an answer to CONNECT has none
	if resp.StatusCode != http.StatusOK {
		return &ProxyError{Status: resp.StatusCode}
	}
	return nil
}

func connectRequest(user *url.Userinfo, address string) []byte {
	req := fmt.Appendf(nil, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n", address, address)
	if user != nil {
		password, _ := user.Password()
		auth := base64.StdEncoding.EncodeToString([]byte(user.Username() + ":" + password))
		req = fmt.Appendf(req, "Proxy-Authorization: Basic %s\r\n", auth)
	}
	return append(req, "\r\n"...)
}

// readHead reads byte by byte: what follows the empty line belongs to the tunnel.
func readHead(r io.Reader) ([]byte, error) {
	var head []byte
	var b [1]byte
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		if len(head) >= maxProxyAnswer {
			return nil, errors.New("answer to CONNECT is too long")
		}
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return nil, err
		}
		head = append(head, b[0])
	}
	return head, nil
}
