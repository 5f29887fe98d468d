package scenario

import (
	"bytes"
	"io"
	"testing"
	"time"

	"github.com/postern-zt/postern/broker"
	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/flow"
)

// fileSize is more than all buffers between app and reader hold, so that a reader who
// stops has most of it still ahead.
const fileSize = 48 << 20

// TestFaultDownload: when the only relay restarts in the middle of a download, alone or with
// the broker around it, the download goes on, every byte is right, and the app sees one
// connection. That a second relay takes over is told by TestRelayKilledInADownload.
func TestFaultDownload(t *testing.T) {
	for _, kind := range bothCarriers {
		t.Run("only relay restarted, over "+string(kind), func(t *testing.T) { onlyRelayRestarted(t, kind) })
		t.Run("broker with the relay in it restarted, over "+string(kind), func(t *testing.T) { relayingBrokerRestarted(t, kind) })
	}
}

func onlyRelayRestarted(t *testing.T, kind carrier.Kind) {
	off := false
	w, files := newWorldWith(t, func(c *broker.Config) { c.Relay = &off }, "ann"), source(t, fileSize)
	r := w.relayNode("relay-1")
	w.serveFiles(files)
	dl := w.fetch(kind, files)
	dl.read(fileSize / 3)
	r.stop()
	r.start()
	dl.rest(files)
}

func relayingBrokerRestarted(t *testing.T, kind carrier.Kind) {
	w, files := newWorld(t, "ann"), source(t, fileSize)
	w.serveFiles(files)
	dl := w.fetch(kind, files)
	dl.read(fileSize / 3)
	w.stopBroker()
	w.startBroker()
	dl.rest(files)
}

// serveFiles publishes an app that ann may use, behind a connector.
func (w *world) serveFiles(files *app) {
	w.t.Helper()
	s := w.connector("berlin-1", w.site("berlin"))
	w.publish("files", "berlin", files.target())
	w.allow("ann", "files")
	s.await()
}

// fetch is one download under way.
type fetch struct {
	t    testing.TB
	tn   *tunnel
	flow *flow.Flow
	want io.Reader
	got  int64
}

func (w *world) fetch(kind carrier.Kind, files *app) *fetch {
	w.t.Helper()
	d := w.device("ann", "ann-laptop")
	tn, ref, _ := d.open("files", kind)
	dl := &fetch{t: w.t, tn: tn, flow: tn.tcp(ref, files.port()), want: io.LimitReader(&pattern{}, fileSize)}
	w.t.Cleanup(func() { dl.flow.Close() })
	return dl
}

// read reads n bytes and compares them with what the app sends.
func (dl *fetch) read(n int64) {
	dl.t.Helper()
	got, want := make([]byte, 64<<10), make([]byte, 64<<10)
	for end := dl.got + n; dl.got < end; {
		part := min(int64(len(got)), end-dl.got)
		if err := dl.flow.SetReadDeadline(time.Now().Add(patience)); err != nil {
			dl.t.Fatal(err)
		}
		if _, err := io.ReadFull(dl.flow, got[:part]); err != nil {
			dl.t.Fatalf("after %d bytes: %v", dl.got, err)
		}
		if _, err := io.ReadFull(dl.want, want[:part]); err != nil {
			dl.t.Fatal(err)
		}
		if !bytes.Equal(got[:part], want[:part]) {
			dl.t.Fatalf("wrong bytes behind %d", dl.got)
		}
		dl.got += part
	}
}

// rest reads to the end and says how long the next byte took.
func (dl *fetch) rest(files *app) {
	dl.t.Helper()
	if _, sent := files.bytes(); sent != 0 {
		dl.t.Errorf("the app had sent everything before the fault")
	}
	began := time.Now()
	dl.read(8 << 20) // more than was in memory here when it happened
	dl.t.Logf("8 MiB after %s", time.Since(began).Round(time.Millisecond))
	dl.read(fileSize - dl.got)
	if n, err := dl.flow.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		dl.t.Errorf("behind the end: %d bytes, %v", n, err)
	}
	if files.hits() != 1 {
		dl.t.Errorf("the app saw %d connections", files.hits())
	}
}
