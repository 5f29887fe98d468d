package broker

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"
)

// certCheckEvery is how often the files of the operator's certificate are looked at.
const certCheckEvery = 5 * time.Second

// publicCert returns the source of the operator's certificate, or nil for none. The files
// are read again when one of them changed; a pair that cannot be read leaves the old one.
func (b *Broker) publicCert() func() (*tls.Certificate, error) {
	if b.cfg.TLSCert == "" {
		return nil
	}
	f := &certFile{cert: b.cfg.TLSCert, key: b.cfg.TLSKey}
	return func() (*tls.Certificate, error) {
		c, err := f.get(time.Now())
		if err != nil {
			b.log.Warn("certificate of the operator not readable", "error", err)
		}
		if c == nil {
			return nil, err
		}
		return c, nil
	}
}

// certFile keeps a certificate in step with its files.
type certFile struct {
	cert, key string

	mu      sync.Mutex // guards all below
	loaded  *tls.Certificate
	stamp   [2]time.Time
	checked time.Time
}

// get returns the newest good certificate, and an error when a newer one is bad.
func (f *certFile) get(now time.Time) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.loaded != nil && now.Sub(f.checked) < certCheckEvery {
		return f.loaded, nil
	}
	f.checked = now
	stamp, err := f.modified()
	if err != nil || f.loaded != nil && stamp == f.stamp {
		return f.loaded, err
	}
	c, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return f.loaded, fmt.Errorf("tls_cert: %w", err)
	}
	f.loaded, f.stamp = &c, stamp
	return f.loaded, nil
}

func (f *certFile) modified() (stamp [2]time.Time, err error) {
	for i, path := range []string{f.cert, f.key} {
		st, err := os.Stat(path)
		if err != nil {
			return stamp, fmt.Errorf("tls_cert: %w", err)
		}
		stamp[i] = st.ModTime()
	}
	return stamp, nil
}
