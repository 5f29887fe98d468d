package broker

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-zt/postern/platform/settings"
)

func TestConfigDefaults(t *testing.T) {
	c := DefaultConfig("/var/lib/postern/broker", "")
	c.Listen = "10.0.0.1:8443"
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if c.URL != "https://10.0.0.1:8443" || c.Database != "sqlite:/var/lib/postern/broker/broker.db" || !c.relayOn() {
		t.Errorf("completed to %+v", c)
	}
	if c.hostPort() != "10.0.0.1:8443" || c.host() != "10.0.0.1" {
		t.Errorf("reached at %s", c.hostPort())
	}
}

func TestConfigNamesTheField(t *testing.T) {
	for want, edit := range map[string]func(*Config){
		"data_dir": func(c *Config) { c.DataDir = "" },
		"listen":   func(c *Config) { c.Listen = "8443" },
		"url":      func(c *Config) { c.URL = "http://broker.example" },
		"tls_cert": func(c *Config) { c.TLSCert = "cert.pem" },
	} {
		c := DefaultConfig("/data", "")
		edit(&c)
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), want+":") {
			t.Errorf("%s: Validate = %v", want, err)
		}
	}
	c := DefaultConfig("/data", "")
	err := settings.Load(settings.Source{Role: "broker", Name: "broker.yaml", Data: []byte("listn: :8443\n")}, &c)
	if err == nil || !strings.Contains(err.Error(), "listen") {
		t.Errorf("a misspelt key: %v", err)
	}
}

// writeCert writes a fresh certificate with the given serial number.
func writeCert(t *testing.T, dir string, serial int64) (cert, key string) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, priv.Public(), priv)
	if err != nil {
		t.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, b := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pk}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
		stamp := time.Now().Add(time.Duration(serial) * time.Minute)
		if err := os.Chtimes(path, stamp, stamp); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func TestOperatorCertificateReloads(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	f := &certFile{}
	f.cert, f.key = writeCert(t, dir, 1)
	serial := func(at time.Time) int64 {
		t.Helper()
		c, err := f.get(at)
		if c == nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(c.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return leaf.SerialNumber.Int64()
	}
	if got := serial(now); got != 1 {
		t.Fatalf("serial %d", got)
	}
	writeCert(t, dir, 2)
	if got := serial(now.Add(time.Minute)); got != 2 {
		t.Errorf("after a change: serial %d", got)
	}
	if err := os.WriteFile(f.cert, []byte("half written"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := f.get(now.Add(2 * time.Minute)); err == nil || c == nil {
		t.Errorf("a broken file: %v, %v; want the old certificate and an error", c, err)
	}
}
