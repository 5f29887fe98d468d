package packet_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"github.com/postern-zt/postern/netstack/packet"
)

var (
	app4  = netip.MustParseAddrPort("100.96.1.0:443")
	prog4 = netip.MustParseAddrPort("100.96.0.1:50000")
	app6  = netip.MustParseAddrPort("[fd00::100]:443")
	prog6 = netip.MustParseAddrPort("[fd00::1]:50000")
)

// sample is written by hand, byte for byte from RFC 791 and RFC 768, without
// checksums: parsing does not look at them.
var sample = []byte{
	0x45, 0x00, 0x00, 0x21, 0x5b, 0x0d, 0x40, 0x00, 0x40, 0x11, 0x00, 0x00,
	0x7f, 0x00, 0x00, 0x01, 0x7f, 0x00, 0x00, 0x01,
	0x9c, 0x40, 0x00, 0x35, 0x00, 0x0d, 0x00, 0x00, 'h', 'e', 'l', 'l', 'o',
}

func TestDecodeUDP(t *testing.T) {
	for _, c := range []struct{ src, dst netip.AddrPort }{{prog4, app4}, {prog6, app6}} {
		b := packet.AppendUDP(nil, c.src, c.dst, []byte("hello"))
		var p packet.Parsed
		if err := p.Decode(b); err != nil {
			t.Fatal(err)
		}
		if p.Src != c.src || p.Dst != c.dst || p.Proto != packet.ProtoUDP || string(p.Payload) != "hello" {
			t.Errorf("Decode = %+v, want %v to %v with hello", p, c.src, c.dst)
		}
	}
	var p packet.Parsed
	if err := p.Decode(sample); err != nil || p.Dst.Port() != 53 || string(p.Payload) != "hello" {
		t.Errorf("Decode(sample) = %+v, %v", p, err)
	}
}

// onesSum is the plain form of the checksum: over a correct packet it gives 0xffff.
func onesSum(parts ...[]byte) uint16 {
	sum := uint64(0)
	for _, b := range parts {
		for i := 0; i < len(b); i += 2 {
			word := uint64(b[i]) << 8
			if i+1 < len(b) {
				word |= uint64(b[i+1])
			}
			sum += word
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

func checkSums(t *testing.T, b []byte, proto packet.Proto) {
	t.Helper()
	var pseudo, transport []byte
	if b[0]>>4 == 4 {
		if got := onesSum(b[:20]); got != 0xffff {
			t.Errorf("IPv4 header sums to %#x", got)
		}
		transport = b[20:]
		pseudo = append(bytes.Clone(b[12:20]), 0, byte(proto), byte(len(transport)>>8), byte(len(transport)))
	} else {
		transport = b[40:]
		pseudo = append(bytes.Clone(b[8:40]), 0, 0, byte(len(transport)>>8), byte(len(transport)), 0, 0, 0, byte(proto))
	}
	if proto == packet.ProtoICMPv4 {
		pseudo = nil
	}
	if got := onesSum(pseudo, transport); got != 0xffff {
		t.Errorf("transport sums to %#x", got)
	}
}

func TestBuiltPacketsHaveRightChecksums(t *testing.T) {
	for size := range 70 {
		payload := bytes.Repeat([]byte{0xff}, size)
		checkSums(t, packet.AppendUDP(nil, prog4, app4, payload), packet.ProtoUDP)
		checkSums(t, packet.AppendUDP(nil, prog6, app6, payload), packet.ProtoUDP)
	}
	checkSums(t, packet.AppendUDP(nil, prog4, app4, bytes.Repeat([]byte{0xff}, packet.MaxUDPPayload)), packet.ProtoUDP)
	checkSums(t, packet.AppendReset(nil, prog4, app4, 7), packet.ProtoTCP)
	checkSums(t, packet.AppendReset(nil, prog6, app6, 7), packet.ProtoTCP)
	request := []byte{8, 0, 0, 0, 1, 2, 0, 1, 'x'}
	checkSums(t, packet.AppendEchoReply(nil, prog4.Addr(), app4.Addr(), request), packet.ProtoICMPv4)
	checkSums(t, packet.AppendEchoReply(nil, prog6.Addr(), app6.Addr(), request), packet.ProtoICMPv6)
	quote4, quote6 := packet.AppendUDP(nil, prog4, app4, []byte("x")), packet.AppendUDP(nil, prog6, app6, []byte("x"))
	checkSums(t, packet.AppendUnreachable(nil, quote4, packet.ReasonPort), packet.ProtoICMPv4)
	checkSums(t, packet.AppendUnreachable(nil, quote6, packet.ReasonPort), packet.ProtoICMPv6)
}

func TestUnreachableCodes(t *testing.T) {
	quote4, quote6 := packet.AppendUDP(nil, prog4, app4, nil), packet.AppendUDP(nil, prog6, app6, nil)
	for _, c := range []struct {
		reason       packet.Reason
		code4, code6 uint8
	}{
		{packet.ReasonPort, 3, 4},
		{packet.ReasonHost, 1, 3},
		{packet.ReasonProhibited, 13, 1},
	} {
		for quote, want := range map[*[]byte][2]uint8{&quote4: {3, c.code4}, &quote6: {1, c.code6}} {
			var p, inner packet.Parsed
			b := packet.AppendUnreachable(nil, *quote, c.reason)
			if err := p.Decode(b); err != nil {
				t.Fatal(err)
			}
			if got := [2]uint8{p.ICMPType, p.ICMPCode}; got != want {
				t.Errorf("reason %d gives type and code %v, want %v", c.reason, got, want)
			}
			if err := inner.Decode(p.Payload); err != nil || inner.Dst.Addr() != p.Src.Addr() {
				t.Errorf("quoted packet = %+v, %v", inner, err)
			}
		}
	}
	if b := packet.AppendUnreachable(nil, []byte{0x45}, packet.ReasonPort); b != nil {
		t.Errorf("a cut IP header gives %x, want nothing", b)
	}
}

func TestDecodeRefusesTruncation(t *testing.T) {
	for _, whole := range [][]byte{
		packet.AppendUDP(nil, prog4, app4, []byte("x")),
		packet.AppendUDP(nil, prog6, app6, []byte("x")),
		packet.AppendReset(nil, prog4, app4, 1),
		packet.AppendReset(nil, prog6, app6, 1),
	} {
		for n := range whole {
			var p packet.Parsed
			if err := p.Decode(whole[:n]); err == nil {
				t.Errorf("Decode of %d of %d bytes: no error", n, len(whole))
			}
		}
	}
}

func TestDecodeRefusesLies(t *testing.T) {
	change := func(at int, to byte) []byte {
		b := packet.AppendUDP(nil, prog4, app4, []byte("x"))
		b[at] = to
		return b
	}
	for name, b := range map[string][]byte{
		"version":       change(0, 0x55),
		"header length": change(0, 0x41),
		"total length":  change(3, 19),
		"udp length":    change(25, 7),
	} {
		var p packet.Parsed
		err := p.Decode(b)
		if !errors.Is(err, packet.ErrHeader) && !errors.Is(err, packet.ErrVersion) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestFragmentsHaveNoPorts(t *testing.T) {
	b := packet.AppendUDP(nil, prog4, app4, []byte("x"))
	binary.BigEndian.PutUint16(b[6:], 0x2000)
	var p packet.Parsed
	if err := p.Decode(b); err != nil || !p.Fragment || p.Dst.Port() != 0 || p.Dst.Addr() != app4.Addr() {
		t.Errorf("Decode = %+v, %v, want a fragment without ports", p, err)
	}
}

func TestIPv6Extensions(t *testing.T) {
	udp := packet.AppendUDP(nil, prog6, app6, []byte("x"))
	withExtensions := func(n int) []byte {
		b := bytes.Clone(udp[:40])
		b[6] = 60
		for i := range n {
			next := byte(60)
			if i == n-1 {
				next = 17
			}
			b = append(b, next, 0, 1, 4, 0, 0, 0, 0)
		}
		b = append(b, udp[40:]...)
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
		return b
	}
	var p packet.Parsed
	if err := p.Decode(withExtensions(2)); err != nil || p.Dst != app6 {
		t.Errorf("two extensions: %+v, %v", p, err)
	}
	if err := p.Decode(withExtensions(20)); !errors.Is(err, packet.ErrHeader) {
		t.Errorf("twenty extensions: %v, want ErrHeader", err)
	}
}

func TestDecodeDoesNotAllocate(t *testing.T) {
	b := packet.AppendUDP(nil, prog6, app6, []byte("x"))
	var p packet.Parsed
	if n := testing.AllocsPerRun(100, func() { _ = p.Decode(b) }); n != 0 {
		t.Errorf("Decode allocates %v times", n)
	}
	dst := make([]byte, 0, 2048)
	if n := testing.AllocsPerRun(100, func() { packet.AppendUDP(dst, prog4, app4, b) }); n != 0 {
		t.Errorf("AppendUDP allocates %v times", n)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(sample)
	f.Add(packet.AppendUDP(nil, prog6, app6, []byte("hello")))
	f.Add(packet.AppendReset(nil, prog4, app4, 1))
	f.Add(packet.AppendUnreachable(nil, sample, packet.ReasonPort))
	f.Add(packet.AppendEchoReply(nil, prog6.Addr(), app6.Addr(), make([]byte, 8)))
	f.Fuzz(func(t *testing.T, b []byte) {
		var p packet.Parsed
		if err := p.Decode(b); err != nil {
			return
		}
		if len(p.Payload) > len(b) || !p.Dst.Addr().IsValid() {
			t.Errorf("Decode(%x) = %+v", b, p)
		}
		if out := packet.AppendUnreachable(nil, b, packet.ReasonHost); len(out) > 48+packet.MaxQuote {
			t.Errorf("unreachable message of %d bytes", len(out))
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	pkt := packet.AppendUDP(nil, prog4, app4, make([]byte, 1400))
	var p packet.Parsed
	b.ReportAllocs()
	b.SetBytes(int64(len(pkt)))
	for b.Loop() {
		_ = p.Decode(pkt)
	}
}
