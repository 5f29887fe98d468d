package control_test

import (
	"crypto/tls"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/control/controltest"
)

// TestBusyConnectionIsNotUsedAfterARenewal: a request that is under way keeps its
// connection; later ones prove the new certificate on a new one.
func TestBusyConnectionIsNotUsedAfterARenewal(t *testing.T) {
	a, key := controltest.New(t), controltest.Key(t)
	began, finish := make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	from := map[string]string{} // path -> the caller's address
	at := a.Broker(a.Serve("", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		from[r.URL.Path] = r.RemoteAddr
		mu.Unlock()
		if r.URL.Path == "/long" {
			close(began)
			<-finish
		}
	})).Addr)
	hc := control.NewClient(control.ClientConfig{Broker: at, Certificate: func() (*tls.Certificate, error) {
		return control.SelfSigned(key, time.Now())
	}})
	defer hc.CloseIdleConnections()
	get := func(path string) {
		resp, err := hc.Get(at.BaseURL() + path)
		if err != nil {
			t.Error(err)
			return
		}
		_ = resp.Body.Close()
	}
	var long sync.WaitGroup
	long.Go(func() { get("/long") })
	<-began
	get("/before")
	hc.CloseIdleConnections()
	get("/after")
	close(finish)
	long.Wait()
	mu.Lock()
	defer mu.Unlock()
	if from["/before"] != from["/long"] {
		t.Error("a second request did not share the connection")
	}
	if from["/after"] == from["/long"] {
		t.Error("a connection of before the renewal was used again")
	}
}
