package netmon

import (
	"net/netip"
	"strings"
	"testing"
)

func TestBestRoute(t *testing.T) {
	const v4 = `Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
wlan0	00000000	0101A8C0	0003	0	0	600	00000000	0	0	0
eth0	00000000	FE01A8C0	0003	0	0	100	00000000	0	0	0
postern0	00000000	0101010A	0003	0	0	0	00000000	0	0	0
eth0	0001A8C0	00000000	0001	0	0	0	00FFFFFF	0	0	0
wg0	00000000	00000000	0001	0	0	0	00000080	0	0	0
broken	00000000	zz	0003	0	0	0	00000000
`
	got, err := bestRoute(strings.NewReader(v4), "postern0", parseV4)
	want := candidate{"eth0", netip.MustParseAddr("192.168.1.254"), 100}
	if err != nil || got != want {
		t.Errorf("IPv4 = %+v, %v, want %+v", got, err, want)
	}
	const v6 = `fe800000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001 eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00450003 eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200 lo
`
	got, err = bestRoute(strings.NewReader(v6), "postern0", parseV6)
	want = candidate{"eth0", netip.MustParseAddr("fe80::1"), 0x400}
	if err != nil || got != want {
		t.Errorf("IPv6 = %+v, %v, want %+v", got, err, want)
	}
}

func TestFingerprint(t *testing.T) {
	home := Network{Interface: "eth0", Gateway: netip.MustParseAddr("192.168.1.1"), Subnet: netip.MustParsePrefix("192.168.1.0/24")}
	office := home
	office.Gateway = netip.MustParseAddr("192.168.1.254")
	if fingerprint(home) != fingerprint(home) || fingerprint(home) == fingerprint(office) {
		t.Errorf("fingerprints %s and %s", fingerprint(home), fingerprint(office))
	}
	if got := fingerprint(Network{}); got != None {
		t.Errorf("without a network = %q", got)
	}
	if strings.Contains(fingerprint(home), "192.168") {
		t.Error("the fingerprint shows an address")
	}
}

func FuzzParse(f *testing.F) {
	f.Add("eth0 00000000 0101A8C0 0003 0 0 100 00000000 0 0 0")
	f.Fuzz(func(_ *testing.T, line string) {
		_, _ = bestRoute(strings.NewReader(line), "", parseV4) // must not panic
		_, _ = bestRoute(strings.NewReader(line), "", parseV6)
	})
}
