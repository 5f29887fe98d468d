package scenario

import (
	"fmt"
	"sync"
	"testing"
)

const (
	// manyUsers sign in, each with one device and one link; sign-in hashes a password, so
	// they are few and have many flows.
	manyUsers = 10
	// flowsEach are open at the same time on every link.
	flowsEach = 10
)

// TestManyAtOnce: people who come at the same time all get through, each flow with its own
// bytes, and the records add up.
func TestManyAtOnce(t *testing.T) {
	wiki := echo(t)
	var users []string
	for i := range manyUsers {
		users = append(users, fmt.Sprintf("user%d", i))
	}
	w := newWorld(t, users...)
	w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	var devices []*device
	for _, u := range users {
		w.allow(u, "wiki")
		devices = append(devices, w.device(u, u+"-laptop"))
	}
	var all sync.WaitGroup
	for i, d := range devices {
		resp := d.granted("wiki")
		tn := d.link(resp.Connectors[0], bothCarriers[i%2])
		all.Go(func() { manyFlows(tn, resp.Grant, wiki) })
	}
	all.Wait()
	if wiki.hits() != manyUsers*flowsEach {
		t.Errorf("the app saw %d connections, want %d", wiki.hits(), manyUsers*flowsEach)
	}
}

// manyFlows uses flowsEach flows of one link at the same time.
func manyFlows(tn *tunnel, envelope []byte, wiki *app) {
	t := tn.d.w.t
	ref, err := tn.present(envelope)
	if err != nil {
		t.Errorf("present: %v", err)
		return
	}
	var all sync.WaitGroup
	for i := range flowsEach {
		all.Go(func() {
			f, err := tn.client.OpenTCP(tn.d.w.t.Context(), ref, wiki.port())
			if err != nil {
				t.Errorf("%s flow %d: %v", tn.d.name, i, err)
				return
			}
			if err := roundTrip(f, 100_000+i); err != nil {
				t.Errorf("%s flow %d: %v", tn.d.name, i, err)
			}
		})
	}
	all.Wait()
}
