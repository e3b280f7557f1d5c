package main_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

func TestF60ARelayBehavesAsIfItWereNotThere(t *testing.T) {
	t.Parallel()
	count := 0

	// A burst of clients at a target that accepts late, with a short backlog.
	clients := testkit.Count(30, 300)
	count += clients
	d := dir(t)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	check(t, err)
	check(t, unix.Bind(fd, &unix.SockaddrUnix{Name: d + "/s"}))
	check(t, unix.Listen(fd, 1))
	f := os.NewFile(uintptr(fd), "listener")
	relay := forward(t, d, "stream:r", "stream:s")
	var all errgroup.Group
	for range clients {
		conn := dialAt(t, d, "stream:r")
		all.Go(func() error {
			got, err := io.ReadAll(conn)
			if err == nil && string(got) != "served" {
				err = fmt.Errorf("a client got %q", got)
			}
			return err
		})
	}
	relay.Err.Await(t, 1, "backlog is full")
	relay.Err.Await(t, clients, "connection from")
	raw, err := f.SyscallConn()
	check(t, err)
	for range clients {
		var conn int
		check(t, raw.Read(func(fd uintptr) bool {
			conn, _, err = unix.Accept4(int(fd), unix.SOCK_CLOEXEC)
			return err != unix.EAGAIN
		}))
		check(t, err)
		_, err = unix.Write(conn, []byte("served"))
		check(t, errors.Join(err, unix.Close(conn)))
	}
	check(t, all.Wait())
	check(t, f.Close())

	// Nothing ends a silent connection by itself.
	_, help, _ := run(t, d, "", "forward", "--help")
	text := strings.Join(strings.Fields(help), " ")
	if !regexp.MustCompile(`0s: no limit \(default: 0s\)`).MatchString(text) {
		t.Errorf("--idle-timeout has another default:\n%s", help)
	}
	count++

	// Both ends of TCP have a keepalive timer.
	d = dir(t)
	at, target := freeTCP(), freeTCP()
	serveAt(t, d, target, func(conn halfCloser) { _, _ = io.Copy(conn, conn) })
	relay = forward(t, d, at, target)
	conn := dialAt(t, d, at)
	_, err = io.WriteString(conn, "x")
	check(t, err)
	_, err = io.ReadFull(conn, make([]byte, 1))
	check(t, err)
	testkit.Await(t, func() error { // while something is not acknowledged, the timer is another one
		table, err := os.ReadFile("/proc/net/tcp")
		check(t, err)
		for _, side := range []*regexp.Regexp{
			regexp.MustCompile(` ` + inHex(t, at) + ` \w+:\w+ 01 \S+ 02:`),     // local, remote, established, queues, timer
			regexp.MustCompile(` \w+:\w+ ` + inHex(t, target) + ` 01 \S+ 02:`), // proc(5)
		} {
			if !side.Match(table) {
				return fmt.Errorf("no keepalive: %s", side)
			}
		}
		return nil
	})
	count += 2

	// The end of a client that has read everything is not an error.
	check(t, conn.Close())
	relay.Err.Await(t, 1, "connection ended")
	d = dir(t)
	serveAt(t, d, "stream:s", func(conn halfCloser) { _, _ = io.Copy(conn, conn) })
	unixRelay := forward(t, d, "stream:r", "stream:s")
	conn = dialAt(t, d, "stream:r")
	_, err = io.WriteString(conn, "x")
	check(t, err)
	_, err = io.ReadFull(conn, make([]byte, 1))
	check(t, err)
	check(t, conn.Close())
	unixRelay.Err.Await(t, 1, "connection ended")
	for _, p := range []*testkit.Process{relay, unixRelay} {
		if text := p.Err.String(); strings.Contains(text, "broken pipe") || strings.Contains(text, "WRN") {
			t.Errorf("the log has\n%s", text)
		}
		count++
	}

	// A relay that is its own target.
	d = dir(t)
	check(t, os.Symlink("r", d+"/link"))
	for _, pair := range [][2]string{{"stream:r", "stream:link"}, {"stream:r", "stream:./r"}, {at, ""}} {
		args := []string{"forward", "--listen", pair[0], "--connect", pair[1]}
		if pair[0] == at {
			port := 20000 + mathrand.IntN(10000)
			args[2], args[4] = fmt.Sprintf("tcp:0.0.0.0:%d", port), fmt.Sprintf("tcp:localhost:%d", port)
		}
		if status, _, stderr := run(t, d, "", args...); status != 1 || !strings.Contains(stderr, "where the relay listens itself") {
			t.Errorf("%v: exit status %d, %s", args, status, stderr)
		}
		count++
	}
	relay = forward(t, d, "stream:r", "stream:later")
	check(t, os.Link(d+"/r", d+"/later"))
	if n, err := dialAt(t, d, "stream:r").Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	relay.Err.Await(t, 1, "it is this relay itself")
	relay.Terminate(t)
	if n := strings.Count(relay.Err.String(), "connection from"); n != 2 {
		t.Errorf("%d connections:\n%s", n, &relay.Err)
	}
	count++

	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F60", Count: count,
		Done:    "a burst of clients at a target with a backlog of 1 that accepts late; silence; TCP sides that may vanish; normal ends; a relay that is its own target, at the start and later",
		Outcome: "all served in the end; no limit by default; both sides have a keepalive timer; no warning; an error that says so, and one connection to itself",
	})
}

// inHex returns an address tcp:A.B.C.D:PORT as /proc/net/tcp shows it.
func inHex(t testing.TB, address string) string {
	t.Helper()
	_, hostPort, _ := strings.Cut(address, ":")
	host, _, err := net.SplitHostPort(hostPort)
	check(t, err)
	a, err := netip.ParseAddrPort(hostPort)
	check(t, err)
	bytes := netip.MustParseAddr(host).As4()
	slices.Reverse(bytes[:]) // on a little-endian machine
	return strings.ToUpper(hex.EncodeToString(bytes[:])) + fmt.Sprintf(":%04X", a.Port())
}
