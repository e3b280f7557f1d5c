package main_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

// fill sends until no more bytes are taken, for a while, and returns their
// number.
func fill(t *testing.T, conn halfCloser) (sent int) {
	t.Helper()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	check(t, err)
	piece, quiet := make([]byte, 64<<10), 0
	testkit.Await(t, func() error {
		n := 0
		_ = raw.Control(func(fd uintptr) { n, _ = unix.SendmsgN(int(fd), piece, nil, nil, unix.MSG_DONTWAIT) })
		if n > 0 {
			sent += n
			quiet = 0
		} else if quiet++; quiet == 3 {
			return nil
		}
		return errors.New("more bytes are taken")
	})
	return sent
}

// The target is missing, late, full, of another type, or ends in the middle.
// Either side half-closes, never reads, or resets. 1,000 clients connect at
// once.
func TestF48RelayBetweenBadEnds(t *testing.T) {
	t.Parallel()
	count := 0
	refused := func(d, words string) { // a client is disconnected, and the log has the reason
		t.Helper()
		count++
		relay := forward(t, d, "stream:r", "stream:s")
		conn := dialAt(t, d, "stream:r")
		if n, err := conn.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("%d bytes, %v", n, err)
		}
		relay.Err.Await(t, 1, words)
		relay.Terminate(t)
	}
	refused(dir(t), "disconnected a client: connect stream:s: no such file or directory (ENOENT): nothing is at s")
	d := dir(t)
	packets, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: d + "/s", Net: "unixgram"})
	check(t, err)
	refused(d, "disconnected a client: connect stream:s: protocol wrong type for socket (EPROTOTYPE): s is a datagram socket")
	check(t, packets.Close())
	refused(d, "disconnected a client: connect stream:s: connection refused (ECONNREFUSED)")

	t.Run("late", func(t *testing.T) {
		count++
		d := dir(t)
		relay := forward(t, d, "stream:r", "stream:s", "--retry", "20s")
		var both errgroup.Group
		conn := dialAt(t, d, "stream:r")
		var got [sha256.Size]byte
		both.Go(func() (err error) { got, err = exchange(conn, stream(1, 1<<20)); return err })
		relay.Err.Await(t, 1, "connection from")
		serveAt(t, d, "stream:s", func(conn halfCloser) { _, _ = io.Copy(conn, conn) })
		check(t, both.Wait())
		if got != sumOf(t, stream(1, 1<<20)) {
			t.Error("received other bytes")
		}
	})

	t.Run("full", func(t *testing.T) {
		count++
		d := dir(t)
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		check(t, err)
		defer func() { _ = unix.Close(fd) }()
		check(t, unix.Bind(fd, &unix.SockaddrUnix{Name: d + "/s"}))
		check(t, unix.Listen(fd, 0))
		dialAt(t, d, "stream:s") // it waits, and the next one does not fit
		relay := forward(t, d, "stream:r", "stream:s")
		conn := dialAt(t, d, "stream:r")
		relay.Err.Await(t, 1, "the target's backlog is full: its clients wait until it accepts")
		check(t, conn.Close())
		relay.Err.Await(t, 1, "the client left before the target was reached")
	})

	t.Run("goes in the middle", func(t *testing.T) {
		for _, via := range [][2]string{{"stream:r", "stream:s"}, {freeTCP(), "stream:s"}, {"stream:r", freeTCP()}, {freeTCP(), freeTCP()}} {
			count += 2
			d := dir(t)
			serveAt(t, d, via[1], func(conn halfCloser) {
				_, _ = io.ReadFull(conn, make([]byte, 10))
				_, _ = io.Copy(conn, stream(1, 300_000))
				if tcp, ok := conn.(*net.TCPConn); ok {
					_, _ = io.Copy(io.Discard, tcp) // otherwise the kernel discards the bytes in flight
				}
			})
			relay := forward(t, d, via[0], via[1])
			conn := dialAt(t, d, via[0])
			_, err := io.WriteString(conn, "0123456789")
			check(t, err)
			if via[1][:3] == "tcp" {
				check(t, conn.CloseWrite())
			}
			if sumOf(t, conn) != sumOf(t, stream(1, 300_000)) {
				t.Errorf("%v: other bytes came", via)
			}
			check(t, conn.Close())
			relay.Err.Await(t, 1, "connection ended")

			// The client resets, and so does the relay if both are TCP. A Unix
			// socket that was closed with bytes unread has only ended.
			heard := make(chan error, 1)
			at := strings.Replace(via[1], ":s", ":s2", 1)
			if via[1][:3] == "tcp" {
				at = freeTCP()
			}
			serveAt(t, d, at, func(conn halfCloser) {
				_, _ = io.ReadFull(conn, make([]byte, 10))
				_, _ = io.WriteString(conn, "not read")
				_, err := io.Copy(io.Discard, conn)
				heard <- err
			})
			from := strings.Replace(via[0], ":r", ":r2", 1)
			if via[0][:3] == "tcp" {
				from = freeTCP()
			}
			relay = forward(t, d, from, at)
			conn = dialAt(t, d, from)
			_, err = io.WriteString(conn, "0123456789")
			check(t, err)
			relay.Err.Await(t, 1, "connection from")
			check(t, awaitReadable(conn.(syscall.Conn)))
			text, want := "the client closed its socket without reading everything", error(nil)
			if tcp, ok := conn.(*net.TCPConn); ok {
				check(t, tcp.SetLinger(0))
				text = "lost the connection to the client: connection reset by peer"
				if via[1][:3] == "tcp" {
					want = unix.ECONNRESET
				}
			}
			check(t, conn.Close()) // with bytes unread
			relay.Err.Await(t, 1, text)
			if err := <-heard; !errors.Is(err, want) {
				t.Errorf("%v: the target got %v", via, err)
			}
		}
	})

	var peak int
	t.Run("never reads", func(t *testing.T) {
		const clients = 100
		count += clients
		d := dir(t)
		stop := make(chan bool)
		serveAt(t, d, "stream:s", func(conn halfCloser) {
			buf := make([]byte, 1)
			if _, _ = io.ReadFull(conn, buf); buf[0] == 'e' {
				_, _ = io.Copy(conn, conn)
				return
			}
			<-stop
		})
		// Its memory is measured.
		relay := start(t, d, testkit.Plain(t, "client"), "forward", "--listen", "stream:r", "--connect", "stream:s")
		relay.Err.Await(t, 1, "waiting for a ")
		idle := relay.StatusNumber(t, "VmHWM")
		direct := fill(t, dialAt(t, d, "stream:s"))
		sent := 0
		for range clients {
			sent += fill(t, dialAt(t, d, "stream:r"))
		}
		conn := dialAt(t, d, "stream:r")
		_, err := io.WriteString(conn, "e")
		check(t, err)
		got, err := exchange(conn, stream(3, 1<<20)) // another client is served meanwhile
		if check(t, err); got != sumOf(t, stream(3, 1<<20)) {
			t.Error("received other bytes")
		}
		peak = relay.StatusNumber(t, "VmHWM")
		close(stop)
		// The kernel's buffers for two connections, and the relay's own.
		if each := sent / clients; each > 4*direct {
			t.Errorf("%d bytes of each were taken, without the relay %d", each, direct)
		}
		if grown := (peak - idle) << 10; grown > sent/2 {
			t.Errorf("the relay grew by %d bytes, with %d from clients of which the kernel holds the most", grown, sent)
		}
	})

	t.Run("1000 at once", func(t *testing.T) {
		const clients = 1000
		count += clients
		d := dir(t)
		serveAt(t, d, "stream:s", func(conn halfCloser) { _, _ = io.Copy(conn, conn) })
		relay := forward(t, d, "stream:r", "stream:s", "--max-per-user", "0", "--retry", "10s")
		want := sumOf(t, stream(4, 50_000))
		var all errgroup.Group
		gate := make(chan bool)
		for range clients {
			conn := dialAt(t, d, "stream:r")
			all.Go(func() error {
				<-gate
				got, err := exchange(conn, stream(4, 50_000))
				if err == nil && got != want {
					err = errors.New("received other bytes")
				}
				return err
			})
		}
		close(gate)
		check(t, all.Wait())
		relay.Terminate(t)
		if text := relay.Err.String(); strings.Contains(text, "WRN") || strings.Count(text, "connection ended") != clients {
			t.Errorf("the relay wrote:\n%s", text)
		}
	})
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F48", Done: "targets that are missing, stale, late, full, of another type, or end in the middle; clients that reset; 100 that send without an end to a target that does not read; 1,000 at once", Count: count,
		Outcome: fmt.Sprintf("no byte lost or altered either way, half-closes and resets carried over; %d MiB resident at most, others served meanwhile; the log has the reason for each disconnected client", peak>>10),
	})
}
