package broker

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"time"
)

const (
	minLease = time.Second
	maxLease = time.Hour
)

// Config is the configuration of a broker (/etc/postern/broker.yaml, POSTERN_BROKER_*).
// Everything has a default: a broker runs with nothing configured.
type Config struct {
	// DataDir holds the database, the key-encryption key and backups.
	DataDir string `yaml:"data_dir"`
	// Listen is the address of the one TCP and the one UDP port.
	Listen string `yaml:"listen"`
	// URL is how clients and connectors reach the broker, "https://vpn.example:8443".
	// Empty means the first global address of this machine.
	URL string `yaml:"url"`
	// Database is "sqlite:/path" or "postgres://..."; empty is SQLite in DataDir.
	Database string `yaml:"database"`
	// KEKFile seals the private keys in the database; empty is DataDir/kek. Keep it on
	// another disk, and a stolen database opens nothing.
	KEKFile string `yaml:"kek_file"`
	// TLSCert and TLSKey are the operator's certificate for browsers, read again when the
	// files change; empty is one of the broker's own CA.
	TLSCert string `yaml:"tls_cert"`
	TLSKey  string `yaml:"tls_key"`
	// AdminSocket is the local socket for `postern admin`; empty is RUNTIME/broker.sock.
	AdminSocket string `yaml:"admin_socket"`
	// Health is the local address of /readyz and /metrics; "off" serves none.
	Health string `yaml:"health"`
	// Relay turns the relay inside the broker off when false; then relays of their own
	// process must serve.
	Relay *bool `yaml:"relay"`
	// Lease is how long grants hold at a connector that hears nothing of the broker; it
	// hears four times as often. Empty is one minute. Shorter ends access sooner when a
	// connector is cut off, and lets shorter disturbances be felt.
	Lease time.Duration `yaml:"lease"`
	// LogLevel is debug, info, warn or error.
	LogLevel string `yaml:"log_level"`
}

// DefaultConfig returns the configuration of a broker that was told nothing.
func DefaultConfig(dataDir, socket string) Config {
	return Config{DataDir: dataDir, Listen: ":8443", AdminSocket: socket, Health: "127.0.0.1:9443", LogLevel: "info"}
}

// Validate completes the configuration and names the first field that cannot be used.
func (c *Config) Validate() error {
	if c.DataDir == "" {
		return errors.New("data_dir: a directory is needed")
	}
	if _, err := netip.ParseAddrPort(normalListen(c.Listen)); err != nil {
		return fmt.Errorf("listen: %q is not ADDRESS:PORT, :PORT or [ADDRESS]:PORT", c.Listen)
	}
	if c.KEKFile == "" {
		c.KEKFile = filepath.Join(c.DataDir, "kek")
	}
	if c.Database == "" {
		c.Database = "sqlite:" + filepath.Join(c.DataDir, "broker.db")
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return errors.New("tls_cert: tls_cert and tls_key belong together")
	}
	if c.Lease != 0 && (c.Lease < minLease || c.Lease > maxLease) {
		return fmt.Errorf("lease: %s is not between %s and %s", c.Lease, minLease, maxLease)
	}
	return c.validateURL()
}

func (c *Config) validateURL() error {
	if c.URL == "" {
		c.URL = "https://" + net.JoinHostPort(listenHost(c.Listen), port(c.Listen))
	}
	u, err := url.Parse(strings.TrimSuffix(c.URL, "/"))
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return fmt.Errorf("url: %q is not https://HOST:PORT", c.URL)
	}
	c.URL = u.String()
	return nil
}

func normalListen(s string) string {
	if strings.HasPrefix(s, ":") {
		return "[::]" + s
	}
	return s
}

func port(listen string) string {
	_, p, err := net.SplitHostPort(listen)
	if err != nil {
		return "8443"
	}
	return p
}

// listenHost is the address that is listened on, or the machine's first one for all.
func listenHost(listen string) string {
	host, _, err := net.SplitHostPort(listen)
	if addr, perr := netip.ParseAddr(host); err == nil && perr == nil && !addr.IsUnspecified() {
		return host
	}
	return defaultHost()
}

// host is the name or address in the URL, hostPort with its port.
func (c *Config) host() string {
	u, _ := url.Parse(c.URL)
	return u.Hostname()
}

func (c *Config) hostPort() string {
	u, _ := url.Parse(c.URL)
	if u.Port() == "" {
		return net.JoinHostPort(u.Hostname(), "443")
	}
	return u.Host
}

func (c *Config) relayOn() bool { return c.Relay == nil || *c.Relay }

// defaultHost is the first global address of this machine, else loopback.
func defaultHost() string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "127.0.0.1"
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && n.IP.To4() != nil {
			return n.IP.String()
		}
	}
	return "127.0.0.1"
}
