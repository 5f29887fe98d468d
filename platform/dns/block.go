package dns

import (
	"bytes"
	"net/netip"
	"strings"
)

// Our part of resolv.conf is a block of whole lines at its beginning. All else in
// the file is somebody else's and never changes, so taking the block out gives the
// original back byte for byte, even when others have written below it meanwhile.
//
//	# postern: begin
//	nameserver 100.96.0.53
//	# postern: end
//	...the original...
const (
	blockBegin = "# postern: begin - removed again when postern stops\n"
	// blockBeginNew also says that there was no file before.
	blockBeginNew = "# postern: begin - new file, removed again when postern stops\n"
	blockEnd      = "# postern: end\n"
)

// maxResolvConf bounds the file: glibc itself reads three servers and six domains.
const maxResolvConf = 64 << 10

// block returns our part of the file.
func block(server netip.Addr, isNew bool) []byte {
	begin := blockBegin
	if isNew {
		begin = blockBeginNew
	}
	return []byte(begin + "nameserver " + server.String() + "\n" + blockEnd)
}

// split returns the file without our blocks. had says that there was one, isNew
// that the file was made by us. A block without end stays: it is not ours as we
// wrote it.
func split(content []byte) (original []byte, had, isNew bool) {
	for _, begin := range []string{blockBegin, blockBeginNew} {
		for {
			start := lineIndex(content, begin)
			if start < 0 {
				break
			}
			length := bytes.Index(content[start:], []byte(blockEnd))
			if length < 0 {
				break
			}
			rest := content[start+length+len(blockEnd):]
			content = append(bytes.Clone(content[:start]), rest...)
			had, isNew = true, isNew || begin == blockBeginNew
		}
	}
	return content, had, isNew
}

// lineIndex finds line at the beginning of a line.
func lineIndex(content []byte, line string) int {
	if bytes.HasPrefix(content, []byte(line)) {
		return 0
	}
	if i := bytes.Index(content, []byte("\n"+line)); i >= 0 {
		return i + 1
	}
	return -1
}

// nameservers lists the servers of a resolv.conf.
func nameservers(content []byte) []netip.AddrPort {
	var out []netip.AddrPort
	for line := range strings.Lines(string(content)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil {
			out = append(out, netip.AddrPortFrom(a, dnsPort))
		}
	}
	return out
}

const dnsPort = 53
