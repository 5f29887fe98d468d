package scenario

import (
	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker/keys"
	"github.com/postern-zt/postern/broker/store"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
)

// signer takes the broker's signing key, as only somebody with its database and its
// key-encryption key could.
func (w *world) signer() *seal.Signer {
	w.t.Helper()
	kek, _, err := keys.LoadOrCreateKEK(w.cfg.DataDir + "/kek")
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := store.Open(w.ctx(), store.Config{DSN: "sqlite:" + w.cfg.DataDir + "/broker.db", Version: version, Log: w.log})
	if err != nil {
		w.t.Fatal(err)
	}
	defer s.Close()
	id, err := s.MetaOnce(w.ctx(), "broker", "")
	if err != nil {
		w.t.Fatal(err)
	}
	org, err := s.MetaOnce(w.ctx(), "org", "")
	if err != nil {
		w.t.Fatal(err)
	}
	ring, err := keys.New(keys.Config{Store: s, KEK: kek, Broker: ids.BrokerID(id), Org: ids.OrgID(org)})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := ring.Load(w.ctx()); err != nil {
		w.t.Fatal(err)
	}
	key, err := ring.Newest(keys.SigningKey)
	if err != nil {
		w.t.Fatal(err)
	}
	signer, err := key.Seal()
	if err != nil {
		w.t.Fatal(err)
	}
	return signer
}

// forge returns a copy of a real grant with changes, under an id of its own, with the
// broker's signature.
func (w *world) forge(resp *controlv1.AuthorizeResponse, change func(g *grant.Grant)) []byte {
	w.t.Helper()
	s := w.signer()
	g, err := grant.Open(seal.NewKeys(s.Public()), resp.Grant)
	if err != nil {
		w.t.Fatal(err)
	}
	g.ID = ids.New[ids.GrantID]()
	change(g)
	return grant.Seal(s, g)
}

func (w *world) appID(name string) ids.AppID {
	w.t.Helper()
	resp, err := w.admin.apps.GetApp(w.ctx(), connect.NewRequest(&adminv1.AppRef{App: name}))
	return ids.AppID(must(w.t, resp, err).Id)
}
