package link_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/link"
	"github.com/postern-zt/postern/netstack/peer"
	"github.com/postern-zt/postern/proto/frame"
)

// rawPeer speaks the wire by hand: the malicious client.
type rawPeer struct {
	t   *testing.T
	c   carrier.Carrier
	ctl carrier.Stream
}

// raw opens a carrier and a control stream; hello is sent as it is.
func (w *world) raw(t *testing.T, creds *peer.Credentials, hello []byte) *rawPeer {
	t.Helper()
	c, err := w.dialer(&road{name: "raw"}, creds).Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	ctl, err := c.OpenStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = ctl.Write(hello)
	return &rawPeer{t: t, c: c, ctl: ctl}
}

func (p *rawPeer) read(st carrier.Stream) (frame.Header, []byte, error) {
	_ = st.SetReadDeadline(time.Now().Add(20 * time.Second))
	var head [frame.HeaderLen]byte
	if _, err := io.ReadFull(st, head[:]); err != nil {
		return frame.Header{}, nil, err
	}
	h, err := frame.ParseHeader(head[:])
	if err != nil {
		return h, nil, err
	}
	b := make([]byte, h.Length)
	_, err = io.ReadFull(st, b)
	return h, b, err
}

// greeted is raw with a good hello and its answer taken.
func (w *world) greeted(t *testing.T, creds *peer.Credentials, instance frame.InstanceID) *rawPeer {
	t.Helper()
	p := w.raw(t, creds, frame.AppendHello(nil, frame.NewHello(instance, frame.KindDevice)))
	if h, _, err := p.read(p.ctl); err != nil || h.Type != frame.TypeHello {
		t.Fatalf("hello = %+v, %v", h, err)
	}
	return p
}

func (p *rawPeer) present(ref uint64, env []byte) frame.Code {
	p.t.Helper()
	_, _ = p.ctl.Write(frame.AppendPresent(nil, ref, env))
	h, _, err := p.read(p.ctl)
	if err != nil || h.Type != frame.TypePresented {
		p.t.Fatalf("presented = %+v, %v", h, err)
	}
	return h.Code
}

// ask opens a stream with one frame and returns the code of the answer.
func (p *rawPeer) ask(first []byte) (carrier.Stream, frame.Code) {
	p.t.Helper()
	st, err := p.c.OpenStream(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	_, _ = st.Write(first)
	h, _, err := p.read(st)
	if err != nil {
		p.t.Fatal(err)
	}
	return st, h.Code
}

func openFrame(flow, ref uint64, epoch uint32, port uint16) []byte {
	return frame.AppendOpen(nil, frame.Open{Flow: flow, Ref: ref, Epoch: epoch, Network: frame.TCP, Port: port, Window: 65536})
}

func attachFrame(flow, ref uint64, epoch uint32, state frame.Ack) []byte {
	return frame.AppendAttach(nil, frame.Attach{Flow: flow, Ref: ref, Epoch: epoch, State: state})
}

func TestMaliciousClientGetsNothing(t *testing.T) {
	w := newWorld(t, link.Limits{})
	w.handler.app(80, echo)
	victim, thief := newCredentials(t), newCredentials(t)
	instance := frame.NewInstanceID()
	v := w.greeted(t, victim, instance)
	if code := v.present(1, envelope("gnt_v", 80)); code != frame.OK {
		t.Fatal(code)
	}
	if _, code := v.ask(openFrame(5, 1, 1, 80)); code != frame.OK {
		t.Fatal(code)
	}
	dials := w.handler.dialled()
	m := w.greeted(t, thief, instance) // the victim's instance id is no secret
	if code := m.present(1, envelope("gnt_m", 81)); code != frame.OK {
		t.Fatal(code)
	}
	for name, tt := range map[string]struct {
		first []byte
		want  frame.Code
	}{
		"open without a grant":       {openFrame(1, 9, 1, 80), frame.GrantUnknown},
		"open a port not granted":    {openFrame(2, 1, 1, 80), frame.PortNotGranted},
		"open with epoch zero":       {openFrame(3, 1, 0, 81), frame.Protocol},
		"attach to another's flow":   {attachFrame(5, 1, 9, frame.Ack{}), frame.Gone},
		"attach to no flow":          {attachFrame(77, 1, 9, frame.Ack{}), frame.Gone},
		"open with unknown critical": {critical(openFrame(4, 1, 1, 81)), frame.UnsupportedConstraint},
		"open of an unknown network": {network(openFrame(6, 1, 1, 81), 9), frame.Protocol},
	} {
		if _, code := m.ask(tt.first); code != tt.want {
			t.Errorf("%s: %v, want %v", name, code, tt.want)
		}
	}
	if _, code := m.ask(openFrame(2, 1, 2, 80)); code != frame.Closed {
		t.Errorf("reopen of an ended flow: %v, want closed", code)
	}
	if n := w.handler.dialled(); n != dials {
		t.Errorf("the app was dialled %d times for the thief", n-dials)
	}
}

// critical appends field 99, critical, one byte long, to an open.
func critical(b []byte) []byte {
	b[7] += 4
	return append(b, 0xc7, 0x01, 1, 0)
}

func network(b []byte, n byte) []byte {
	b[frame.HeaderLen+12] = n
	return b
}

func TestAttachRules(t *testing.T) {
	w := newWorld(t, link.Limits{})
	w.handler.app(80, echo)
	creds, instance := newCredentials(t), frame.NewInstanceID()
	p := w.greeted(t, creds, instance)
	p.present(1, envelope("gnt_a", 80))
	p.present(2, envelope("gnt_b", 80))
	st, code := p.ask(openFrame(5, 1, 3, 80))
	if code != frame.OK {
		t.Fatal(code)
	}
	if _, code := p.ask(attachFrame(5, 2, 4, frame.Ack{})); code != frame.GrantForeign {
		t.Errorf("attach under another grant: %v", code)
	}
	for _, epoch := range []uint32{0, 2, 3} {
		if _, code := p.ask(attachFrame(5, 1, epoch, frame.Ack{})); code != frame.StaleEpoch {
			t.Errorf("attach of epoch %d: %v, want stale_epoch", epoch, code)
		}
	}
	if _, code := p.ask(attachFrame(5, 1, 4, frame.Ack{})); code != frame.OK {
		t.Errorf("attach of epoch 4: %v", code)
	}
	if _, err := io.ReadFull(st, make([]byte, 1)); err == nil {
		t.Error("the old stream still speaks")
	}
	// An attach that claims bytes which were never sent resets the flow.
	if st, code = p.ask(attachFrame(5, 1, 5, frame.Ack{Received: 1 << 30})); code != frame.OK {
		t.Fatal(code)
	}
	if h, _, err := p.read(st); err != nil || h.Type != frame.TypeRst || h.Code != frame.Protocol {
		t.Errorf("after a false claim: %+v, %v", h, err)
	}
	if rec := w.handler.awaitClosed(t, 1)[0]; rec.Cause != frame.Protocol {
		t.Errorf("cause = %v, want protocol", rec.Cause)
	}
}

func TestBadHellosAreHungUpOn(t *testing.T) {
	w := newWorld(t, link.Limits{})
	good := frame.NewHello(frame.NewInstanceID(), frame.KindDevice)
	future := good
	future.Min, future.Max = 2, 9
	for name, hello := range map[string][]byte{
		"another version": frame.AppendHello(nil, future),
		"no hello":        frame.AppendPing(nil, 1),
		"garbage":         []byte("GET / HTTP/1.1\r\n\r\n"),
	} {
		p := w.raw(t, newCredentials(t), hello)
		if _, _, err := p.read(p.ctl); err == nil {
			t.Errorf("%s was answered", name)
		}
		<-p.c.Done()
	}
	p := w.greeted(t, newCredentials(t), frame.NewInstanceID())
	_, _ = p.ctl.Write(frame.AppendFin(nil, 3)) // a flow's frame on the control stream
	<-p.c.Done()
}

func TestGrantsPerPeerAreBounded(t *testing.T) {
	w := newWorld(t, link.Limits{GrantsPerPeer: 3})
	c := w.client(newCredentials(t), nil, &road{name: "a"})
	for ref := range link.GrantRef(3) {
		present(t, c, "gnt_a", ref)
	}
	if err := c.Present(t.Context(), envelope("gnt_b", 80), 9); frame.CodeOf(err) != frame.TooManyFlows {
		t.Errorf("fourth grant: %v", err)
	}
	w.server.CloseGrant("gnt_a", frame.Revoked)
	present(t, c, "gnt_c", 10)
}

func TestOldestCarrierGivesWay(t *testing.T) {
	w := newWorld(t, link.Limits{CarriersPerPeer: 2})
	creds, instance := newCredentials(t), frame.NewInstanceID()
	var peers []*rawPeer
	for range 3 {
		p := w.greeted(t, creds, instance)
		p.present(1, envelope("gnt_a", 80))
		peers = append(peers, p)
	}
	<-peers[0].c.Done()
	for _, p := range peers[1:] {
		if code := p.present(1, envelope("gnt_a", 80)); code != frame.OK {
			t.Error(code)
		}
	}
}

// A client must not take another connector for its own.
func TestClientRefusesAnotherConnector(t *testing.T) {
	w, other := newWorld(t, link.Limits{}), newWorld(t, link.Limits{})
	c := w.client(newCredentials(t), func(cfg *link.ClientConfig) { cfg.Peer = other.creds.KeyID() }, &road{name: "a"})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := c.Present(ctx, envelope("gnt_a", 80), 1); !errors.Is(err, link.ErrNoCarrier) {
		t.Errorf("Present over a foreign connector = %v", err)
	}
}
