package netns_test

import (
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/postern-zt/postern/test/netns"
)

func TestTopologyReachesWhatItShould(t *testing.T) {
	top := netns.NewTopology(t, "wiki", "payroll")

	broker := top.Broker.Listen("0.0.0.0:443")
	peers := make(chan string, 2)
	go func() {
		for {
			c, err := broker.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			peers <- host
			c.Close()
		}
	}()
	for _, c := range []struct {
		from *netns.Host
		want string
	}{{top.Client, top.ClientOutside.String()}, {top.Connector, top.ConnectorOutside.String()}} {
		c.from.WaitTCP(top.BrokerAddr.String()+":443", 5*time.Second)
		if got := <-peers; got != c.want {
			t.Errorf("broker sees %s as %s, want the address of its router %s", c.from.Name, got, c.want)
		}
	}

	app := top.Apps["wiki"].Listen("0.0.0.0:80")
	go func() {
		for {
			c, err := app.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "hello")
			c.Close()
		}
	}()
	addr := top.AppAddrs["wiki"].String() + ":80"
	top.Connector.WaitTCP(addr, 5*time.Second)
	ctx := t.Context()
	if c, err := top.Client.Dial(ctx, "tcp", addr); err == nil {
		c.Close()
		t.Error("client reaches the app without the product")
	}
}

func TestNothingIsLeft(t *testing.T) {
	netns.Require(t)
	var name string
	t.Run("world", func(t *testing.T) {
		w := netns.New(t)
		h := w.Host("a")
		name = h.Namespace()
		if out, err := h.Output("ip", "link"); err != nil || !strings.Contains(out, "lo") {
			t.Errorf("ip link = %q, %v", out, err)
		}
	})
	out, err := exec.Command("ip", "netns", "list").Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(out), name) {
		t.Errorf("namespace %s is left", name)
	}
}
