//go:build linux && !uds_portable

package uds_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/udsecho/udsecho/uds"
)

// serveHTTP serves until another server takes l over, or l is closed. Then it
// asks each client to close its connection, and returns when the last
// connection has ended. The process can exit then, and no request is lost.
//
// http.Server.Shutdown alone loses requests: it drops one that it has just
// read, and closes idle connections on which a request may be in flight. So
// this server closes nothing by itself. It answers each further request with
// "Connection: close", which over HTTP/2 becomes GOAWAY.
//
// linger bounds the wait for clients that keep a connection and send nothing;
// choose it longer than their pauses. What is idle afterwards is closed with
// Shutdown, which waits for requests in progress. serveHTTP replaces
// server.ConnState, and server.Handler must be set.
func serveHTTP(server *http.Server, l net.Listener, linger time.Duration) error {
	var leaving atomic.Bool
	var open sync.WaitGroup
	server.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			open.Add(1)
		case http.StateClosed, http.StateHijacked: // a hijacked connection is its handler's
			open.Done()
		}
	}
	next := server.Handler
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if leaving.Load() {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})

	if err := server.Serve(l); !errors.Is(err, net.ErrClosed) {
		return err
	}
	leaving.Store(true)
	ended := make(chan struct{})
	go func() {
		open.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(linger):
	}
	return server.Shutdown(context.Background())
}

// Replace a running HTTP server without losing a request. Here both servers are
// in one process; a program exits when serveHTTP returns.
func ExampleListenConfig_httpTakeover() {
	path, remove := socketPath()
	defer remove()
	serve := func(answer string) (net.Listener, <-chan error) {
		l, err := uds.ListenConfig{Takeover: true}.Listen(context.Background(), "unix", path)
		if err != nil {
			panic(err)
		}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, answer)
		})}
		ended := make(chan error, 1)
		go func() { ended <- serveHTTP(server, l, time.Minute) }()
		return l, ended
	}
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return uds.Dialer{}.DialContext(ctx, "unix", path)
	}}}
	ask := func() {
		response, err := client.Get("http://unix/")
		if err != nil {
			fmt.Println(err)
			return
		}
		answer, _ := io.ReadAll(response.Body)
		_ = response.Body.Close()
		fmt.Printf("%s\n", answer)
	}

	_, oldEnded := serve("the old server")
	ask()
	l, ended := serve("the new server")
	ask() // the client's connection is still the old server's
	client.CloseIdleConnections()
	fmt.Println(<-oldEnded)
	ask()
	_ = l.Close()
	client.CloseIdleConnections()
	fmt.Println(<-ended)
	// Output:
	// the old server
	// the old server
	// <nil>
	// the new server
	// <nil>
}
