package broker

import (
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/postern-zt/postern/broker/catalog"
)

// TestFingerprintIsOfTheServedLeaf, in the form that browsers show.
func TestFingerprintIsOfTheServedLeaf(t *testing.T) {
	leaf := []byte("leaf")
	b := &Broker{internal: func() (*tls.Certificate, error) {
		return &tls.Certificate{Certificate: [][]byte{leaf, []byte("ca")}}, nil
	}}
	got, err := b.Fingerprint()
	if want := fmt.Sprintf("%X", sha256.Sum256(leaf)); err != nil || strings.ReplaceAll(got, ":", "") != want || strings.Count(got, ":") != 31 {
		t.Errorf("fingerprint = %s, %v, want %s", got, err, want)
	}
	b.cfg.TLSCert = "cert.pem"
	if got, err := b.Fingerprint(); got != "" || err != nil {
		t.Errorf("with a certificate of the operator: %q, %v", got, err)
	}
}

func TestAppNamesAreInTheOrderOfPublishing(t *testing.T) {
	got := appNames([]*catalog.App{{Name: "git", Index: 3}, {Name: "old", Index: 1, Retired: true}, {Name: "wiki", Index: 2}})
	if !slices.Equal(got, []string{"wiki", "git"}) {
		t.Errorf("names = %q", got)
	}
}

func TestPlainLoginsCanBePasted(t *testing.T) {
	for login, want := range map[string]bool{
		"ann": true, "ann.example@corp.example": true, "": false, "@staff": false, "-x": false, "a b": false, "a'b": false, "a\x1b[0m": false, "a;b": false,
	} {
		if plainLogin.MatchString(login) != want {
			t.Errorf("%q: not %v", login, want)
		}
	}
}
