package scenario

import (
	"sync"
	"testing"

	"connectrpc.com/connect"
)

// TestADeviceThatFloods: the same question many times at once gives one grant, and who
// goes on asking is refused in clear words while others are not.
func TestADeviceThatFloods(t *testing.T) {
	const parallel, tooMany = 40, 400
	wiki := echo(t)
	w := newWorld(t, "ann", "bob")
	w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	w.allow("ann", "wiki")
	w.allow("bob", "wiki")
	ann, bob := w.device("ann", "ann-laptop"), w.device("bob", "bob-laptop")

	var mu sync.Mutex // guards grants
	grants := map[string]int{}
	var all sync.WaitGroup
	for range parallel {
		all.Go(func() {
			resp, err := ann.authorize("wiki")
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
				return
			}
			grants[resp.GrantId]++
		})
	}
	all.Wait()
	if len(grants) != 1 || grants[""] != 0 {
		t.Errorf("%d questions at once gave these grants: %v", parallel, grants)
	}

	var refused error
	for range tooMany / parallel {
		for range parallel {
			all.Go(func() {
				if _, err := ann.authorize("wiki"); err != nil {
					mu.Lock()
					defer mu.Unlock()
					refused = err
				}
			})
		}
		all.Wait()
	}
	if connect.CodeOf(refused) != connect.CodeResourceExhausted {
		t.Errorf("%d questions without a pause ended with %v", tooMany, refused)
	}
	bob.granted("wiki")
}
