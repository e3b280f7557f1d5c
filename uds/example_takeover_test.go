//go:build linux && !uds_portable

package uds_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/udsecho/udsecho/uds"
)

// Replace a running server without refusing a client. Here both servers are in
// one process.
func ExampleListenConfig_takeover() {
	path, remove := socketPath()
	defer remove()
	serve := func(answer string) (net.Listener, <-chan error) {
		l, err := uds.ListenConfig{Takeover: true}.Listen(context.Background(), "unix", path)
		if err != nil {
			panic(err)
		}
		ended := make(chan error, 1)
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
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
		conn, err := uds.Dial("unix", path)
		if err != nil {
			fmt.Println(err)
			return
		}
		answer, _ := io.ReadAll(conn)
		_ = conn.Close()
		fmt.Printf("%s\n", answer)
	}

	old, oldEnded := serve("the old server")
	ask()
	l, ended := serve("the new server")
	fmt.Println(errors.Is(<-oldEnded, net.ErrClosed))
	ask()
	fmt.Println(old.Close()) // the socket file is not its own any more
	ask()
	fmt.Println(l.Close(), errors.Is(<-ended, net.ErrClosed))
	// Output:
	// the old server
	// true
	// the new server
	// <nil>
	// the new server
	// <nil> true
}
