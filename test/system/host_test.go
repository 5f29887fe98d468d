//go:build linux

package system

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/test/netns"
)

// stranger is another user of ann's machine.
const stranger = 65533

// hostState is all that a daemon could leave behind.
const hostState = `ip addr; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; nft list ruleset; cat /etc/resolv.conf`

// TestDaemonLeavesTheHostAsItWas stops the daemon in each way there is. Each part starts its
// own, so that it can run alone.
func TestDaemonLeavesTheHostAsItWas(t *testing.T) {
	o := newOffice(t, wikiAddr, filesAddr, dbAddr, dnsAddr)
	serveWiki(t, o.site, wikiAddr+":80")
	o.open()
	ann := o.laptop.as(nobody)
	before := o.settledState()

	daemon := o.startDaemon()
	up := ann.start("postern up '"+o.url+"'", "")
	o.signIn(up)
	up.finish()
	o.usesWiki(ann)
	if during := o.laptop.must(hostState); during == before {
		t.Error("the state of the host does not show the tunnel: the test sees nothing")
	}

	daemon.stop()

	t.Run("another user is refused", func(t *testing.T) {
		daemon := o.startDaemon()
		o.usesWiki(ann)
		o.laptop.as(stranger).on(t).exits(curlRefused, "curl -sS "+page("wiki"))
		o.usesWiki(ann)
		daemon.stop()
	})
	t.Run("stopped", func(t *testing.T) {
		daemon := o.startDaemon()
		o.usesWiki(ann)
		daemon.stop()
		o.sameAs(t, before)
	})
	t.Run("killed and cleaned up", func(t *testing.T) {
		o.kill(o.startDaemon(), ann)
		o.laptop.on(t).must("posternd cleanup")
		o.sameAs(t, before)
	})
	t.Run("killed and started again", func(t *testing.T) {
		o.kill(o.startDaemon(), ann)
		again := o.startDaemon()
		o.usesWiki(ann)
		again.stop()
		o.sameAs(t, before)
	})
	t.Run("killed and started again without the broker", func(t *testing.T) {
		o.kill(o.startDaemon(), ann)
		o.broker.NFT("table inet away { chain in { type filter hook input priority 0; iifname != lo drop; }; }")
		again := o.startDaemon()
		netns.Wait(t, patience, "the host is as it was though nothing can be set up", func() bool {
			return o.laptop.on(t).must(hostState) == before
		})
		o.broker.NFT("delete table inet away")
		o.usesWiki(ann)
		again.stop()
		o.sameAs(t, before)
	})
	t.Run("down", func(t *testing.T) {
		daemon := o.startDaemon()
		o.usesWiki(ann)
		ann.on(t).must("postern down")
		o.sameAs(t, before)
		ann.on(t).must("postern up")
		o.usesWiki(ann)
		ann.on(t).must("postern logout")
		o.sameAs(t, before)
		daemon.stop()
		o.sameAs(t, before)
	})
}

// settledState is the state of the laptop once its IPv6 addresses have passed the check
// for duplicates, which the kernel makes in its own time.
func (o *office) settledState() (state string) {
	o.t.Helper()
	netns.Wait(o.t, patience, "the laptop's addresses are settled", func() bool {
		state = o.laptop.must(hostState)
		return !strings.Contains(state, "tentative")
	})
	return state
}

// startDaemon starts posternd and waits until it answers.
func (o *office) startDaemon() *program {
	o.t.Helper()
	p := o.laptop.start("posternd run", "")
	netns.Wait(o.t, patience, "the daemon answers", func() bool {
		_, err := o.laptop.run("postern status --json")
		return err == nil && o.laptop.has("run/postern/client/local.sock")
	})
	return p
}

// usesWiki waits until ann's curl gets the page.
func (o *office) usesWiki(ann *machine) {
	o.t.Helper()
	netns.Wait(o.t, patience, "ann reaches the wiki", func() bool {
		out, err := ann.run("curl -sS --max-time 5 " + page("wiki"))
		return err == nil && strings.Contains(out, wikiText)
	})
}

// kill ends a working daemon in the hardest way.
func (o *office) kill(p *program, ann *machine) {
	o.t.Helper()
	o.usesWiki(ann)
	must(o.t, p.cmd.Process.Kill())
	<-p.done
}

// sameAs compares the laptop with what it was.
func (o *office) sameAs(t *testing.T, before string) {
	t.Helper()
	if diff := cmp.Diff(before, o.laptop.on(t).must(hostState)); diff != "" {
		t.Errorf("the host is not what it was (-before +now):\n%s", diff)
	}
}
