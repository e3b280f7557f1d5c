package relay_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

func TestForwardCarriesBothDirectionsAtOnce(t *testing.T) {
	t.Parallel()
	size := testkit.Count[int64](16<<20, 1<<30)
	for _, via := range [][]string{{"stream:a", "stream:c"}, {"stream:a", freeTCP(), "stream:c"}, {freeTCP(), freeTCP()}, {"seqpacket:a", "seqpacket:c"}} {
		for _, more := range [][]string{nil, {"--pass-files"}} {
			if more != nil && strings.Contains(strings.Join(via, ""), "tcp:") {
				continue
			}
			t.Run(fmt.Sprint(len(via), via[0][:3], more), func(t *testing.T) {
				d := dir(t)
				result := make(chan error, 1)
				serveAt(t, d, via[len(via)-1], func(conn connection) { result <- exchange(conn, random(2, size+1), random(1, size)) })
				for i := len(via) - 1; i > 0; i-- {
					forward(t, d, via[i-1], via[i], more...)
				}
				check(t, exchange(dialAt(t, d, via[0]), random(1, size), random(2, size+1)))
				check(t, <-result)
			})
		}
	}
}

// HTTP over a Unix socket, rsync and `docker run -i` end a request before its
// answer begins. Here that is when socat has lost the answer: it waits 0.5 s.
func TestForwardWaitsForTheAnswerToAHalfClose(t *testing.T) {
	t.Parallel()
	need(t, "socat", "socat")
	heard, answer := make(chan string, 1), make(chan bool)
	ask := func(d, at string) connection {
		conn := dialAt(t, d, at)
		send(t, conn, "the request")
		check(t, conn.CloseWrite())
		if got := <-heard; got != "the request" {
			t.Errorf("%s: the target heard %q", at, got)
		}
		return conn
	}
	want := func(conn connection, want string) {
		t.Helper()
		if got, err := io.ReadAll(conn); err != nil || string(got) != want {
			t.Errorf("a client got %q, %v", got, err)
		}
	}
	var d string
	var asked []connection
	for _, via := range [][2]string{{freeTCP(), "stream:s"}, {"stream:r", freeTCP()}, {"seqpacket:r", "seqpacket:s"}, {"stream:r", "stream:s"}} {
		d = dir(t)
		serveAt(t, d, via[1], func(conn connection) {
			request, _ := io.ReadAll(conn)
			heard <- string(request)
			<-answer
			_, _ = io.WriteString(conn, "the answer")
		})
		forward(t, d, via[0], via[1])
		asked = append(asked, ask(d, via[0]))
	}
	socat := start(t, d, "socat", "-d", "-d", "UNIX-LISTEN:socat", "UNIX-CONNECT:s")
	socat.Err.Await(t, 1, "listening on")
	want(ask(d, "stream:socat"), "")
	close(answer)
	for _, conn := range asked {
		want(conn, "the answer")
	}
}

func TestForwardRecordsKeepTheirBoundaries(t *testing.T) {
	t.Parallel()
	d := dir(t)
	serveAt(t, d, "seqpacket:s", func(conn connection) {
		// Package net takes an empty record for the end.
		fd, buf := fdOf(t, conn), make([]byte, 1<<20)
		check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 212992))
		for testkit.Ready(t, fd, unix.POLLIN) {
			n, err := unix.Read(fd, buf)
			check(t, err)
			if string(buf[:n]) == "done" {
				return
			}
			check(t, unix.Send(fd, buf[:n], unix.MSG_NOSIGNAL))
		}
	})
	forward(t, d, "seqpacket:r", "seqpacket:s")
	conn := dialAt(t, d, "seqpacket:r")
	fd, buf := fdOf(t, conn), make([]byte, 1<<20)
	check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 212992))
	for _, size := range []int{1, 0, 16, 0, 0, 65536, 212960, 425952} {
		record := make([]byte, size)
		_, _ = rand.Read(record)
		check(t, unix.Send(fd, record, 0))
		testkit.Ready(t, fd, unix.POLLIN)
		n, err := unix.Read(fd, buf)
		check(t, err)
		if !bytes.Equal(buf[:n], record) {
			t.Errorf("a record of %d bytes came back as %d", size, n)
		}
	}
	send(t, conn, "done")
	wantEnd(t, conn)
}

func TestForwardLogsWhyItDisconnects(t *testing.T) {
	t.Parallel()
	d := dir(t)
	serveAt(t, d, "stream:s", echo)
	me := os.Geteuid()
	for _, tt := range []struct{ flag, value, words string }{
		{"--require-uid", fmt.Sprint(me + 1), fmt.Sprintf("stream:s: the server runs as user %d, not %d as --require-uid requires; nothing was sent", me, me+1)},
		{"--max-connections", "1", "connection limit (1) reached"},
		{"--idle-timeout", "10ms", "disconnected a client: nothing has passed for 10ms"},
	} {
		relay := forward(t, d, "stream:r", "stream:s", tt.flag, tt.value)
		conn := dialAt(t, d, "stream:r")
		if tt.flag == "--max-connections" {
			wantEcho(t, conn, "hello")
			wantEnd(t, dialAt(t, d, "stream:r"))
			wantHealthy(t, d, "stream:r")
			check(t, conn.Close())
		} else {
			wantEnd(t, conn)
		}
		relay.Err.Await(t, 1, tt.words)
		if status := relay.Terminate(t); status != 0 {
			t.Errorf("exit status %d", status)
		}
		wantFiles(t, d, "s")
	}
}

func TestForwardServesConnectedClientsAfterSIGTERM(t *testing.T) {
	t.Parallel()
	d := dir(t)
	serveAt(t, d, "stream:s", echo)
	relay := forward(t, d, "stream:r", "stream:s", "--log-level", "debug")
	conn := dialAt(t, d, "stream:r")
	relay.Err.Await(t, 1, "connection from")
	relay.Signal(t, syscall.SIGTERM)
	relay.Err.Await(t, 1, "draining")
	testkit.Await(t, func() error { // its files are removed first
		if _, err := os.Lstat(d + "/r"); err == nil {
			return fmt.Errorf("the socket file is still there")
		}
		return nil
	})
	check(t, exchange(conn, strings.NewReader("hello"), strings.NewReader("hello")))
	if status := relay.Status(t); status != 0 {
		t.Errorf("exit status %d", status)
	}
}

// The bytes in a pipe are owed like all others, at the relay's end too.
func TestForwardDeliversWhatAPipeHolds(t *testing.T) {
	t.Parallel()
	if !sock.CanRefuseRights() {
		t.Skip("before Linux 6.16 the relay copies")
	}
	const size = 8 << 20
	d := dir(t)
	reached, read, result := make(chan bool, 1), make(chan bool), make(chan error, 1)
	serveAt(t, d, "stream:s", func(conn connection) {
		reached <- true
		select {
		case <-read:
		case <-t.Context().Done():
		}
		result <- same(conn, random(1, size))
	})
	relay := forward(t, d, "stream:r", "stream:s")
	conn := dialAt(t, d, "stream:r")
	<-reached
	resume := relay.Pause(t)
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, random(1, size))
		sent <- errors.Join(err, conn.CloseWrite())
	}()
	testkit.Await(t, func() error {
		if n, err := unix.IoctlGetInt(fdOf(t, conn), unix.SIOCOUTQ); n < 128<<10 {
			return errors.Join(fmt.Errorf("%d bytes are waiting", n), err)
		}
		return nil
	})
	resume()
	testkit.Await(t, func() error {
		if !pipeHolds(t, relay.Cmd.Process.Pid) {
			return errors.New("nothing is in a pipe")
		}
		return nil
	})
	relay.Signal(t, syscall.SIGTERM)
	relay.Err.Await(t, 1, "draining")
	close(read)
	check(t, errors.Join(<-sent, <-result))
	wantEnd(t, conn)
	if status := relay.Status(t); status != 0 {
		t.Errorf("exit status %d", status)
	}
}

// pipeHolds reports whether bytes are in a pipe of a process, except its
// standard ones.
func pipeHolds(t *testing.T, pid int) bool {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	check(t, err)
	for _, name := range fds {
		if to, _ := os.Readlink(name); !strings.HasPrefix(to, "pipe:") || slices.Contains([]string{"0", "1", "2"}, filepath.Base(name)) {
			continue
		}
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // it is closed by now
		}
		n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
		check(t, errors.Join(err, unix.Close(fd)))
		if n > 0 {
			return true
		}
	}
	return false
}
