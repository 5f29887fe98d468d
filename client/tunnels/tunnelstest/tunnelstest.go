// Package tunnelstest makes flows without relays for tests of what stands in front of
// client/tunnels: the far end of each is an echo. Only tests import it. All functions are
// safe for concurrent use.
package tunnelstest

import (
	"io"
	"net"
	"sync"
	"testing"

	"github.com/postern-zt/postern/netstack/flow"
	"github.com/postern-zt/postern/proto/frame"
)

// stream makes a TCP connection the stream of a carrier.
type stream struct{ *net.TCPConn }

// Abort resets both directions.
func (s stream) Abort() {
	_ = s.SetLinger(0)
	_ = s.Close()
}

// Echo returns one end of a flow; whatever is written comes back. It ends with the test.
func Echo(t testing.TB) *flow.Flow {
	t.Helper()
	memory := flow.NewMemory(0)
	carriers, app := pair(t), pair(t)
	near, far := flow.New(flow.Config{ID: 1, Epoch: 1, Memory: memory}), flow.New(flow.Config{ID: 1, Epoch: 1, Memory: memory})
	var work sync.WaitGroup
	for i, f := range []*flow.Flow{near, far} {
		a := f.Start(stream{carriers[i]}, memory.Window())
		work.Go(func() { _ = f.Serve(a) })
	}
	work.Go(func() { far.Splice(app[0]) })
	work.Go(func() {
		_, _ = io.Copy(app[1], app[1])
		_ = app[1].CloseWrite()
	})
	t.Cleanup(func() {
		near.Abort(frame.Reset)
		far.Abort(frame.Reset)
		for _, c := range append(carriers[:], app[:]...) {
			c.Close()
		}
		work.Wait()
		near.Wait()
		far.Wait()
	})
	return near
}

// pair returns two ends of a loopback connection.
func pair(t testing.TB) [2]*net.TCPConn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return [2]*net.TCPConn{a.(*net.TCPConn), b.(*net.TCPConn)}
}
