//go:build linux

package system

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/postern-zt/postern/test/netns"
)

// Addresses of the private services, which only the site reaches.
const (
	filesAddr = "10.0.0.6"
	dbAddr    = "10.0.0.7"
	dnsAddr   = "10.0.0.8"
	// answer is what the private DNS server says to everything.
	answer = "192.0.2.53"
	// repoText is in the private git repository.
	repoText = "only for members of the project"
)

// publish lists the apps: each service twice, once for ann and once for nobody.
var publish = []string{
	"wiki=" + wikiAddr + ":80", "files=" + filesAddr + ":22", "db=" + dbAddr + ":5432", "ns=" + dnsAddr + ":53/udp",
	"closed-wiki=" + wikiAddr + ":80", "closed-files=" + filesAddr + ":22", "closed-db=" + dbAddr + ":5432", "closed-ns=" + dnsAddr + ":53/udp",
}

// startServices runs the real programs of others at the site.
func (o *office) startServices() {
	o.t.Helper()
	serveWiki(o.t, o.site, wikiAddr+":80")
	o.startSSH()
	o.startPostgres()
	o.startDNS()
}

// startSSH runs an OpenSSH server with a key for ann and a git repository.
func (o *office) startSSH() {
	o.t.Helper()
	must(o.t, os.Mkdir(filepath.Join(o.site.dir, "run", "sshd"), 0o755))
	must(o.t, os.Mkdir(filepath.Join(o.site.dir, "lib", "ssh"), 0o755))
	o.laptop.must("ssh-keygen -q -t ed25519 -N '' -f $HOME/key && chown nobody $HOME/key")
	public, err := os.ReadFile(filepath.Join(o.laptop.dir, "lib", "home", "key.pub"))
	must(o.t, err)
	must(o.t, os.WriteFile(filepath.Join(o.site.dir, "lib", "ssh", "authorized"), public, 0o600))
	o.site.must("ssh-keygen -q -t ed25519 -N '' -f /var/lib/ssh/host")
	o.site.must(`cd /var/lib && git init -q -b main repo && cd repo && echo '` + repoText + `' >README &&
git add README && git -c user.name=o -c user.email=o@example.com commit -q -m first`)
	config := "ListenAddress " + filesAddr + ":22\nHostKey /var/lib/ssh/host\nAuthorizedKeysFile /var/lib/ssh/authorized\n" +
		"StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nPidFile none\nSubsystem sftp internal-sftp\n"
	must(o.t, os.WriteFile(filepath.Join(o.site.dir, "lib", "ssh", "config"), []byte(config), 0o600))
	o.site.start("exec /usr/sbin/sshd -D -e -f /var/lib/ssh/config", "")
	o.site.WaitTCP(filesAddr+":22", patience)
}

// startPostgres runs a PostgreSQL server, which refuses to be root.
func (o *office) startPostgres() {
	o.t.Helper()
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	must(o.t, err)
	u, err := user.Lookup("postgres")
	if len(found) == 0 || err != nil {
		o.t.Fatalf("PostgreSQL is not installed: %v", err)
	}
	uid, err := strconv.Atoi(u.Uid)
	must(o.t, err)
	bin := filepath.Dir(slices.Max(found))
	home := filepath.Join(o.site.dir, "lib", "pg")
	must(o.t, os.Mkdir(home, 0o700))
	must(o.t, os.Chown(home, uid, uid))
	pg := o.site.as(uid)
	pg.must("cd /var/lib/pg && " + bin + "/initdb -D data --no-sync --no-locale --encoding=UTF8 --auth=trust --username=postgres && echo 'host all all all trust' >>data/pg_hba.conf")
	p := pg.start("cd /var/lib/pg && exec "+bin+"/postgres -D data -c listen_addresses="+dbAddr+" -c unix_socket_directories= -c fsync=off", "")
	p.await(regexp.MustCompile(`(ready to accept connections)`))
}

// startDNS serves a private DNS server: the app over UDP.
func (o *office) startDNS() {
	o.t.Helper()
	serveDNS(o.t, o.site, dnsAddr+":53")
}

// questions are the names that a DNS server was asked for.
type questions struct {
	mu    sync.Mutex // guards names
	names []string
}

func (q *questions) add(query []byte) {
	var m dnsmessage.Message
	if m.Unpack(query) != nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, question := range m.Questions {
		q.names = append(q.names, strings.ToLower(question.Name.String()))
	}
}

// with lists the names that hold a text.
func (q *questions) with(text string) []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(q.names), func(name string) bool { return !strings.Contains(name, text) })
}

// serveDNS runs a DNS server that gives everything the same address.
func serveDNS(t *testing.T, on *machine, addr string) *questions {
	t.Helper()
	conn := on.ListenPacket(addr)
	asked, done := &questions{}, make(chan struct{})
	go func() { // the clean-up waits for done
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			asked.add(buf[:n])
			if reply, err := dnsReply(buf[:n]); err == nil {
				_, _ = conn.WriteTo(reply, from) // a lost datagram is asked for again
			}
		}
	}()
	t.Cleanup(func() {
		_ = conn.Close() // ends the loop
		select {
		case <-done:
		case <-time.After(stopTimeout):
			t.Error("the DNS server does not end")
		}
	})
	return asked
}

// dnsReply answers each question with the same address.
func dnsReply(query []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		return nil, err
	}
	m.Response, m.Authoritative, m.Additionals = true, true, nil
	for _, q := range m.Questions {
		if q.Type != dnsmessage.TypeA {
			continue
		}
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 30},
			Body:   &dnsmessage.AResource{A: [4]byte{192, 0, 2, 53}},
		})
	}
	return m.Pack()
}

// open starts the product: broker, connector with all apps, rules for ann's half.
func (o *office) open() {
	o.t.Helper()
	broker := o.broker.start("postern-broker run", "")
	o.url = broker.await(urlLine)
	o.setUp(broker.await(ownerLine))
	line := "postern-connector run --join '" + o.url + "'"
	for _, p := range publish {
		line += " --publish " + p
	}
	connector := o.site.start(line, broker.await(tokenLine)+"\n")
	connector.await(regexp.MustCompile(`(?m)^(Published closed-ns\.)$`))
	for _, app := range []string{"wiki", "files", "db", "ns"} {
		o.broker.must("postern admin rule allow " + employee + " " + app)
	}
	netns.Wait(o.t, patience, "the connector is online", func() bool {
		out, err := o.broker.run("postern admin connector list --json")
		return err == nil && regexp.MustCompile(`"online":\s*true`).MatchString(out)
	})
}

// url is the address of a private site's page.
func page(app string) string { return fmt.Sprintf("http://%s.%s/", app, suffix) }
