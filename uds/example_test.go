package uds_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds"
)

// socketIn returns an address in a new directory.
func socketIn() (address string, remove func()) {
	dir, err := os.MkdirTemp("", "uds")
	if err != nil {
		panic(err)
	}
	return "stream:" + dir + "/s", func() { _ = os.RemoveAll(dir) }
}

// Serve HTTP on a socket to which only the group can connect.
func ExampleListen() {
	address, remove := socketIn()
	defer remove()

	l, err := uds.Listen(context.Background(), address, uds.ListenConfig{Mode: 0o660})
	if err != nil {
		fmt.Println(err)
		return
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprint(w, "hello")
	})}
	go func() { _ = server.Serve(l) }()
	defer func() { _ = server.Close() }()

	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return uds.Dial(ctx, address, uds.DialConfig{})
	}}}
	defer client.CloseIdleConnections()
	response, err := client.Get("http://unix/")
	if err != nil {
		fmt.Println(err)
		return
	}
	body, _ := io.ReadAll(response.Body)
	_ = response.Body.Close()
	fmt.Printf("%s\n", body)

	_, err = uds.Listen(context.Background(), address, uds.ListenConfig{})
	fmt.Println(errors.Is(err, uds.ErrInUse)) // a second server fails
	// Output:
	// hello
	// true
}

// Accept only connections of this process's own user, as the kernel reports
// it.
func ExamplePeerCred() {
	address, remove := socketIn()
	defer remove()
	l, err := uds.Listen(context.Background(), address, uds.ListenConfig{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = l.Close() }()
	client, err := uds.Dial(context.Background(), address, uds.DialConfig{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = client.Close() }()

	conn, err := l.Accept()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = conn.Close() }()
	cred, err := uds.PeerCred(conn.(syscall.Conn))
	if err != nil || !uds.IsOwnUser(cred.Uid) {
		fmt.Println("refused")
		return
	}
	fmt.Println("welcome")
	// Output: welcome
}

// Send a descriptor: the receiver reads the file, which need not exist in its
// own file system.
func ExampleConn_SendFiles() {
	client, server, err := uds.Pair()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = client.Close() }()
	defer func() { _ = server.Close() }()
	r, w, err := os.Pipe()
	if err != nil {
		fmt.Println(err)
		return
	}
	_, _ = w.WriteString("read by another process")
	_ = w.Close()

	if err := client.SendFiles([]byte("take this"), int(r.Fd())); err != nil {
		fmt.Println(err)
		return
	}
	_ = r.Close()

	words := make([]byte, 100)
	n, fds, _, err := uds.ReceiveFiles(int(server.Fd()), words, 1)
	if err != nil {
		fmt.Println(err)
		return
	}
	f := os.NewFile(uintptr(fds[0]), "received")
	content, _ := io.ReadAll(f)
	_ = f.Close()
	fmt.Printf("%s: %s\n", words[:n], content)
	// Output: take this: read by another process
}

// Replace a running server without refusing a client. Here both servers are in
// one process.
func ExampleListen_takeover() {
	address, remove := socketIn()
	defer remove()
	serve := func(answer string) (net.Listener, <-chan error) {
		l, err := uds.Listen(context.Background(), address, uds.ListenConfig{Takeover: true})
		if err != nil {
			panic(err)
		}
		ended := make(chan error, 1)
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					_ = l.Close()
					ended <- err // net.ErrClosed: another server has taken over, or Close was called
					return
				}
				_, _ = io.WriteString(conn, answer)
				_ = conn.Close()
			}
		}()
		return l, ended
	}
	ask := func() {
		conn, err := uds.Dial(context.Background(), address, uds.DialConfig{})
		if err != nil {
			fmt.Println(err)
			return
		}
		answer, _ := io.ReadAll(conn)
		_ = conn.Close()
		fmt.Printf("%s\n", answer)
	}

	_, oldEnded := serve("the old server")
	ask()
	l, ended := serve("the new server")
	fmt.Println(errors.Is(<-oldEnded, net.ErrClosed))
	ask()
	_ = l.Close()
	fmt.Println(<-ended != nil)
	// Output:
	// the old server
	// true
	// the new server
	// true
}

// Dial a server that may start later.
func ExampleNotThereYet() {
	address, remove := socketIn()
	defer remove()
	go func() {
		time.Sleep(30 * time.Millisecond)
		l, err := uds.Listen(context.Background(), address, uds.ListenConfig{})
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
		conn, err := uds.Dial(ctx, address, uds.DialConfig{})
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

// An event loop uses the descriptor itself.
func ExampleListenConfig_Listen() {
	address, remove := socketIn()
	defer remove()
	a, err := uds.ParseAddr(address)
	if err != nil {
		fmt.Println(err)
		return
	}
	socket, err := uds.ListenConfig{Mode: 0o660}.Listen(a)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = socket.Close() }()
	_, _, err = unix.Accept(socket.FD())
	fmt.Println(err)
	// Output: resource temporarily unavailable
}
