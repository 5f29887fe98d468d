package resolve

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

const (
	// ttl in seconds: a changed address is seen by everyone within half a minute.
	ttl = 30
	// negativeTTL is short, so that an app published now is found soon.
	negativeTTL = 5
	// ednsSize is the DNS flag day figure: no fragments on any path.
	ednsSize = 1232
)

// verdict says what to do with a question.
type verdict int

const (
	refuse  verdict = iota // neither ours nor forwarded: the zero value
	answer                 // reply is ready
	foreign                // not ours: forward it if there is somebody to ask
)

// decide answers the one question in q from the table. reply is valid with
// answer.
func (t *Table) decide(q *dns.Msg) (reply *dns.Msg, v verdict) {
	question := q.Question[0]
	if question.Qclass != dns.ClassINET {
		return nil, refuse
	}
	name := dns.CanonicalName(question.Name)
	if a, ok := reverseAddr(name); ok && t.owns(a) {
		return t.answerReverse(q, a), answer
	}
	suffix, ok := t.suffix(name)
	if !ok {
		return nil, foreign
	}
	return t.answerName(q, name, suffix), answer
}

func (t *Table) answerName(q *dns.Msg, name, suffix string) *dns.Msg {
	reply := newReply(q, dns.RcodeSuccess)
	if !t.exists(name) {
		reply.Rcode = dns.RcodeNameError
	}
	question := q.Question[0]
	addrs := t.names[name]
	switch question.Qtype {
	case dns.TypeA:
		reply.Answer = appendAddr(reply.Answer, question.Name, addrs.V4)
	case dns.TypeAAAA:
		reply.Answer = appendAddr(reply.Answer, question.Name, addrs.V6)
	case dns.TypeANY:
		reply.Answer = appendAddr(reply.Answer, question.Name, addrs.V4)
		reply.Answer = appendAddr(reply.Answer, question.Name, addrs.V6)
	case dns.TypeSOA:
		if name == suffix {
			reply.Answer = append(reply.Answer, soa(suffix))
		}
	}
	return withAuthority(reply, suffix)
}

func (t *Table) answerReverse(q *dns.Msg, a netip.Addr) *dns.Msg {
	name, ok := t.reverse[a]
	if !ok {
		return newReply(q, dns.RcodeNameError)
	}
	reply := newReply(q, dns.RcodeSuccess)
	if t := q.Question[0].Qtype; t == dns.TypePTR || t == dns.TypeANY {
		reply.Answer = append(reply.Answer, &dns.PTR{Hdr: header(q.Question[0].Name, dns.TypePTR, ttl), Ptr: name})
	}
	return reply
}

// newReply starts a reply to q; it repeats the question byte for byte, so that a
// resolver which mixes the case finds its own spelling.
func newReply(q *dns.Msg, rcode int) *dns.Msg {
	reply := new(dns.Msg)
	reply.SetRcode(q, rcode)
	reply.Authoritative = rcode == dns.RcodeSuccess || rcode == dns.RcodeNameError
	reply.RecursionAvailable = true
	if opt := q.IsEdns0(); opt != nil {
		reply.SetEdns0(ednsSize, opt.Do())
	}
	return reply
}

// withAuthority adds the SOA that lets resolvers cache an empty answer.
func withAuthority(reply *dns.Msg, suffix string) *dns.Msg {
	if len(reply.Answer) == 0 {
		reply.Ns = append(reply.Ns, soa(suffix))
	}
	return reply
}

func soa(suffix string) *dns.SOA {
	return &dns.SOA{
		Hdr: header(suffix, dns.TypeSOA, negativeTTL),
		Ns:  "ns." + suffix, Mbox: "hostmaster." + suffix,
		Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: negativeTTL,
	}
}

func appendAddr(rrs []dns.RR, name string, a netip.Addr) []dns.RR {
	switch {
	case a.Is4():
		return append(rrs, &dns.A{Hdr: header(name, dns.TypeA, ttl), A: a.AsSlice()})
	case a.Is6():
		return append(rrs, &dns.AAAA{Hdr: header(name, dns.TypeAAAA, ttl), AAAA: a.AsSlice()})
	default:
		return rrs
	}
}

func header(name string, rrtype uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

// reverseAddr reads the address out of a whole in-addr.arpa or ip6.arpa name.
func reverseAddr(name string) (netip.Addr, bool) {
	if labels, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		return reverse4(labels)
	}
	if labels, ok := strings.CutSuffix(name, ".ip6.arpa."); ok {
		return reverse6(labels)
	}
	return netip.Addr{}, false
}

func reverse4(labels string) (netip.Addr, bool) {
	parts := strings.Split(labels, ".")
	if len(parts) != 4 {
		return netip.Addr{}, false
	}
	slices.Reverse(parts)
	var b [4]byte
	for i, part := range parts {
		n, err := strconv.ParseUint(part, 10, 8)
		if err != nil {
			return netip.Addr{}, false
		}
		b[i] = byte(n)
	}
	return netip.AddrFrom4(b), true
}

func reverse6(labels string) (netip.Addr, bool) {
	parts := strings.Split(labels, ".")
	if len(parts) != 32 {
		return netip.Addr{}, false
	}
	slices.Reverse(parts)
	b, err := hex.DecodeString(strings.Join(parts, ""))
	if err != nil || len(b) != 16 {
		return netip.Addr{}, false
	}
	return netip.AddrFrom16([16]byte(b)), true
}
