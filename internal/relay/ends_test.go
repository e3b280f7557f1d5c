package relay_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

// sides are the ways on which a relay carries bytes.
func sides() [][2]string {
	return [][2]string{{"stream:r", "stream:s"}, {freeTCP(), "stream:s"}, {"stream:r", freeTCP()}, {freeTCP(), freeTCP()}}
}

func isTCP(address string) bool { return strings.HasPrefix(address, "tcp:") }

// narrow makes a TCP connection take little from the other side before it is
// read.
func narrow(t testing.TB, conn net.Conn) {
	t.Helper()
	if tcp, ok := conn.(*net.TCPConn); ok {
		check(t, tcp.SetReadBuffer(64<<10))
	}
}

// reset closes a TCP connection with a reset, once the other side's kernel has
// everything; it closes a Unix socket as ever.
func reset(t testing.TB, conn connection) {
	t.Helper()
	if tcp, ok := conn.(*net.TCPConn); ok {
		testkit.Await(t, func() error {
			if n := unsent(t, conn); n > 0 {
				return fmt.Errorf("%d bytes are not acknowledged", n)
			}
			return nil
		})
		check(t, tcp.SetLinger(0))
	}
	check(t, conn.Close())
}

// unsent returns how many bytes the kernel has accepted and not delivered.
func unsent(t testing.TB, conn connection) int {
	t.Helper()
	n, err := unix.IoctlGetInt(fdOf(t, conn), unix.SIOCOUTQ)
	check(t, err)
	return n
}

// awaitReadable waits for input and reads none of it.
func awaitReadable(t testing.TB, conn connection) {
	t.Helper()
	if !testkit.Ready(t, fdOf(t, conn), unix.POLLIN) {
		t.Error("nothing arrives")
	}
}

// What one side has handed over reaches the other, however the first one ends.
func TestF51TheEndOfOneSideVoidsNothing(t *testing.T) {
	t.Parallel()
	const size = 3_000_000
	rounds := testkit.Count(1, 20)
	count := 0

	// A server answers before it has read the request, and closes; or stops
	// sending, as a TCP end that closes then resets, and takes its bytes back.
	for _, via := range sides() {
		d := dir(t)
		serveAt(t, d, via[1], func(conn connection) {
			_, _ = io.ReadFull(conn, make([]byte, 10))
			_, _ = io.Copy(conn, random(1, size))
			if isTCP(via[1]) {
				_ = conn.CloseWrite()
				_, _ = io.Copy(io.Discard, conn)
			}
		})
		forward(t, d, via[0], via[1])
		for range rounds {
			count++
			conn := dialAt(t, d, via[0])
			narrow(t, conn)
			var upload errgroup.Group
			upload.Go(func() error {
				_, _ = io.Copy(conn, random(2, size)) // it may fail: no process reads all of it
				return nil
			})
			if err := same(conn, random(1, size)); err != nil && !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("%v: the client: %v", via, err)
			}
			check(t, conn.Close())
			check(t, upload.Wait())
		}
	}

	// A client sends everything, and closes with a greeting unread. A Unix socket
	// has only ended then; a TCP client resets, before the target reads.
	for _, via := range sides() {
		d, size, read := dir(t), int64(size), make(chan bool, 1)
		reason, want := "the client closed its socket without reading everything", error(nil)
		if isTCP(via[0]) {
			size, reason = 300_000, "lost the connection to the client: connection reset by peer"
			if isTCP(via[1]) {
				want = unix.ECONNRESET
			}
		}
		heard := make(chan error)
		serveAt(t, d, via[1], func(conn connection) {
			narrow(t, conn)
			_, _ = io.WriteString(conn, "the greeting")
			<-read
			heard <- same(conn, random(3, size))
		})
		relay := forward(t, d, via[0], via[1])
		for i := range rounds {
			count++
			conn := dialAt(t, d, via[0])
			awaitReadable(t, conn)
			if !isTCP(via[0]) {
				read <- true
			}
			_, err := io.Copy(conn, random(3, size))
			check(t, err)
			reset(t, conn)
			if isTCP(via[0]) {
				read <- true
			}
			if err := <-heard; !errors.Is(err, want) {
				t.Errorf("%v: the target: %v", via, err)
			}
			relay.Err.Await(t, i+1, reason)
		}
	}

	// The same with records.
	d := dir(t)
	heard := make(chan int)
	serveAt(t, d, "seqpacket:s", func(conn connection) {
		_, _ = io.WriteString(conn, "the greeting")
		n, buf := 0, make([]byte, 2000)
		for {
			m, err := conn.Read(buf)
			if n += m; err != nil {
				heard <- n
				return
			}
		}
	})
	forward(t, d, "seqpacket:r", "seqpacket:s")
	for range rounds {
		count++
		conn := dialAt(t, d, "seqpacket:r")
		awaitReadable(t, conn)
		for range 10 {
			send(t, conn, strings.Repeat("x", 1000))
		}
		check(t, conn.Close())
		if n := <-heard; n != 10_000 {
			t.Errorf("%d bytes of 10 records reached the target", n)
		}
	}

	// Only a reader that is gone loses bytes, and the log has their number.
	count++
	targets := make(chan connection, 1)
	serveAt(t, d, "stream:p", func(conn connection) {
		targets <- conn
		_, _ = io.Copy(conn, random(4, 1_000_000))
	})
	relay := forward(t, d, "stream:q", "stream:p")
	conn := dialAt(t, d, "stream:q")
	target := <-targets
	testkit.Await(t, func() error {
		before := unsent(t, target)
		if wantHealthy(t, d, "stream:q"); before == 0 || unsent(t, target) != before {
			return errors.New("the relay still reads")
		}
		return nil
	})
	check(t, conn.Close())
	relay.Err.Await(t, 1, "connection ended")
	wantWords(t, relay.Err.String(), "the client accepts nothing more", " bytes=", " lost=")

	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F51", Count: count,
		Done:    "a server answers early with 3 MB and stops; a client sends 3 MB, or 10 records, and closes with a greeting unread; a TCP client resets; through stream, seqpacket and tcp",
		Outcome: "every byte and record reached the other side, and a reset from TCP to TCP",
	})
}

// A TCP client that has ended its direction resets the connection, when the
// other side is gone: the relay does not wait for acknowledgements any more.
func TestForwardEndsWhenTheLastTCPSideResets(t *testing.T) {
	t.Parallel()
	d, at, target := dir(t), freeTCP(), freeTCP()
	serveAt(t, d, target, func(conn connection) {
		_, _ = io.Copy(io.Discard, conn)
		_, _ = io.Copy(conn, random(1, 1_000_000))
		reset(t, conn)
	})
	relay := forward(t, d, at, target)
	conn := dialAt(t, d, at)
	narrow(t, conn)
	check(t, conn.CloseWrite())
	relay.Err.Await(t, 1, "lost the connection to the target")
	reset(t, conn)
	relay.Err.Await(t, 1, "connection ended")
}

// fill sends until no more bytes are taken now, and returns their number.
func fill(t testing.TB, conn connection) (sent int) {
	t.Helper()
	for piece := make([]byte, 64<<10); ; {
		n, err := unix.SendmsgN(fdOf(t, conn), piece, nil, nil, unix.MSG_DONTWAIT)
		if err != nil {
			return sent
		}
		sent += n
	}
}

// The target is missing, late, of another type, or never reads. 1,000 clients
// connect at once.
func TestF48RelayBetweenBadEnds(t *testing.T) {
	t.Parallel()
	count := 0
	refused := func(d, words string) { // a client is disconnected, and the log has the reason
		t.Helper()
		count++
		relay := forward(t, d, "stream:r", "stream:s")
		wantEnd(t, dialAt(t, d, "stream:r"))
		relay.Err.Await(t, 1, words)
		relay.Terminate(t)
	}
	refused(dir(t), "disconnected a client: connect stream:s: no such file or directory (ENOENT): nothing is at s")
	d := dir(t)
	target := listenDatagrams(t, d+"/s")
	refused(d, "disconnected a client: connect stream:s: protocol wrong type for socket (EPROTOTYPE): s is a datagram socket")
	check(t, target.Close())
	testkit.AwaitClosed(t, d+"/s")
	refused(d, "disconnected a client: connect stream:s: connection refused (ECONNREFUSED)")

	t.Run("late", func(t *testing.T) {
		count += 2
		d := dir(t)
		relay := forward(t, d, "stream:r", "stream:s", "--retry", "60s")
		left := dialAt(t, d, "stream:r") // for good, before there is a target
		send(t, left, "so long")
		check(t, left.Close())
		conn := dialAt(t, d, "stream:r")
		var both errgroup.Group
		both.Go(func() error { return exchange(conn, random(1, 1<<20), random(1, 1<<20)) })
		relay.Err.Await(t, 2, "connection from")
		heard := make(chan string, 8) // the relay may look who serves, by one client more
		serveAt(t, d, "stream:s", func(conn connection) {
			var all strings.Builder
			_, _ = io.Copy(io.MultiWriter(&all, conn), conn)
			heard <- all.String()
		})
		check(t, both.Wait())
		for got := ""; got != "so long"; {
			select {
			case got = <-heard:
			case <-time.After(testkit.Patience):
				t.Fatal("what the client left behind did not reach the target")
			}
		}
	})

	var peak int
	t.Run("never reads", func(t *testing.T) {
		const clients = 100
		count += clients
		d := dir(t)
		stop := make(chan bool)
		serveAt(t, d, "stream:s", func(conn connection) {
			buf := make([]byte, 1)
			if _, _ = io.ReadFull(conn, buf); buf[0] == 'e' {
				echo(conn)
				return
			}
			<-stop
		})
		// Its memory is measured.
		relay := start(t, d, testkit.Plain(t, "uds"), "forward", "--listen", "stream:r", "--connect", "stream:s")
		relay.Err.Await(t, 1, "waiting for a ")
		idle := relay.StatusNumber(t, "VmHWM")
		direct := fill(t, dialAt(t, d, "stream:s"))
		conns := make([]connection, clients)
		for i := range conns {
			conns[i] = dialAt(t, d, "stream:r")
		}
		sent := 0
		for more := -1; more != 0; sent += more {
			more = 0
			for _, conn := range conns {
				more += fill(t, conn)
			}
			// Another client is served, and the loop has had its turns.
			conn := dialAt(t, d, "stream:r")
			send(t, conn, "e")
			check(t, exchange(conn, random(3, 1<<20), random(3, 1<<20)))
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
		serveAt(t, d, "stream:s", echo)
		relay := forward(t, d, "stream:r", "stream:s", "--max-per-user", "0", "--retry", "60s")
		var all errgroup.Group
		gate := make(chan bool)
		for range clients {
			conn := dialAt(t, d, "stream:r")
			all.Go(func() error {
				<-gate
				return exchange(conn, random(4, 50_000), random(4, 50_000))
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
		ID: "F48", Done: "targets that are missing, stale, late, or of another type; 100 clients that send without an end to a target that does not read; 1,000 at once", Count: count,
		Outcome: fmt.Sprintf("no byte lost or altered either way; %d MiB resident at most, others served meanwhile; the log has the reason for each disconnected client", peak>>10),
	})
}

func TestF60ARelayBehavesAsIfItWereNotThere(t *testing.T) {
	t.Parallel()
	count := 0

	// A burst of clients at a target that accepts late, with a short backlog, and
	// one that does not wait so long.
	clients := testkit.Count(30, 300)
	count += clients + 1
	d := dir(t)
	listener, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	check(t, unix.Bind(listener, &unix.SockaddrUnix{Name: d + "/s"}))
	check(t, unix.Listen(listener, 1))
	relay := forward(t, d, "stream:r", "stream:s")
	var all errgroup.Group
	for range clients {
		conn := dialAt(t, d, "stream:r")
		all.Go(func() error { return same(conn, strings.NewReader("served")) })
	}
	relay.Err.Await(t, 1, "the target's backlog is full: its clients wait until it accepts")
	check(t, dialAt(t, d, "stream:r").Close())
	relay.Err.Await(t, 1, "the client left before the target was reached")
	relay.Err.Await(t, clients+1, "connection from")
	for range clients {
		if !testkit.Ready(t, listener, unix.POLLIN) {
			t.Fatal("a client did not reach the target")
		}
		conn, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		check(t, err)
		_, err = unix.Write(conn, []byte("served"))
		check(t, errors.Join(err, unix.Close(conn)))
	}
	check(t, all.Wait())
	check(t, unix.Close(listener))

	// Nothing ends a silent connection by itself.
	_, help, _ := run(t, d, "", "uds", "forward", "--help")
	if text := strings.Join(strings.Fields(help), " "); !strings.Contains(text, "0s: no limit (default: 0s)") {
		t.Errorf("--idle-timeout has another default:\n%s", help)
	}
	count++

	// Both ends of TCP have a keepalive timer. While something is not
	// acknowledged, the timer is another one. proc(5): local, remote,
	// established, queues, timer.
	at, target := freeTCP(), freeTCP()
	serveAt(t, d, target, echo)
	relay = forward(t, d, at, target)
	conn := dialAt(t, d, at)
	wantEcho(t, conn, "x")
	for _, side := range []string{inHex(at) + ` \w+:\w+`, `\w+:\w+ ` + inHex(target)} {
		keepalive := regexp.MustCompile(` ` + side + ` 01 \S+ 02:`)
		testkit.Await(t, func() error {
			table, err := os.ReadFile("/proc/net/tcp")
			if check(t, err); !keepalive.Match(table) {
				return fmt.Errorf("no keepalive: %s", side)
			}
			return nil
		})
		count++
	}

	// The end of a client that has read everything is not an error.
	serveAt(t, d, "stream:t", echo)
	unixRelay := forward(t, d, "stream:q", "stream:t")
	unixConn := dialAt(t, d, "stream:q")
	wantEcho(t, unixConn, "x")
	check(t, errors.Join(conn.Close(), unixConn.Close()))
	for _, p := range []*testkit.Process{relay, unixRelay} {
		p.Err.Await(t, 1, "connection ended")
		if text := p.Err.String(); strings.Contains(text, "broken pipe") || strings.Contains(text, "WRN") {
			t.Errorf("the log has\n%s", text)
		}
		count++
	}

	// A relay that is its own target.
	d = dir(t)
	check(t, os.Symlink("r", d+"/link"))
	for _, ends := range [][2]string{{"stream:r", "stream:link"}, {"stream:r", "stream:./r"}, {"tcp:0.0.0.0:0", "tcp:localhost:0"}} {
		if status, _, stderr := run(t, d, "", "uds", "forward", "--listen", ends[0], "--connect", ends[1]); status != 1 || !strings.Contains(stderr, "where the relay listens itself") {
			t.Errorf("%v: exit status %d, %s", ends, status, stderr)
		}
		count++
	}
	relay = forward(t, d, "stream:r", "stream:later")
	check(t, os.Link(d+"/r", d+"/later"))
	wantEnd(t, dialAt(t, d, "stream:r"))
	relay.Err.Await(t, 1, "it is this relay itself")
	relay.Terminate(t)
	if n := strings.Count(relay.Err.String(), "connection from"); n != 2 {
		t.Errorf("%d connections:\n%s", n, &relay.Err)
	}
	count++

	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F60", Count: count,
		Done:    "a burst of clients at a target with a backlog of 1 that accepts late, and one that leaves; silence; TCP sides that may vanish; normal ends; a relay that is its own target, at the start and later",
		Outcome: "all served in the end; no limit by default; both sides have a keepalive timer; no warning; an error that says so, and one connection to itself",
	})
}

// inHex returns an address tcp:A.B.C.D:PORT as /proc/net/tcp shows it.
func inHex(address string) string {
	a := netip.MustParseAddrPort(strings.TrimPrefix(address, "tcp:"))
	bytes := a.Addr().As4()
	slices.Reverse(bytes[:]) // on a little-endian machine
	return fmt.Sprintf("%s:%04X", strings.ToUpper(hex.EncodeToString(bytes[:])), a.Port())
}
