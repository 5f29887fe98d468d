// Package apps is the two small private apps of the demo: a wiki with a page and an endless
// download, and a payroll that nobody in the story may see. Package demo starts them as
// processes of their own; system tests use them too. Serve owns every goroutine.
package apps

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

const (
	// Ready is printed when the app can be reached.
	Ready = "demo app is ready"
	// WikiText is on the wiki's page.
	WikiText = "Welcome to the wiki of Example Corp."
	// PayrollText is on the payroll's page.
	PayrollText = "Salaries of Example Corp."

	headerTimeout = 10 * time.Second
	stopTimeout   = time.Second
	// chunk is written at once, one every chunkEvery: some 60 MB/s.
	chunk      = 64 << 10
	chunkEvery = time.Millisecond
)

// Serve runs the app of this name at addr until ctx ends.
func Serve(ctx context.Context, name, addr string, out io.Writer) error {
	h, err := handler(name)
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: headerTimeout, BaseContext: func(net.Listener) context.Context { return ctx }}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { defer close(stopped); shutdown(ctx, srv) })
	fmt.Fprintln(out, Ready)
	err = srv.Serve(l)
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func shutdown(ctx context.Context, srv *http.Server) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if srv.Shutdown(ctx) != nil {
		srv.Close()
	}
}

func handler(name string) (http.Handler, error) {
	mux := http.NewServeMux()
	switch name {
	case "wiki":
		mux.HandleFunc("GET /{$}", text(WikiText))
		mux.HandleFunc("GET /download", endless)
	case "payroll":
		mux.HandleFunc("GET /{$}", text(PayrollText))
	default:
		return nil, fmt.Errorf("no demo app is named %q", name)
	}
	return mux, nil
}

func text(s string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, s) }
}

// endless sends bytes until somebody ends it.
func endless(w http.ResponseWriter, r *http.Request) {
	tick := time.NewTicker(chunkEvery)
	defer tick.Stop()
	data := make([]byte, chunk)
	for {
		if _, err := w.Write(data); err != nil {
			return
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}
