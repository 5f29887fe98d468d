package uplink_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/postern-zt/postern/client/uplink"
	"github.com/postern-zt/postern/netstack/control/controltest"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/control/v1/controlv1connect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// broker pushes what the test writes; each call of Watch takes one list.
type broker struct {
	controlv1connect.UnimplementedDeviceServiceHandler
	streams chan []*controlv1.DevicePush
}

// Watch sends one list, then waits for the caller to go.
func (b *broker) Watch(ctx context.Context, _ *connect.Request[controlv1.WatchRequest], out *connect.ServerStream[controlv1.DevicePush]) error {
	select {
	case list := <-b.streams:
		for _, p := range list {
			if err := out.Send(p); err != nil {
				return err
			}
		}
	case <-ctx.Done():
	}
	<-ctx.Done()
	return nil
}

// sink notes what came.
type sink struct {
	mu   sync.Mutex // guards got
	got  []string
	news chan struct{}
}

func (s *sink) note(text string) {
	s.mu.Lock()
	s.got = append(s.got, text)
	s.mu.Unlock()
	s.news <- struct{}{}
}
func (s *sink) Catalog(c *controlv1.Catalog)     { s.note("catalog " + c.Apps[0].Name) }
func (s *sink) Session(n *controlv1.SessionNews) { s.note("session " + n.State) }
func (s *sink) Ended(e *controlv1.GrantsEnded)   { s.note("ended " + e.GrantIds[0]) }
func (s *sink) ForgetDenials()                   { s.note("forget") }
func (s *sink) Connected()                       { s.note("connected") }

func run(t *testing.T) (*broker, *sink, *uplink.Uplink) {
	t.Helper()
	b := &broker{streams: make(chan []*controlv1.DevicePush, 4)}
	mux := http.NewServeMux()
	mux.Handle(controlv1connect.NewDeviceServiceHandler(b))
	srv := httptest.NewServer(mux)
	s := &sink{news: make(chan struct{}, 64)}
	u := uplink.New(uplink.Config{
		Client: controlv1connect.NewDeviceServiceClient(srv.Client(), srv.URL), Version: "test", Sink: s, Log: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = u.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done; srv.CloseClientConnections(); srv.Close() })
	return b, s, u
}

func (s *sink) await(t *testing.T, want ...string) {
	t.Helper()
	for range want {
		select {
		case <-s.news:
		case <-t.Context().Done():
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if diff := cmp.Diff(want, s.got); diff != "" {
		t.Error(diff)
	}
	s.got = nil
}

func push(offset time.Duration, p *controlv1.DevicePush) *controlv1.DevicePush {
	p.TimeMs = time.Now().Add(-offset).UnixMilli()
	return p
}

func TestNewsReachTheSink(t *testing.T) {
	b, s, u := run(t)
	b.streams <- []*controlv1.DevicePush{
		push(0, &controlv1.DevicePush{News: &controlv1.DevicePush_Session{Session: &controlv1.SessionNews{State: "live"}}}),
		push(0, &controlv1.DevicePush{News: &controlv1.DevicePush_Catalog{Catalog: &controlv1.Catalog{Apps: []*controlv1.CatalogApp{{Name: "wiki"}}}}}),
		push(0, &controlv1.DevicePush{}), // a heartbeat
		push(0, &controlv1.DevicePush{News: &controlv1.DevicePush_Denials{Denials: &controlv1.Denials{}}}),
		push(0, &controlv1.DevicePush{News: &controlv1.DevicePush_Denials{Denials: &controlv1.Denials{Forget: true}}}),
		push(0, &controlv1.DevicePush{News: &controlv1.DevicePush_Ended{Ended: &controlv1.GrantsEnded{GrantIds: []string{"grt_1"}}}}),
	}
	s.await(t, "connected", "session live", "catalog wiki", "forget", "ended grt_1")
	if !u.State().Connected {
		t.Errorf("state %+v", u.State())
	}
}

func TestReconnectIsFollowed(t *testing.T) {
	b, s, _ := run(t)
	b.streams <- []*controlv1.DevicePush{
		push(0, &controlv1.DevicePush{News: &controlv1.DevicePush_Reconnect{Reconnect: &controlv1.Reconnect{AfterMs: 1, SpreadMs: 1}}}),
	}
	b.streams <- []*controlv1.DevicePush{
		push(0, &controlv1.DevicePush{News: &controlv1.DevicePush_Session{Session: &controlv1.SessionNews{State: "ended"}}}),
	}
	s.await(t, "connected", "connected", "session ended")
}

func TestClocks(t *testing.T) {
	for offset, refused := range map[time.Duration]bool{4 * time.Minute: false, -4 * time.Minute: false, time.Hour: true, -time.Hour: true} {
		if err := uplink.CheckClock(offset); errors.Is(err, uplink.ErrClock) != refused {
			t.Errorf("CheckClock(%v) = %v", offset, err)
		}
	}
	b, s, u := run(t)
	b.streams <- []*controlv1.DevicePush{push(4*time.Minute, &controlv1.DevicePush{})}
	s.await(t, "connected")
	if st := u.State(); !st.Connected || st.Offset < 3*time.Minute {
		t.Errorf("4 minutes off: %+v", st)
	}
	if ahead := time.Since(u.Now()); ahead < 3*time.Minute {
		t.Errorf("the broker's time is %v behind ours", ahead)
	}
}

func TestHourOffIsAClearError(t *testing.T) {
	b, s, u := run(t)
	b.streams <- []*controlv1.DevicePush{push(time.Hour, &controlv1.DevicePush{News: &controlv1.DevicePush_Catalog{}})}
	b.streams <- []*controlv1.DevicePush{push(0, &controlv1.DevicePush{})}
	s.await(t, "connected") // of the second stream: nothing of the first was taken
	if !u.State().Connected {
		t.Errorf("state %+v", u.State())
	}
}

func TestProblemsAreSentences(t *testing.T) {
	for err, want := range map[error]string{
		nil: "the broker closed the stream",
		connect.NewError(connect.CodePermissionDenied, errors.New("x")):                       "the broker has blocked or removed this device",
		controltest.Heard(connect.CodePermissionDenied, controlv1.Reason_REASON_BLOCKED, "x"): "an administrator has blocked this device",
		controltest.Heard(connect.CodePermissionDenied, controlv1.Reason_REASON_REMOVED, "x"): "an administrator has removed this device",
		controltest.Heard(connect.CodePermissionDenied, 99, "x"):                              "the broker has blocked or removed this device",
		connect.NewError(connect.CodeUnauthenticated, errors.New("x")):                        "the broker does not accept this device's certificate",
	} {
		if got := uplink.Problem(err); got != want {
			t.Errorf("Problem(%v) = %q", err, got)
		}
	}
}
