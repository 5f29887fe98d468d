package scenario

import (
	"testing"

	"github.com/postern-zt/postern/netstack/carrier"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/frame"
)

// TestBrokerRestart: a broker that comes back on its data directory finds its connector
// and its device again; grants hold, revocations stay, and nothing is forgotten.
func TestBrokerRestart(t *testing.T) {
	wiki, git := echo(t), echo(t)
	w := newWorld(t, "ann")
	s := w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	w.publish("git", "berlin", git.target())
	w.allow("ann", "wiki")
	w.allow("ann", "git")
	d := w.device("ann", "ann-laptop")
	kept, gone := goLive(d, "wiki", carrier.TLS, wiki.port()), d.granted("git")
	w.revoke(gone)
	sequence := s.revoked()
	url := w.broker.URL()
	w.stopBroker()
	w.startBroker()
	if w.broker.URL() != url {
		t.Errorf("the URL was %s and is %s", url, w.broker.URL())
	}
	s.await()
	d.news.await(t, "something after the restart", func(n *news) bool { return n.connected > 1 })
	kept.alive()
	if got := kept.tn.tcpCode(kept.ref, wiki.port()); got != frame.OK {
		t.Errorf("a new flow under a grant from before: %v", got)
	}
	eventually(t, "the connector has heard the new broker", func() bool { return s.revoked() >= sequence })
	if _, err := kept.tn.present(gone.Grant); frame.CodeOf(err) != frame.Revoked {
		t.Errorf("a grant revoked before the restart: %v", err)
	}
	if wiki.hits() != 2 || git.hits() != 0 {
		t.Errorf("hits: wiki %d, git %d", wiki.hits(), git.hits())
	}
	w.revoke(kept.resp)
	kept.died()
	eventually(t, "the revocation is on the connector's disk, which ending the flow does not wait for", func() bool { return s.revoked() > sequence })
	kept.flow.Close()
	s.stop() // what it held in memory is gone: only the broker knows what was revoked
	s.start()
	s.await()
	for _, resp := range []*controlv1.AuthorizeResponse{gone, kept.resp} {
		if _, err := kept.tn.present(resp.Grant); frame.CodeOf(err) != frame.Revoked {
			t.Errorf("a revoked grant after both were restarted: %v", err)
		}
	}
}

// revoked is the highest revocation that the connector has on disk.
func (s *site) revoked() uint64 {
	s.w.t.Helper()
	m, err := s.store.LoadMark()
	if err != nil {
		s.w.t.Fatal(err)
	}
	return m.Revoked
}
