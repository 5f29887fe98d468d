package resolve_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/postern-zt/postern/client/resolve"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	prefix4 = netip.MustParsePrefix("100.96.0.0/16")
	prefix6 = netip.MustParsePrefix("fd7a:1:2:3::/64")
	wiki    = resolve.Addrs{V4: netip.MustParseAddr("100.96.1.0"), V6: netip.MustParseAddr("fd7a:1:2:3::100")}
	v4only  = resolve.Addrs{V4: netip.MustParseAddr("100.96.1.1")}
)

func newTable(t testing.TB) *resolve.Table {
	t.Helper()
	table, err := resolve.NewTable([]string{"corp.internal", "lab.corp.internal."}, []netip.Prefix{prefix4, prefix6}, []resolve.Entry{
		{Name: "Wiki.corp.internal", Addrs: wiki},
		{Name: "a.b.corp.internal.", Addrs: v4only},
	})
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func newServer(t testing.TB, addr netip.AddrPort) *resolve.Server {
	t.Helper()
	s, err := resolve.New(resolve.Config{Addr: addr, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	s.SetTable(newTable(t))
	return s
}

func ask(t testing.TB, s *resolve.Server, q *dns.Msg) *dns.Msg {
	t.Helper()
	b, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.Answer(t.Context(), b, resolve.UDP)
	if err != nil {
		t.Fatal(err)
	}
	reply := new(dns.Msg)
	if err := reply.Unpack(out); err != nil {
		t.Fatal(err)
	}
	if reply.Id != q.Id {
		t.Errorf("reply has id %d, want %d", reply.Id, q.Id)
	}
	return reply
}

func question(name string, qtype uint16) *dns.Msg {
	return new(dns.Msg).SetQuestion(name, qtype)
}

func TestAnswers(t *testing.T) {
	s := newServer(t, netip.AddrPort{})
	for _, c := range []struct {
		name  string
		qtype uint16
		rcode int
		want  string // of the first answer; empty: no answer
	}{
		{"wiki.corp.internal.", dns.TypeA, dns.RcodeSuccess, "100.96.1.0"},
		{"wIkI.CORP.internal.", dns.TypeA, dns.RcodeSuccess, "100.96.1.0"},
		{"wiki.corp.internal.", dns.TypeAAAA, dns.RcodeSuccess, "fd7a:1:2:3::100"},
		{"wiki.corp.internal.", dns.TypeHTTPS, dns.RcodeSuccess, ""},
		{"wiki.corp.internal.", dns.TypeSRV, dns.RcodeSuccess, ""},
		{"wiki.corp.internal.", dns.TypeMX, dns.RcodeSuccess, ""},
		{"a.b.corp.internal.", dns.TypeAAAA, dns.RcodeSuccess, ""},
		{"b.corp.internal.", dns.TypeA, dns.RcodeSuccess, ""}, // an empty non-terminal
		{"corp.internal.", dns.TypeA, dns.RcodeSuccess, ""},
		{"nobody.corp.internal.", dns.TypeA, dns.RcodeNameError, ""},
		{"x.wiki.corp.internal.", dns.TypeA, dns.RcodeNameError, ""},
		{"example.com.", dns.TypeA, dns.RcodeRefused, ""},
		{"notcorp.internal.", dns.TypeA, dns.RcodeRefused, ""},
		{"internal.", dns.TypeA, dns.RcodeRefused, ""},
		{".", dns.TypeNS, dns.RcodeRefused, ""},
		{"0.1.96.100.in-addr.arpa.", dns.TypePTR, dns.RcodeSuccess, "wiki.corp.internal."},
		{"9.1.96.100.in-addr.arpa.", dns.TypePTR, dns.RcodeNameError, ""},
		{"1.0.0.10.in-addr.arpa.", dns.TypePTR, dns.RcodeRefused, ""},
	} {
		reply := ask(t, s, question(c.name, c.qtype))
		if reply.Rcode != c.rcode || first(reply) != c.want {
			t.Errorf("%s %s = %s, %q, want %s, %q", c.name, dns.TypeToString[c.qtype],
				dns.RcodeToString[reply.Rcode], first(reply), dns.RcodeToString[c.rcode], c.want)
		}
		if reply.Question[0].Name != c.name {
			t.Errorf("question %q came back as %q", c.name, reply.Question[0].Name)
		}
		checkAuthority(t, reply)
	}
}

func first(m *dns.Msg) string {
	if len(m.Answer) == 0 {
		return ""
	}
	switch rr := m.Answer[0].(type) {
	case *dns.A:
		return rr.A.String()
	case *dns.AAAA:
		return rr.AAAA.String()
	case *dns.PTR:
		return rr.Ptr
	default:
		return rr.String()
	}
}

// checkAuthority wants a SOA wherever an empty answer under our suffix is cached.
func checkAuthority(t *testing.T, m *dns.Msg) {
	t.Helper()
	name := m.Question[0].Name
	ours := dns.IsSubDomain("corp.internal.", dns.CanonicalName(name))
	wantSOA := ours && len(m.Answer) == 0
	if got := len(m.Ns) == 1 && m.Ns[0].Header().Rrtype == dns.TypeSOA; got != wantSOA {
		t.Errorf("%s: SOA in the answer is %v, want %v", name, got, wantSOA)
	}
	for _, rr := range m.Answer {
		if rr.Header().Ttl != 30 {
			t.Errorf("%s: ttl %d, want 30", name, rr.Header().Ttl)
		}
	}
}

func TestReverse6(t *testing.T) {
	s := newServer(t, netip.AddrPort{})
	name, err := dns.ReverseAddr(wiki.V6.String())
	if err != nil {
		t.Fatal(err)
	}
	if got := first(ask(t, s, question(name, dns.TypePTR))); got != "wiki.corp.internal." {
		t.Errorf("PTR of %v = %q", wiki.V6, got)
	}
}

func TestEDNS(t *testing.T) {
	s := newServer(t, netip.AddrPort{})
	q := question("wiki.corp.internal.", dns.TypeA).SetEdns0(4096, true)
	if reply := ask(t, s, q); reply.IsEdns0() == nil || first(reply) == "" {
		t.Errorf("reply to EDNS = %v", reply)
	}
	q.IsEdns0().SetVersion(1)
	if reply := ask(t, s, q); reply.Rcode != dns.RcodeBadVers {
		t.Errorf("EDNS version 1 = %s, want BADVERS", dns.RcodeToString[reply.Rcode])
	}
	if reply := ask(t, s, question("wiki.corp.internal.", dns.TypeA)); reply.IsEdns0() != nil {
		t.Error("EDNS in the reply to a question without it")
	}
}

func TestOddQuestionsAreRefused(t *testing.T) {
	s := newServer(t, netip.AddrPort{})
	chaos := question("version.bind.", dns.TypeTXT)
	chaos.Question[0].Qclass = dns.ClassCHAOS
	notify := question("corp.internal.", dns.TypeSOA)
	notify.Opcode = dns.OpcodeNotify
	two := question("wiki.corp.internal.", dns.TypeA)
	two.Question = append(two.Question, two.Question[0])
	for want, q := range map[int]*dns.Msg{
		dns.RcodeRefused: chaos, dns.RcodeNotImplemented: notify, dns.RcodeFormatError: two,
	} {
		if reply := ask(t, s, q); reply.Rcode != want {
			t.Errorf("%v = %s, want %s", q.Question, dns.RcodeToString[reply.Rcode], dns.RcodeToString[want])
		}
	}
	response := question("wiki.corp.internal.", dns.TypeA)
	response.Response = true
	b, err := response.Pack()
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]byte{nil, {1, 2, 3}, b, make([]byte, 5000)} {
		if _, err := s.Answer(t.Context(), bad, resolve.UDP); !errors.Is(err, resolve.ErrQuery) {
			t.Errorf("Answer(%d bytes) = %v, want ErrQuery", len(bad), err)
		}
	}
}

func TestTableRefusesForeignNames(t *testing.T) {
	for _, name := range []string{"example.com", "notcorp.internal", "", "a..corp.internal"} {
		_, err := resolve.NewTable([]string{"corp.internal"}, nil, []resolve.Entry{{Name: name, Addrs: wiki}})
		if err == nil {
			t.Errorf("NewTable with %q: no error", name)
		}
	}
	for _, suffix := range []string{"", "."} {
		if _, err := resolve.NewTable([]string{suffix}, nil, nil); err == nil {
			t.Errorf("NewTable with suffix %q: no error", suffix)
		}
	}
}

func TestEmptyServerRefuses(t *testing.T) {
	s, err := resolve.New(resolve.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if reply := ask(t, s, question("wiki.corp.internal.", dns.TypeA)); reply.Rcode != dns.RcodeRefused {
		t.Errorf("without a table = %s, want REFUSED", dns.RcodeToString[reply.Rcode])
	}
}

// start runs s on a free loopback port.
func start(t *testing.T) (*resolve.Server, netip.AddrPort) {
	t.Helper()
	for range 10 {
		addr := freePort(t)
		s := newServer(t, addr)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		select {
		case <-s.Ready():
			t.Cleanup(func() {
				cancel()
				if err := <-done; err != nil {
					t.Errorf("Run() = %v", err)
				}
			})
			return s, addr
		case <-done: // somebody else took the port
			cancel()
		}
	}
	t.Fatal("no free port")
	panic("unreachable")
}

func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestListensOnBothTransports(t *testing.T) {
	_, addr := start(t)
	for _, network := range []string{"udp", "tcp"} {
		client := &dns.Client{Net: network, Timeout: 10 * time.Second}
		reply, _, err := client.ExchangeContext(t.Context(), question("wiki.corp.internal.", dns.TypeA), addr.String())
		if err != nil || first(reply) != "100.96.1.0" {
			t.Errorf("%s: %v, %v", network, reply, err)
		}
	}
}

func TestTCPConnectionIsClosedOnNonsense(t *testing.T) {
	_, addr := start(t)
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(binary.BigEndian.AppendUint16(nil, 65535)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read = %v, want the end", err)
	}
}

func TestForwardsForeignNamesOnly(t *testing.T) {
	up, upAddr := start(t)
	theirs, err := resolve.NewTable([]string{"example.com"}, nil, []resolve.Entry{{Name: "www.example.com", Addrs: v4only}})
	if err != nil {
		t.Fatal(err)
	}
	up.SetTable(theirs)
	s := newServer(t, netip.AddrPort{})
	s.SetUpstreams([]netip.AddrPort{upAddr})

	if got := first(ask(t, s, question("www.example.com.", dns.TypeA))); got != "100.96.1.1" {
		t.Errorf("forwarded = %q", got)
	}
	// The upstream would refuse this one: the answer must be ours.
	if reply := ask(t, s, question("nobody.corp.internal.", dns.TypeA)); reply.Rcode != dns.RcodeNameError {
		t.Errorf("own name = %s, want NXDOMAIN", dns.RcodeToString[reply.Rcode])
	}
}

func TestUpstreamIsNeverOurself(t *testing.T) {
	s, addr := start(t)
	s.SetUpstreams([]netip.AddrPort{addr})
	if reply := ask(t, s, question("www.example.com.", dns.TypeA)); reply.Rcode != dns.RcodeRefused {
		t.Errorf("asked ourselves: %s", dns.RcodeToString[reply.Rcode])
	}
}

func TestPlan(t *testing.T) {
	p, err := resolve.NewPlan(prefix4, prefix6)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[netip.Addr]bool)
	for _, a := range []resolve.Addrs{p.Device(), p.DNS()} {
		seen[a.V4], seen[a.V6] = true, true
	}
	for i := range uint32(65535 - 256) {
		a, err := p.App(i)
		if err != nil {
			t.Fatal(err)
		}
		if !prefix4.Contains(a.V4) || !prefix6.Contains(a.V6) || seen[a.V4] || seen[a.V6] {
			t.Fatalf("App(%d) = %v: outside or used twice", i, a)
		}
		seen[a.V4], seen[a.V6] = true, true
	}
	if a, err := p.App(65535 - 256); !errors.Is(err, resolve.ErrIndex) {
		t.Errorf("App of the broadcast address = %v, %v, want ErrIndex", a, err)
	}
	if _, err := p.App(1<<32 - 1); !errors.Is(err, resolve.ErrIndex) {
		t.Errorf("App of a huge index = %v, want ErrIndex", err)
	}
	if a, _ := p.App(0); a != wiki {
		t.Errorf("App(0) = %v, want %v: addresses must not move between versions", a, wiki)
	}
}

func TestPlanRefusesBadPrefixes(t *testing.T) {
	for _, c := range []struct{ v4, v6 string }{
		{"10.0.0.0/24", "fd00::/64"}, {"0.0.0.0/0", "fd00::/64"}, {"fd00::/64", "fd00::/64"},
		{"10.0.0.0/16", "2001:db8::/64"}, {"10.0.0.0/16", "fd00::/96"}, {"10.0.0.0/16", "fe80::/64"},
	} {
		if p, err := resolve.NewPlan(netip.MustParsePrefix(c.v4), netip.MustParsePrefix(c.v6)); err == nil {
			t.Errorf("NewPlan(%s, %s) = %v, want an error", c.v4, c.v6, p)
		}
	}
	p, err := resolve.NewPlan(prefix4, netip.Prefix{})
	if err != nil {
		t.Fatal(err)
	}
	if a, err := p.App(1); err != nil || a.V6.IsValid() || len(p.Prefixes()) != 1 {
		t.Errorf("plan without IPv6 = %v, %v, %v", a, err, p.Prefixes())
	}
}

func FuzzAnswer(f *testing.F) {
	for _, q := range []*dns.Msg{
		question("wiki.corp.internal.", dns.TypeA), question("nobody.corp.internal.", dns.TypeHTTPS),
		question("0.1.96.100.in-addr.arpa.", dns.TypePTR), question("example.com.", dns.TypeANY).SetEdns0(512, true),
	} {
		b, err := q.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	s := newServer(f, netip.AddrPort{})
	f.Fuzz(func(t *testing.T, b []byte) {
		out, err := s.Answer(t.Context(), b, resolve.UDP)
		if err != nil {
			return
		}
		reply := new(dns.Msg)
		if err := reply.Unpack(out); err != nil || !reply.Response {
			t.Errorf("Answer(%x) = %x: %v", b, out, err)
		}
		if len(out) > 1232 {
			t.Errorf("answer of %d bytes", len(out))
		}
	})
}
