//go:build linux && !uds_portable

package uds_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/udsecho/udsecho/uds"
	"github.com/udsecho/udsecho/uds/internal/testkit"
)

// A load is what clients do while one server after another takes over.
type load struct {
	serve func(l net.Listener) error // returns when the last connection has ended
	ask   func(body string) error    // one request
	end   func()                     // closes idle connections
}

// underLoad runs 24 clients through takeovers and checks that no request fails.
func underLoad(t *testing.T, path string, l load) {
	t.Helper()
	const clients, between = 24, 10 * 24 // requests between two takeovers
	var asked atomic.Int64
	over, tick, left, served := make(chan struct{}), make(chan struct{}, 1), make(chan struct{}), make(chan error)
	start := func() net.Listener {
		listener, err := takeover.Listen(context.Background(), "unix", path)
		check(t, err)
		go func() { served <- l.serve(listener) }()
		return listener
	}
	last := start()
	go func() {
		defer close(left)
		testkit.Go(clients, func(i int) {
			for n := 0; ; n++ {
				select {
				case <-over:
					return
				default:
				}
				if err := l.ask(fmt.Sprintf("request %d of client %d", n, i)); err != nil {
					t.Error(err)
				}
				if asked.Add(1)%between == 0 {
					select {
					case tick <- struct{}{}:
					default:
					}
				}
			}
		})
	}()
	takeovers := testkit.Count(5, 100)
	for range takeovers {
		<-tick
		last = start()
	}
	<-tick
	close(over)
	<-left
	l.end()
	check(t, last.Close())
	for range takeovers + 1 {
		check(t, <-served)
	}
	t.Logf("%d takeovers, %d requests", takeovers, asked.Load())
}

// web is a load of HTTP.
func web(path string, transport *http.Transport, method string) load {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(transport.Protocols != nil)
	transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return uds.Dialer{}.DialContext(ctx, "unix", path)
	}
	transport.MaxIdleConnsPerHost = 100
	client := &http.Client{Transport: transport}
	echo := func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = fmt.Fprintf(w, "%s %s", r.Method, body)
	}
	return load{
		serve: func(l net.Listener) error {
			return serveHTTP(&http.Server{Handler: http.HandlerFunc(echo), Protocols: &protocols}, l, testkit.Patience)
		},
		ask: func(body string) error {
			if method == http.MethodGet {
				body = ""
			}
			request, err := http.NewRequest(method, "http://unix/", strings.NewReader(body))
			if err != nil {
				return err
			}
			response, err := client.Do(request)
			if err != nil {
				return err
			}
			got, err := io.ReadAll(response.Body)
			_ = response.Body.Close()
			if want := method + " " + body; err == nil && string(got) != want {
				err = fmt.Errorf("%s: received %q, not %q", response.Status, got, want)
			}
			return err
		},
		end: client.CloseIdleConnections,
	}
}

// talk is a load of a protocol without requests, an echo: each client connects
// for some messages, and the server keeps a connection until the client closes
// it.
func talk(path string, messages int) load {
	return load{
		serve: func(l net.Listener) error {
			var open sync.WaitGroup
			defer open.Wait()
			for {
				conn, err := l.Accept()
				if errors.Is(err, net.ErrClosed) {
					return nil
				}
				if err != nil {
					return err
				}
				open.Add(1)
				go func() {
					defer open.Done()
					_, _ = io.Copy(conn, conn)
					_ = conn.Close()
				}()
			}
		},
		ask: func(body string) error {
			conn, err := uds.Dial("unix", path)
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			got := make([]byte, len(body))
			for range messages {
				_, err = io.WriteString(conn, body)
				if err == nil {
					_, err = io.ReadFull(conn, got)
				}
				if err == nil && string(got) != body {
					err = fmt.Errorf("received %q, not %q", got, body)
				}
				if err != nil {
					return err
				}
			}
			return nil
		},
		end: func() {},
	}
}

func TestTakeoverUnderLoadLosesNoRequest(t *testing.T) {
	t.Parallel()
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		for kind, transport := range map[string]func() *http.Transport{
			"fresh":      func() *http.Transport { return &http.Transport{DisableKeepAlives: true} },
			"keep-alive": func() *http.Transport { return &http.Transport{} },
			"h2c": func() *http.Transport {
				var protocols http.Protocols
				protocols.SetUnencryptedHTTP2(true)
				return &http.Transport{Protocols: &protocols}
			},
		} {
			t.Run(kind+" "+method, func(t *testing.T) {
				path := dir(t) + "/s"
				underLoad(t, path, web(path, transport(), method))
			})
		}
	}
}

func TestTakeoverUnderLoadLosesNoEcho(t *testing.T) {
	t.Parallel()
	for _, messages := range []int{1, 10} {
		t.Run(fmt.Sprintf("%d a connection", messages), func(t *testing.T) {
			path := dir(t) + "/s"
			underLoad(t, path, talk(path, messages))
		})
	}
}

// A client that keeps its connection forever delays the end only for linger. A
// request in progress is answered for all that.
func TestServeHTTPEndsWithIdleClients(t *testing.T) {
	t.Parallel()
	l, err := uds.Listen("unix", dir(t)+"/s")
	check(t, err)
	began, release := make(chan struct{}), make(chan struct{})
	server := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(began)
			<-release
		}
	})}
	ended := make(chan error, 1)
	go func() { ended <- serveHTTP(server, l, 0) }()

	var conns [2]*bufio.Reader
	for i, path := range []string{"/idle", "/slow"} {
		conn, err := uds.Dial("unix", l.Addr().String())
		check(t, err)
		defer func() { _ = conn.Close() }()
		_, err = io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: unix\r\n\r\n")
		check(t, err)
		conns[i] = bufio.NewReader(conn)
	}
	answer := func(r *bufio.Reader) {
		t.Helper()
		response, err := http.ReadResponse(r, nil)
		check(t, err)
		check(t, response.Body.Close())
		if response.StatusCode != http.StatusOK {
			t.Error(response.Status)
		}
	}
	answer(conns[0])
	<-began
	check(t, l.Close())
	if _, err := conns[0].ReadByte(); err != io.EOF {
		t.Errorf("the idle connection: %v", err)
	}
	close(release)
	answer(conns[1])
	check(t, <-ended)
}
