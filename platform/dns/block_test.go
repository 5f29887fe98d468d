package dns

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
)

var server = netip.MustParseAddr("100.96.0.53")

func TestSplitTakesOutExactlyOurBlock(t *testing.T) {
	ours := block(server, false)
	for _, original := range []string{
		"", "\n", "nameserver 10.0.0.1\n", "nameserver 10.0.0.1", "# postern: end\nsearch a\n",
		"options ndots:2\r\nnameserver fe80::1%eth0\n\n\n",
	} {
		for name, file := range map[string][]byte{
			"before": append(bytes.Clone(ours), original...),
			"twice":  append(append(bytes.Clone(ours), ours...), original...),
		} {
			got, had, isNew := split(file)
			if string(got) != original || !had || isNew {
				t.Errorf("%s %q: split = %q, %v, %v", name, original, got, had, isNew)
			}
		}
	}
	if got, had, isNew := split(block(server, true)); len(got) != 0 || !had || !isNew {
		t.Errorf("split of a new file = %q, %v, %v", got, had, isNew)
	}
}

func TestSplitLeavesOthersAlone(t *testing.T) {
	for _, file := range []string{
		"nameserver 10.0.0.1\n", "x" + blockBegin + blockEnd, blockBegin + "nameserver 100.96.0.53\n", "# postern: beginner\n",
	} {
		if got, had, _ := split([]byte(file)); string(got) != file || had {
			t.Errorf("split(%q) = %q, %v", file, got, had)
		}
	}
}

func TestNameservers(t *testing.T) {
	got := nameservers([]byte("# nameserver 1.1.1.1\nnameserver 10.0.0.1\n nameserver\tfd00::1 # x\nnameserver nonsense\nnameserver\nnameserver fe80::1%eth0"))
	want := []netip.AddrPort{
		netip.MustParseAddrPort("10.0.0.1:53"), netip.MustParseAddrPort("[fd00::1]:53"), netip.MustParseAddrPort("[fe80::1%eth0]:53"),
	}
	if !slices.Equal(got, want) {
		t.Errorf("nameservers = %v, want %v", got, want)
	}
}

func FuzzSplit(f *testing.F) {
	f.Add([]byte("nameserver 10.0.0.1\n"))
	f.Add(append(block(server, true), "search a\n"...))
	f.Add([]byte(blockBegin + blockEnd + blockBeginNew))
	f.Fuzz(func(t *testing.T, file []byte) {
		nameservers(file)
		original, _, _ := split(file)
		again, had, _ := split(append(block(server, false), original...))
		if !bytes.Equal(again, original) || !had {
			t.Errorf("block before %q comes back as %q", original, again)
		}
	})
}
