//go:build linux

package system

import (
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-zt/postern/test/netns"
)

const (
	// bigFile is what is copied while something fails.
	bigFile = 200_000_000
	// middle is when it fails: the rest takes longer than any fault.
	middle = bigFile / 4
	// outage is how long the only relay is away.
	outage = 3 * time.Second
)

// TestCopySurvives copies a large file with scp while parts of the product fail. Nothing
// is lost; how long the receiver got nothing is printed.
func TestCopySurvives(t *testing.T) {
	f := newFaulty(t, 2, "relay: false\n")
	f.site.IP("addr", "add", filesAddr+"/32", "dev", "lo")
	f.startSSH()
	f.publish("files", filesAddr+":22")
	f.awaitOnline("relay", 2)
	f.up()
	f.site.must("head -c 200000000 /dev/urandom >/var/lib/big")
	t.Run("broker restarted", f.copyWithoutBroker)
	t.Run("UDP blocked", f.copyWithoutUDP)
	t.Run("relay killed, another is up", f.copyOverStandby)
	t.Run("only relay killed and started again", f.copyOverRestart)
}

// copyWithoutBroker: half of the file goes while the broker is away.
func (f *faulty) copyWithoutBroker(t *testing.T) {
	c := f.download(t)
	c.await(middle)
	f.brokerRun.stop()
	c.await(3 * middle)
	f.startBroker()
	c.finish()
	f.awaitOnline("relay", 2)
	f.awaitOnline("connector", 1)
}

// copyWithoutUDP: the carrier over UDP falls silent and the one over TCP goes on.
func (f *faulty) copyWithoutUDP(t *testing.T) {
	f.awaitLink("over UDP", func(l uplink) bool { return l.Carrier == "quic" && l.Standby != "" })
	c := f.download(t)
	c.await(middle)
	f.blockUDP()
	defer f.unblockUDP()
	c.finish()
	if l := f.link(); l.Carrier != "tls" {
		t.Errorf("the link without UDP: %+v", l)
	}
}

// copyOverStandby: the relay in use dies, the link has a carrier through the other one.
func (f *faulty) copyOverStandby(t *testing.T) {
	f.awaitLink("with a standby", func(l uplink) bool { return l.Standby != "" })
	before := []int{f.relays[0].received(), f.relays[1].received()}
	c := f.upload(t)
	c.await(middle)
	used := f.relays[0]
	if f.relays[1].received()-before[1] > used.received()-before[0] {
		used = f.relays[1]
	}
	used.kill()
	c.finish()
}

// copyOverRestart: there is no other relay; the same one comes back.
func (f *faulty) copyOverRestart(t *testing.T) {
	f.awaitOnline("relay", 1)
	only := f.relays[0]
	if only.run.ended() {
		only = f.relays[1]
	}
	c := f.download(t)
	c.await(middle)
	only.kill()
	<-time.After(outage) // it is the fault
	only.again()
	c.finish()
}

// copying is one scp whose receiving file is watched.
type copying struct {
	t        *testing.T
	from, to string
	scp      *program
	end      chan struct{}
	watch    sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	size    int64
	longest time.Duration
	at      int64 // the size at the longest pause
}

// download copies the big file to the laptop.
func (f *faulty) download(t *testing.T) *copying {
	t.Helper()
	return f.copy(t, "root@"+host("files")+":/var/lib/big", "$HOME/big",
		filepath.Join(f.site.dir, "lib/big"), filepath.Join(f.laptop.dir, "lib/home/big"))
}

// upload copies what was downloaded before to the site.
func (f *faulty) upload(t *testing.T) *copying {
	t.Helper()
	return f.copy(t, "$HOME/big", "root@"+host("files")+":/var/lib/back",
		filepath.Join(f.laptop.dir, "lib/home/big"), filepath.Join(f.site.dir, "lib/back"))
}

// copy starts scp; from and to are the files as the test sees them.
func (f *faulty) copy(t *testing.T, src, dst, from, to string) *copying {
	t.Helper()
	if err := unix.Unlink(to); err != nil && err != unix.ENOENT {
		t.Fatal(err)
	}
	c := &copying{t: t, from: from, to: to, end: make(chan struct{})}
	c.scp = f.ann.on(t).start("exec scp -q "+sshOptions+" "+src+" "+dst, "")
	c.watch.Go(c.meter)
	t.Cleanup(func() {
		c.scp.stop()
		c.stopMeter()
	})
	return c
}

// meter looks at the receiving file and notes the longest time without a change.
func (c *copying) meter() {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	changed := time.Now()
	for {
		select {
		case <-c.end:
			return
		case <-tick.C:
		}
		info, err := os.Stat(c.to)
		if err != nil {
			continue // not there yet
		}
		c.mu.Lock()
		now := time.Now()
		pause := now.Sub(changed)
		if c.size > 0 && c.size < bigFile && pause > c.longest {
			c.longest, c.at = pause, c.size
		}
		if info.Size() != c.size {
			c.size, changed = info.Size(), now
		}
		c.mu.Unlock()
	}
}

func (c *copying) stopMeter() {
	select {
	case <-c.end:
	default:
		close(c.end)
	}
	c.watch.Wait()
}

// await waits until that many bytes have arrived.
func (c *copying) await(n int64) {
	c.t.Helper()
	netns.Wait(c.t, patience, "bytes arrive", func() bool {
		if c.scp.ended() {
			c.t.Fatalf("scp ended before the fault: %v: %s", c.scp.err, c.scp.out)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.size >= n
	})
}

// finish waits for the end of the copy, compares and prints.
func (c *copying) finish() {
	c.t.Helper()
	began := time.Now()
	c.scp.finish()
	c.stopMeter()
	if got, want := checksum(c.t, c.to), checksum(c.t, c.from); got != want {
		c.t.Errorf("the copy's checksum is %x, want %x", got, want)
	}
	c.t.Logf("whole; longest pause at the receiver %s (at %d MB of %d MB; the rest took %s)",
		c.longest.Round(time.Millisecond), c.at/1e6, bigFile/1_000_000, time.Since(began).Round(10*time.Millisecond))
}

func checksum(t *testing.T, name string) (sum [sha256.Size]byte) {
	t.Helper()
	file, err := os.Open(name)
	must(t, err)
	defer file.Close()
	h := sha256.New()
	n, err := io.Copy(h, file)
	must(t, err)
	if n != bigFile {
		t.Errorf("%s has %d bytes", name, n)
	}
	return [sha256.Size]byte(h.Sum(nil))
}
