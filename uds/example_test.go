package uds_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/udsecho/udsecho/uds"
)

// socketPath returns a path in a new directory.
func socketPath() (path string, remove func()) {
	d, err := os.MkdirTemp("", "uds")
	if err != nil {
		panic(err)
	}
	return d + "/s", func() { _ = os.RemoveAll(d) }
}

// Serve HTTP to the members of a group, until SIGTERM. Then requests in
// progress are answered, and the socket file is removed.
func ExampleListen_http() {
	path, remove := socketPath()
	defer remove()

	l, err := uds.ListenConfig{Mode: 0o660}.Listen(context.Background(), "unix", path)
	if err != nil {
		fmt.Println(err)
		return
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprint(w, "hello")
	})}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	stopped := make(chan error, 1)
	context.AfterFunc(ctx, func() { stopped <- server.Shutdown(context.Background()) }) // closes the listener too

	go func() { // a client
		client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return uds.Dialer{}.DialContext(ctx, "unix", path)
		}}}
		if response, err := client.Get("http://unix/"); err == nil {
			body, _ := io.ReadAll(response.Body)
			_ = response.Body.Close()
			fmt.Printf("%s\n", body)
		}
		client.CloseIdleConnections()
		stop() // as a signal does
	}()
	fmt.Println(server.Serve(l), <-stopped)
	_, err = os.Stat(path)
	fmt.Println(errors.Is(err, os.ErrNotExist))
	// Output:
	// hello
	// http: Server closed <nil>
	// true
}

// credKey is the key of the client's credentials in a request's context.
type credKey struct{}

// An HTTP handler that knows which user asks.
func ExamplePeerCred_http() {
	path, remove := socketPath()
	defer remove()
	l, err := uds.Listen("unix", path)
	if err != nil {
		fmt.Println(err)
		return
	}
	server := &http.Server{
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			cred, err := uds.PeerCred(c)
			if err != nil {
				return ctx // the handler finds no credentials
			}
			return context.WithValue(ctx, credKey{}, cred)
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if cred, ok := r.Context().Value(credKey{}).(uds.Cred); !ok || cred.UID != os.Geteuid() {
				http.Error(w, "for this server's own user only", http.StatusForbidden)
				return
			}
			_, _ = fmt.Fprint(w, "welcome")
		}),
	}
	go func() { _ = server.Serve(l) }()
	defer func() { _ = server.Close() }()

	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return uds.Dialer{}.DialContext(ctx, "unix", path)
	}}}
	defer client.CloseIdleConnections()
	response, err := client.Get("http://unix/")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = response.Body.Close() }()
	body, _ := io.ReadAll(response.Body)
	fmt.Printf("%s\n", body)
	// Output: welcome
}

// gRPC takes a listener as it is, and its client connects by itself:
//
//	// server
//	l, err := uds.Listen("unix", "/run/app/socket")
//	err = server.Serve(l)
//
//	// client
//	conn, err := grpc.NewClient("unix:///run/app/socket", …)
//
// For the client's user in a handler, and for an end and a takeover that lose no
// call, copy the [two files of the example].
//
// [two files of the example]: https://github.com/udsecho/udsecho/tree/main/examples/grpc/unixgrpc
func Example_grpc() {}

// Send an open file. The receiver reads it, though it may be in no file system
// that the receiver has.
func ExampleSendFiles() {
	path, remove := socketPath()
	defer remove()
	l, err := uds.Listen("unix", path)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = l.Close() }()
	client, err := uds.Dial("unix", path)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = client.Close() }()
	r, w, err := os.Pipe()
	if err != nil {
		fmt.Println(err)
		return
	}
	_, _ = w.WriteString("read by another process")
	_ = w.Close()
	if err := uds.SendFiles(client, []byte("take this"), r); err != nil {
		fmt.Println(err)
		return
	}
	_ = r.Close()

	server, err := l.Accept()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = server.Close() }()
	words := make([]byte, 100)
	n, files, err := uds.ReceiveFiles(server, words, 1)
	if err != nil {
		fmt.Println(err)
		return
	}
	content, _ := io.ReadAll(files[0])
	_ = files[0].Close()
	fmt.Printf("%s: %s\n", words[:n], content)
	// Output: take this: read by another process
}

// Dial a server that may start later.
func ExampleNotThereYet() {
	path, remove := socketPath()
	defer remove()
	go func() {
		time.Sleep(30 * time.Millisecond)
		l, err := uds.Listen("unix", path)
		if err != nil {
			return
		}
		if conn, err := l.Accept(); err == nil {
			_ = conn.Close()
		}
		_ = l.Close()
	}()

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		conn, err := uds.Dialer{}.DialContext(ctx, "unix", path)
		if err == nil {
			fmt.Println("connected")
			_, _ = conn.Read(make([]byte, 1)) // until the server has closed it
			_ = conn.Close()
			return
		}
		if !uds.NotThereYet(err) {
			fmt.Println(err)
			return
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			fmt.Println(ctx.Err())
			return
		}
	}
	// Output: connected
}
