package main_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

// narrow makes a TCP connection take little from the other side before it is
// read.
func narrow(t testing.TB, conn net.Conn) {
	t.Helper()
	if tcp, ok := conn.(*net.TCPConn); ok {
		check(t, tcp.SetReadBuffer(64<<10))
	}
}

// What one side has handed over reaches the other, however the first one ends.
func TestF51TheEndOfOneSideVoidsNothing(t *testing.T) {
	t.Parallel()
	const size = 3_000_000
	rounds := testkit.Count(2, 20)
	count := 0

	// A server answers before it has read the request, and closes.
	for _, at := range []string{"stream:r", freeTCP()} {
		d := dir(t)
		serveAt(t, d, "stream:s", func(conn halfCloser) {
			_, _ = io.ReadFull(conn, make([]byte, 10))
			_, _ = io.Copy(conn, stream(1, size))
		})
		forward(t, d, at, "stream:s")
		for range rounds {
			count++
			conn := dialAt(t, d, at)
			narrow(t, conn)
			var upload errgroup.Group
			upload.Go(func() error {
				_, _ = io.Copy(conn, stream(2, size)) // it may fail: no process reads all of it
				return nil
			})
			if sumOf(t, ended{conn}) != sumOf(t, stream(1, size)) {
				t.Errorf("%s: the client got another answer", at)
			}
			check(t, conn.Close())
			check(t, upload.Wait())
		}
	}

	// A client sends everything, and closes with a greeting unread.
	for _, target := range []string{"stream:s", freeTCP()} {
		d := dir(t)
		sums := make(chan [32]byte)
		serveAt(t, d, target, func(conn halfCloser) {
			narrow(t, conn)
			_, _ = io.WriteString(conn, "the greeting")
			sums <- sumOf(t, ended{conn})
		})
		forward(t, d, "stream:r", target)
		for range rounds {
			count++
			conn := dialAt(t, d, "stream:r")
			check(t, awaitReadable(conn.(syscall.Conn)))
			_, err := io.Copy(conn, stream(1, size))
			check(t, err)
			check(t, conn.Close())
			if <-sums != sumOf(t, stream(1, size)) {
				t.Errorf("%s: the target got something else", target)
			}
		}
	}

	// The same with records.
	d := dir(t)
	got := make(chan int)
	serveAt(t, d, "seqpacket:s", func(conn halfCloser) {
		_, _ = io.WriteString(conn, "the greeting")
		n, buf := 0, make([]byte, 2000)
		for {
			m, err := conn.Read(buf)
			if n += m; err != nil {
				got <- n
				return
			}
		}
	})
	forward(t, d, "seqpacket:r", "seqpacket:s")
	for range rounds {
		count++
		conn := dialAt(t, d, "seqpacket:r")
		check(t, awaitReadable(conn.(syscall.Conn)))
		for range 10 {
			_, err := conn.Write(make([]byte, 1000))
			check(t, err)
		}
		check(t, conn.Close())
		if n := <-got; n != 10_000 {
			t.Errorf("%d bytes of 10 records reached the target", n)
		}
	}

	// A TCP client resets its connection while the target does not read yet.
	d, at, read := dir(t), freeTCP(), make(chan bool)
	sums := make(chan [32]byte)
	serveAt(t, d, "stream:s", func(conn halfCloser) {
		<-read
		sums <- sumOf(t, conn)
	})
	forward(t, d, at, "stream:s")
	for range rounds {
		count++
		conn := dialAt(t, d, at)
		_, err := io.Copy(conn, stream(3, 300_000))
		check(t, err)
		awaitAcknowledged(t, conn)
		check(t, conn.(*net.TCPConn).SetLinger(0))
		check(t, conn.Close())
		read <- true
		if <-sums != sumOf(t, stream(3, 300_000)) {
			t.Error("the target got something else after the reset")
		}
	}

	// Only a reader that is gone loses bytes, and the log has their number.
	count++
	targets := make(chan halfCloser, 1)
	serveAt(t, d, "stream:p", func(conn halfCloser) {
		targets <- conn
		_, _ = io.Copy(conn, stream(4, 1_000_000))
	})
	relay := forward(t, d, "stream:q", "stream:p")
	conn := dialAt(t, d, "stream:q")
	target, quiet := <-targets, 0
	testkit.Await(t, func() error { // until the relay reads no more from the target, for a while
		if quiet++; unsent(t, target) == 0 {
			quiet = 0
		}
		if quiet < 3 {
			return errors.New("the relay still reads")
		}
		return nil
	})
	check(t, conn.Close())
	relay.Err.Await(t, 1, "connection ended")
	wantWords(t, relay.Err.String(), "the client accepts nothing more", " bytes=", " lost=")

	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F51", Count: count,
		Done:    "a server answers early with 3 MB and closes; a client sends 3 MB, or 10 records, and closes with a greeting unread; a TCP client resets; through stream, seqpacket and tcp",
		Outcome: "every byte and record reached the other side",
	})
}

// A TCP client that has ended its direction resets the connection, when the
// other side is gone: the relay does not wait for acknowledgements any more.
func TestForwardEndsWhenTheLastTCPSideResets(t *testing.T) {
	t.Parallel()
	d, at, target := dir(t), freeTCP(), freeTCP()
	serveAt(t, d, target, func(conn halfCloser) {
		_, _ = io.Copy(io.Discard, conn)
		_, _ = io.Copy(conn, stream(1, 1_000_000))
		awaitAcknowledged(t, conn)
		check(t, conn.(*net.TCPConn).SetLinger(0))
	})
	relay := forward(t, d, at, target)
	conn := dialAt(t, d, at)
	narrow(t, conn)
	check(t, conn.CloseWrite())
	relay.Err.Await(t, 1, "lost the connection to the target")
	check(t, conn.(*net.TCPConn).SetLinger(0))
	check(t, conn.Close())
	relay.Err.Await(t, 1, "connection ended")
}

// ended reads to the end of a connection; a reset that comes after all bytes is
// an end.
type ended struct{ io.Reader }

func (e ended) Read(p []byte) (int, error) {
	n, err := e.Reader.Read(p)
	if errors.Is(err, unix.ECONNRESET) {
		err = io.EOF
	}
	return n, err
}

// awaitAcknowledged waits until the other side's kernel has everything.
func awaitAcknowledged(t testing.TB, conn halfCloser) {
	t.Helper()
	testkit.Await(t, func() error {
		if n := unsent(t, conn); n > 0 {
			return fmt.Errorf("%d bytes are not acknowledged", n)
		}
		return nil
	})
}

// unsent returns how many bytes the kernel has accepted and not delivered.
func unsent(t testing.TB, conn halfCloser) (n int) {
	t.Helper()
	raw, err := conn.(syscall.Conn).SyscallConn()
	check(t, err)
	check(t, raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }))
	check(t, err)
	return n
}
