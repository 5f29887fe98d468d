package scenario

import (
	"bytes"
	"crypto/rand"
	"net"
	"testing"
	"time"

	"github.com/postern-zt/postern/netstack/relay/wire"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/ticket"
)

// goodQuestion is the number of the one question that may be answered.
const goodQuestion = 99

// TestUDPPortAnswersOnlyTickets: nothing that a stranger can send is answered; a valid
// ticket gets its cookie, which is no larger than the question (invariant 5).
func TestUDPPortAnswersOnlyTickets(t *testing.T) {
	l := newLiars(t)
	l.answersOnlyTickets(l.ann.granted("wiki").Connectors[0].Relays[0])
}

// answersOnlyTickets sends to the relay's port what strangers can send, then a valid ticket.
func (l *liars) answersOnlyTickets(path *controlv1.RelayPath) {
	t := l.t
	t.Helper()
	c, err := net.Dial("udp", l.cfg.Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var key ticket.MACKey
	copy(key[:], path.MacKey)
	handle := ticket.Handle(path.Handle)
	good := wire.AppendBind(nil, handle, goodQuestion, nil, path.Ticket, key)
	for _, p := range strangers(good, path.Ticket, handle) {
		if _, err := c.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Write(good); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 2048)
	n, err := c.Read(answer) // datagrams are answered in their order: an earlier answer would come first
	if err != nil {
		t.Fatalf("a valid ticket was not answered: %v", err)
	}
	if counter, _, err := wire.ParseCookie(answer[:n]); err != nil || counter != goodQuestion || n > len(good) {
		t.Errorf("the first answer is for question %d and has %d bytes, the question had %d: %v", counter, n, len(good), err)
	}
}

// strangers are first packets of somebody who has no ticket, or one that is not his.
func strangers(good, sealed []byte, handle ticket.Handle) [][]byte {
	var wrongKey ticket.MACKey
	torn := bytes.Clone(sealed)
	torn[len(torn)-1] ^= 1
	out := [][]byte{
		{0}, {0x01, 0, 0, 0}, bytes.Repeat([]byte{0xc3}, 1200), // nothing, WireGuard, QUIC
		wire.AppendBind(nil, handle, 1, nil, sealed, wrongKey),   // a ticket that was overheard
		wire.AppendBind(nil, handle+1, 1, nil, sealed, wrongKey), // for another link
		wire.AppendBind(nil, handle, 1, nil, torn, wrongKey),
		good[:len(good)-1], good[:8],
	}
	for _, size := range []int{8, 64, 512, 1400} {
		noise := make([]byte, size)
		rand.Read(noise)
		out = append(out, noise)
	}
	return out
}
