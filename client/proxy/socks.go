package proxy

import (
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"slices"
)

// Reply is the result code of RFC 1928 section 6.
type Reply byte

// The replies that are used.
const (
	Succeeded               Reply = 0
	GeneralFailure          Reply = 1
	NotAllowed              Reply = 2
	NetworkUnreachable      Reply = 3
	HostUnreachable         Reply = 4
	ConnectionRefused       Reply = 5
	TTLExpired              Reply = 6
	CommandNotSupported     Reply = 7
	AddressTypeNotSupported Reply = 8
)

const (
	version        = 5
	methodNone     = 0
	methodNoMatch  = 0xff
	commandConnect = 1
	commandUDP     = 3
	typeIPv4       = 1
	typeName       = 3
	typeIPv6       = 4
)

// Errors of the parser.
var (
	errVersion = errors.New("not SOCKS version 5")
	errMethod  = errors.New("the program insists on a password")
	errAddress = errors.New("malformed address")
)

// request is what a program asks for. host is empty when it gave an address.
type request struct {
	command byte
	host    string
	addr    netip.Addr
	port    uint16
}

// greet speaks the part before the reply. It reads no byte more than that, because what
// follows belongs to the app.
func greet(rw io.ReadWriter) (request, error) {
	var head [2]byte
	if _, err := io.ReadFull(rw, head[:]); err != nil {
		return request{}, err
	}
	if head[0] != version {
		return request{}, errVersion
	}
	methods := make([]byte, head[1])
	if _, err := io.ReadFull(rw, methods); err != nil {
		return request{}, err
	}
	if !slices.Contains(methods, methodNone) {
		_, _ = rw.Write([]byte{version, methodNoMatch}) // it is refused in any case
		return request{}, errMethod
	}
	if _, err := rw.Write([]byte{version, methodNone}); err != nil {
		return request{}, err
	}
	return readRequest(rw)
}

// readRequest reads VER CMD RSV and an address.
func readRequest(r io.Reader) (request, error) {
	var head [3]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return request{}, err
	}
	if head[0] != version {
		return request{}, errVersion
	}
	req, err := readAddress(r)
	req.command = head[1]
	return req, err
}

// readAddress reads ATYP ADDR PORT.
func readAddress(r io.Reader) (request, error) {
	var one [1]byte
	if _, err := io.ReadFull(r, one[:]); err != nil {
		return request{}, err
	}
	var length int
	switch one[0] {
	case typeIPv4:
		length = 4
	case typeIPv6:
		length = 16
	case typeName:
		var n [1]byte
		if _, err := io.ReadFull(r, n[:]); err != nil {
			return request{}, err
		}
		length = int(n[0])
	default:
		return request{}, errAddress
	}
	b := make([]byte, length+2)
	if _, err := io.ReadFull(r, b); err != nil {
		return request{}, err
	}
	req := request{port: binary.BigEndian.Uint16(b[length:])}
	if one[0] == typeName {
		return named(req, string(b[:length]))
	}
	req.addr, _ = netip.AddrFromSlice(b[:length])
	return req, nil
}

// named takes a name; an address that was written as a name is an address.
func named(req request, name string) (request, error) {
	if name == "" {
		return request{}, errAddress
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c >= 0x7f {
			return request{}, errAddress
		}
	}
	if a, err := netip.ParseAddr(name); err == nil {
		req.addr = a
		return req, nil
	}
	req.host = name
	return req, nil
}

// writeReply answers a request; bound is the zero address unless it matters.
func writeReply(w io.Writer, r Reply, bound netip.AddrPort) error {
	_, err := w.Write(appendAddress([]byte{version, byte(r), 0}, bound))
	return err
}

// appendAddress appends ATYP ADDR PORT of an address.
func appendAddress(b []byte, a netip.AddrPort) []byte {
	addr := a.Addr()
	if !addr.IsValid() {
		addr = netip.IPv4Unspecified()
	}
	if addr.Is4() {
		b = append(b, typeIPv4)
	} else {
		b = append(b, typeIPv6)
	}
	b = append(b, addr.AsSlice()...)
	return binary.BigEndian.AppendUint16(b, a.Port())
}
