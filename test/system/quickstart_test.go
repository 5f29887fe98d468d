//go:build linux

package system

import (
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/postern-zt/postern/test/netns"
)

// block finds a fenced block of the README that carries a mark.
var block = regexp.MustCompile("(?s)<!-- quickstart: (\\w+) -->\n```sh\n(.*?)\n```")

// brokerURLInReadme stands where the README cannot know the pin.
const brokerURLInReadme = "https://203.0.113.10:8443/#pin=..."

// readme returns the commands of the quick start by the names of their blocks.
func readme(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	must(t, err)
	commands := map[string]string{}
	for _, m := range block.FindAllStringSubmatch(string(text), -1) {
		commands[m[1]] = m[2]
	}
	for _, name := range []string{"broker", "connector", "rule", "daemon", "up", "try"} {
		if commands[name] == "" {
			t.Fatalf("README.md has no block %q of the quick start", name)
		}
	}
	return commands
}

// TestQuickStart does what the README says, on three machines, and nothing else.
func TestQuickStart(t *testing.T) {
	readmeSays := readme(t)
	o := newOffice(t, wikiAddr)
	command := func(name string) string { return strings.ReplaceAll(readmeSays[name], brokerURLInReadme, o.url) }
	serveWiki(t, o.site, wikiAddr+":80")

	broker := o.broker.start(command("broker"), "")
	o.url = broker.await(urlLine)
	if want := "https://" + brokerAddr + ":8443/#pin="; !strings.HasPrefix(o.url, want) {
		t.Fatalf("the broker is at %s, want %s...", o.url, want)
	}
	o.setUp(broker.await(ownerLine))

	connector := o.site.start(command("connector"), broker.await(tokenLine)+"\n")
	connector.await(joinedLine)
	connector.await(regexp.MustCompile(`(?m)^(Published wiki\.)$`))

	if out := o.broker.must(command("rule")); !strings.Contains(out, "ann may use wiki now") {
		t.Errorf("%s wrote %q", command("rule"), out)
	}

	o.laptop.start(command("daemon"), "")
	ann := o.laptop.as(nobody)
	netns.Wait(t, patience, "the daemon answers", func() bool {
		_, err := ann.run("postern status")
		return err == nil
	})
	up := ann.start(command("up"), "")
	o.signIn(up)
	if out := up.finish(); !strings.Contains(out, readmeSays["try"]) {
		t.Errorf("postern up does not end with the command of the README:\n%s", out)
	}
	if out := ann.must(command("try")); !strings.Contains(out, wikiText) {
		t.Errorf("%s wrote %q", command("try"), out)
	}
	if text := broker.out.String(); !strings.Contains(text, "[x] An employee") {
		netns.Wait(t, patience, "the check list is done", func() bool { return strings.Contains(broker.out.String(), "[x] An employee") })
	}
	o.refuseAgain(ann, command("try"))
}

// refuseAgain takes the access away: the same command is refused at once, with a reason.
func (o *office) refuseAgain(ann *machine, try string) {
	o.t.Helper()
	o.broker.must("postern admin rule deny ann wiki")
	const refused = 7 // curl: failed to connect
	ann.exits(refused, try)
	why := ann.must("postern why")
	if !strings.Contains(why, "Receipt: ") {
		o.t.Fatalf("postern why says %q", why)
	}
	receipt := strings.TrimSpace(why[strings.Index(why, "Receipt: ")+len("Receipt: "):])
	if out := o.broker.must("postern admin audit search --receipt " + receipt); !strings.Contains(out, "denied") {
		o.t.Errorf("the audit has for %s: %s", receipt, out)
	}
	if out := o.broker.must("postern admin audit verify"); !strings.Contains(out, "The audit is whole") {
		o.t.Errorf("postern admin audit verify says %q", out)
	}
}

// wikiText is on the wiki's page.
const wikiText = "Welcome to the wiki."

// serveWiki runs a small private site.
func serveWiki(t *testing.T, on *machine, addr string) {
	t.Helper()
	srv := &http.Server{ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, wikiText)
	})}
	l := on.Listen(addr)
	done := make(chan struct{})
	go func() { // the clean-up waits for done
		defer close(done)
		_ = srv.Serve(l) // always http.ErrServerClosed
	}()
	t.Cleanup(func() {
		_ = srv.Close() // nothing is left to lose
		select {
		case <-done:
		case <-time.After(stopTimeout):
			t.Error("the wiki does not end")
		}
	})
}
