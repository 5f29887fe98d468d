//go:build linux

package system

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-zt/postern/test/netns"
)

const (
	echoAddr = "10.0.0.9"
	// flowsEach is how many flows are open over TCP, and over UDP.
	flowsEach = 100
	// lease is short, so that a test sees two of them end.
	lease = 2 * time.Second
)

// What the kernel tells a program whose flow ends, and one that is not let in. The ICMP
// message "communication prohibited" reads as no route.
var (
	endOf     = map[string]syscall.Errno{"tcp": syscall.ECONNRESET, "udp": syscall.EHOSTUNREACH}
	refusalOf = map[string]syscall.Errno{"tcp": syscall.ECONNREFUSED, "udp": syscall.EHOSTUNREACH}
)

// TestRevocationEndsEverything takes the permission away while 100 TCP connections and 100
// UDP associations talk, over either carrier. Each of them dies at the app and the local
// program hears of it. Then nothing is let in until the permission is given again: through
// two leases, a restart of the connector and one of the broker (invariant 7).
func TestRevocationEndsEverything(t *testing.T) {
	f := newFaulty(t, 0, "lease: "+lease.String()+"\n")
	f.site.IP("addr", "add", echoAddr+"/32", "dev", "lo")
	app := serveEcho(t, f.site, echoAddr+":7")
	f.publish("echo", echoAddr+":7", echoAddr+":7/udp")
	f.up()
	addr, _, _ := strings.Cut(f.ann.must("getent ahostsv4 "+host("echo")), " ")
	s := &revocation{faulty: f, app: app, addr: net.JoinHostPort(addr, "7"), port: triesFrom}
	t.Run("quic", func(t *testing.T) { s.story(t, "quic") })
	f.blockUDP()
	t.Run("tls", func(t *testing.T) { s.story(t, "tls") })
}

// revocation is one app and what happens to it.
type revocation struct {
	*faulty
	app  *echoApp
	addr string // of the app, as a program on the laptop sees it
	// port is where the last try came from. Tries have ports of their own: an address that
	// was refused hears so for a while.
	port uint16
}

// triesFrom is the first port of tries, below those that the kernel gives.
const triesFrom = 10_000

// tryEvery is the pause between two tries.
const tryEvery = 20 * time.Millisecond

func (s *revocation) story(t *testing.T, carrier string) {
	s.letIn(t)
	s.awaitLink("over "+carrier, func(l uplink) bool { return l.Carrier == carrier })
	s.app.forget()
	flows := s.openAll(t)
	if l := s.link(); l.Carrier != carrier {
		t.Fatalf("the flows go over %+v", l)
	}
	began := time.Now()
	s.broker.must("postern admin rule deny " + employee + " echo --name stop")
	s.allDead(t, carrier, flows, began)
	s.staysOut(t)
	s.broker.must("postern admin rule delete stop")
	s.letIn(t)
}

// openAll opens all flows at once and waits until each has heard the app.
func (s *revocation) openAll(t *testing.T) []*talker {
	t.Helper()
	flows, errs := make([]*talker, 2*flowsEach), make([]error, 2*flowsEach)
	var wg sync.WaitGroup
	for i := range flows {
		wg.Go(func() { flows[i], errs[i] = s.talk(t, [2]string{"tcp", "udp"}[i%2], s.addr) })
	}
	wg.Wait()
	must(t, errors.Join(errs...))
	for i, k := range flows {
		netns.Wait(t, patience, "an answer on every flow", func() bool {
			if _, err := k.end(); err != nil {
				t.Fatalf("%s flow %d ended before the revocation: %v", k.network, i, err)
			}
			return k.alive()
		})
	}
	return flows
}

// allDead waits until every flow is dead at the app and at the program, and prints when.
func (s *revocation) allDead(t *testing.T, carrier string, flows []*talker, began time.Time) {
	t.Helper()
	after := map[string][]time.Duration{}
	for i, k := range flows {
		netns.Wait(t, patience, k.network+" program hears of the end", func() bool { _, err := k.end(); return err != nil })
		at, err := k.end()
		after[k.network+" program"] = append(after[k.network+" program"], at.Sub(began))
		if want := endOf[k.network]; !errors.Is(err, want) {
			t.Fatalf("%s program %d heard %v, want %v", k.network, i, err, want)
		}
	}
	netns.Wait(t, patience, "every connection at the app ends", func() bool {
		for key, h := range s.app.snapshot() {
			if ofNetwork(key, "tcp") && h.ended.IsZero() {
				return false
			}
		}
		return true
	})
	count := map[string]int{}
	for key, h := range s.app.snapshot() {
		network := key[:3]
		count[network]++
		after[network+" app"] = append(after[network+" app"], h.last.Sub(began))
	}
	if count["tcp"] != flowsEach || count["udp"] != flowsEach {
		t.Errorf("the app saw %v flows, want %d of each", count, flowsEach)
	}
	for _, who := range []string{"tcp app", "tcp program", "udp app", "udp program"} {
		t.Logf("%s, %d flows: from the command to the last byte or the end at the %s: %s", carrier, flowsEach, who, spread(after[who]))
	}
}

// staysOut tries for two leases, after a restart of the connector and after one of the
// broker. The app must hear nothing.
func (s *revocation) staysOut(t *testing.T) {
	t.Helper()
	s.app.forget()
	tries := 0
	tick := time.NewTicker(tryEvery)
	defer tick.Stop()
	for began := time.Now(); time.Since(began) < 2*lease; tries++ {
		s.refused(t, "while leases pass")
		<-tick.C
	}
	s.siteRun.stop()
	s.startConnector()
	s.awaitOnline("connector", 1)
	s.refused(t, "after a restart of the connector")
	s.brokerRun.stop()
	s.startBroker()
	s.awaitOnline("connector", 1)
	s.refused(t, "after a restart of the broker")
	t.Logf("refused %d times within %s, and after the restarts", tries, 2*lease)
	if seen := s.app.snapshot(); len(seen) != 0 {
		t.Errorf("the app was reached by %d flows after the revocation", len(seen))
	}
}

// refused tries both networks once; each has to end with an error, not with silence.
func (s *revocation) refused(t *testing.T, when string) {
	t.Helper()
	for _, network := range []string{"tcp", "udp"} {
		if err := s.try(t, network); !errors.Is(err, refusalOf[network]) {
			t.Fatalf("%s %s: %v, want %v", network, when, err, refusalOf[network])
		}
	}
}

// try sends a message to the app and reads the answer.
func (s *revocation) try(t *testing.T, network string) error {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s.port++
	c, err := s.laptop.dialAs(ctx, nobody, network, s.port, s.addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(stopTimeout)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("allowed?")); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 64))
	return err
}

// letIn waits until both networks work.
func (s *revocation) letIn(t *testing.T) {
	t.Helper()
	netns.Wait(t, patience, "the app can be used", func() bool { return s.try(t, "tcp") == nil && s.try(t, "udp") == nil })
}
