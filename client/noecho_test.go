package main_test

import (
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

var networks = map[string]string{"stream": "unix", "seqpacket": "unixpacket"}

// accepted accepts the connection of a client.
func accepted(t *testing.T, l net.Listener) *net.UnixConn {
	t.Helper()
	check(t, l.(*net.UnixListener).SetDeadline(time.Now().Add(testkit.Patience)))
	conn, err := l.Accept()
	check(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn.(*net.UnixConn)
}

// A client that expects no echo ends with its server, however that ends.
func TestNoEchoEndsWithItsServer(t *testing.T) {
	t.Parallel()
	write := func(t *testing.T, w io.Writer, words string) {
		_, err := io.WriteString(w, words)
		check(t, err)
	}
	// The server closes with input that it has not read: its answer is one still.
	unread := func(answer string) func(*testing.T, *testkit.Process, *net.UnixConn) {
		return func(t *testing.T, p *testkit.Process, conn *net.UnixConn) {
			write(t, p.In, "hello")
			check(t, p.In.Close())
			f, err := conn.File() // blocks until there is input
			check(t, err)
			_, _, err = unix.Recvfrom(int(f.Fd()), make([]byte, 1), unix.MSG_PEEK)
			check(t, err)
			check(t, f.Close())
			if answer != "" {
				write(t, conn, answer)
			}
			check(t, conn.Close())
		}
	}
	for name, tt := range map[string]struct {
		serve          func(*testing.T, *testkit.Process, *net.UnixConn)
		status         int
		stdout, stderr string
	}{
		"unread, with an answer":    {unread("answer"), 0, "answer", ""},
		"unread, without an answer": {unread(""), 1, "", "client: the server closed the connection without an answer"},
		"whatever the input":        {func(t *testing.T, _ *testkit.Process, conn *net.UnixConn) { check(t, conn.Close()) }, 0, "", ""},
		"its own direction first, and still reads": {func(t *testing.T, p *testkit.Process, conn *net.UnixConn) {
			write(t, conn, "answer")
			check(t, conn.CloseWrite())
			p.Out.Await(t, 1, "answer")
			write(t, p.In, "late")
			check(t, p.In.Close())
			buf := make([]byte, 100)
			if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "late" {
				t.Errorf("the server received %q, %v", buf[:n], err)
			}
		}, 0, "answer", ""},
	} {
		for kind, network := range networks {
			t.Run(kind+", "+name, func(t *testing.T) {
				t.Parallel()
				d := dir(t)
				l, err := net.Listen(network, d+"/s")
				check(t, err)
				defer func() { check(t, l.Close()) }()
				p := start(t, d, "client", "--no-echo", "--log-level", "warn", "--connect", kind+":s", "--chunk", "10", "-")
				tt.serve(t, p, accepted(t, l))
				if status := p.Status(t); status != tt.status || p.Out.String() != tt.stdout {
					t.Errorf("exit status %d, output %q, error %q", status, &p.Out, &p.Err)
				}
				wantWords(t, p.Err.String(), tt.stderr)
			})
		}
	}
}
