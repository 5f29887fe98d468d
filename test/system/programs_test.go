//go:build linux

package system

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Exit codes of the programs for a refused connection.
const (
	curlRefused      = 7
	curlProxyRefused = 97
	sshFailed        = 255
	psqlFailed       = 2
	digNoAnswer      = 9
	gitFailed        = 128
)

// sshOptions keep ssh to the test's own files and away from questions.
const sshOptions = "-F none -i $HOME/key -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile=$HOME/known -o LogLevel=ERROR -o ConnectTimeout=30"

// host is the name of an app.
func host(app string) string { return app + "." + suffix }

// TestProgramsThroughTunnel uses real programs on the laptop that know nothing of us.
func TestProgramsThroughTunnel(t *testing.T) {
	o := newOffice(t, wikiAddr, filesAddr, dbAddr, dnsAddr)
	ann := o.connectLaptop()
	testPrograms(t, ann)
	o.carriedBy(t, ann, "quic")
	o.verifyAudit(t)
}

// TestProgramsThroughTunnelWithoutUDP does the same in a network that passes TCP only.
func TestProgramsThroughTunnelWithoutUDP(t *testing.T) {
	o := newOffice(t, wikiAddr, filesAddr, dbAddr, dnsAddr)
	o.laptop.NFT("table inet noudp { chain out { type filter hook output priority 0; oifname != lo udp dport 8443 drop; }; }")
	ann := o.connectLaptop()
	testPrograms(t, ann)
	o.carriedBy(t, ann, "tls")
	o.verifyAudit(t)
}

// connectLaptop starts everything and signs ann in at the daemon.
func (o *office) connectLaptop() (ann *machine) {
	o.t.Helper()
	o.startServices()
	o.open()
	o.startDaemon()
	ann = o.laptop.as(nobody)
	up := ann.start("postern up '"+o.url+"'", "")
	o.signIn(up)
	up.finish()
	return ann
}

func testPrograms(t *testing.T, ann *machine) {
	t.Run("curl", func(t *testing.T) { testCurl(t, ann, "", curlRefused) })
	t.Run("ssh", func(t *testing.T) { testSSH(t, ann, "") })
	t.Run("scp", func(t *testing.T) { testSCP(t, ann, "") })
	t.Run("git", func(t *testing.T) { testGit(t, ann, "") })
	t.Run("psql", func(t *testing.T) {
		testPSQL(t, ann, func(app string) (string, string) { return host(app), "5432" })
	})
	t.Run("dig", func(t *testing.T) { testDig(t, ann) })
}

// carriedBy checks what the client says about its link.
func (o *office) carriedBy(t *testing.T, ann *machine, carrier string) {
	t.Helper()
	if out := ann.on(t).must("postern status"); !strings.Contains(out, " "+carrier+" relay ") {
		t.Errorf("the link does not use %s:\n%s", carrier, out)
	}
}

// TestProgramsThroughProxy does the same without root and without the daemon.
func TestProgramsThroughProxy(t *testing.T) {
	o := newOffice(t, wikiAddr, filesAddr, dbAddr, dnsAddr)
	o.startServices()
	o.open()
	ann := o.laptop.as(nobody)
	cli := ann.start("postern proxy '"+o.url+"'", "")
	o.signIn(cli)
	addr := cli.await(proxyLine)

	const proxied = " -o ProxyCommand='postern stdio %h:%p'"
	t.Run("curl", func(t *testing.T) { testCurl(t, ann, "--socks5-hostname "+addr, curlProxyRefused) })
	t.Run("ssh", func(t *testing.T) { testSSH(t, ann, proxied) })
	t.Run("scp", func(t *testing.T) { testSCP(t, ann, proxied) })
	t.Run("git", func(t *testing.T) { testGit(t, ann, proxied) })
	t.Run("psql", func(t *testing.T) {
		testPSQL(t, ann, func(app string) (string, string) { return o.forward(t, host(app)+":5432") })
	})
	o.verifyAudit(t)
}

func testCurl(t *testing.T, ann *machine, flags string, refused int) {
	ann = ann.on(t)
	if out := ann.must("curl -sS " + flags + " " + page("wiki")); !strings.Contains(out, wikiText) {
		t.Errorf("curl wrote %q", out)
	}
	ann.exits(refused, "curl -sS "+flags+" "+page("closed-wiki"))
}

func testSSH(t *testing.T, ann *machine, flags string) {
	ann = ann.on(t)
	line := func(app string) string { return "ssh " + sshOptions + flags + " root@" + host(app) }
	if out := ann.must(line("files") + " 'echo $((6*7)) from the site'"); !strings.Contains(out, "42 from the site") {
		t.Errorf("ssh wrote %q", out)
	}
	ann.exits(sshFailed, line("closed-files")+" true")
}

// testSCP copies 32 MB there and back and compares checksums.
func testSCP(t *testing.T, ann *machine, flags string) {
	ann = ann.on(t)
	scp := "scp -q " + sshOptions + flags
	ann.must("cd $HOME && head -c 32000000 /dev/urandom >up && sha256sum <up >sum")
	ann.must("cd $HOME && " + scp + " up root@" + host("files") + ":/var/lib/copy")
	ann.must("cd $HOME && " + scp + " root@" + host("files") + ":/var/lib/copy down && sha256sum <down | cmp - sum")
	ann.exits(sshFailed, "cd $HOME && "+scp+" up root@"+host("closed-files")+":/var/lib/copy2")
}

func testGit(t *testing.T, ann *machine, flags string) {
	ann = ann.on(t).with("GIT_CONFIG_NOSYSTEM=1")
	line := func(app, to string) string {
		return `cd $HOME && GIT_SSH_COMMAND="ssh ` + sshOptions + flags + `" git clone -q root@` + host(app) + ":/var/lib/repo " + to
	}
	ann.must(line("files", "clone"))
	if out := ann.must("cat $HOME/clone/README"); !strings.Contains(out, repoText) {
		t.Errorf("the clone holds %q", out)
	}
	ann.exits(gitFailed, line("closed-files", "closed"))
}

func testPSQL(t *testing.T, ann *machine, reach func(app string) (host, port string)) {
	ann = ann.on(t)
	line := func(app, sql string) string {
		h, p := reach(app)
		return fmt.Sprintf("psql -X -A -t -w -h %s -p %s -U postgres -c %q postgres", h, p, sql)
	}
	ann.must(line("db", "create table numbers as select generate_series(1,100000) as n"))
	if out := ann.must(line("db", "select sum(n) from numbers")); strings.TrimSpace(out) != "5000050000" {
		t.Errorf("psql wrote %q", out)
	}
	ann.exits(psqlFailed, line("closed-db", "select 1"))
}

func testDig(t *testing.T, ann *machine) {
	ann = ann.on(t)
	line := func(app string) string { return "dig +short +tries=3 +time=5 @" + host(app) + " printer.example A" }
	if out := ann.must(line("ns")); strings.TrimSpace(out) != answer {
		t.Errorf("dig wrote %q", out)
	}
	ann.exits(digNoAnswer, line("closed-ns"))
}

// forward listens on the laptop and joins each connection to an app by `postern stdio`.
func (o *office) forward(t *testing.T, app string) (host, port string) {
	t.Helper()
	l := o.laptop.on(t).Listen("127.0.0.1:0")
	ann := o.laptop.as(nobody)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { join(ann, conn.(*net.TCPConn), app) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close() // ends the loop
		wg.Wait()
	})
	host, port, err := net.SplitHostPort(l.Addr().String())
	must(t, err)
	return host, port
}

// join gives a connection to a command as its standard input and output.
func join(ann *machine, conn *net.TCPConn, app string) {
	defer conn.Close()
	f, err := conn.File()
	if err != nil {
		return
	}
	defer f.Close()
	cmd := ann.shell("postern stdio " + app)
	cmd.Stdin, cmd.Stdout = f, f
	_ = cmd.Run() // its end is the connection's
}

// verifyAudit checks that each flow was recorded, opened and closed once.
func (o *office) verifyAudit(t *testing.T) {
	t.Helper()
	broker := o.broker.on(t)
	if out := broker.must("postern admin audit verify"); !strings.Contains(out, "The audit is whole") {
		t.Errorf("postern admin audit verify says %q", out)
	}
}

// on returns the machine for a subtest.
func (m *machine) on(t *testing.T) *machine {
	other := *m
	other.t = t
	return &other
}

// has reports whether a file is there, by its path below the machine's directory.
func (m *machine) has(path string) bool {
	found, err := filepath.Glob(filepath.Join(m.dir, path))
	return err == nil && len(found) == 1
}
