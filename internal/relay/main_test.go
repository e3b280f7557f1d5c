package relay_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/udsecho/udsecho/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m, "../../client", "../../server") }

var (
	check     = testkit.Check
	dir       = testkit.Dir
	need      = testkit.Need
	run       = testkit.Run
	start     = testkit.Start
	wantFiles = testkit.WantFiles
	wantWords = testkit.WantWords
)

// forward starts a relay and waits until it listens.
func forward(t testing.TB, d, listen, connect string, args ...string) *testkit.Process {
	t.Helper()
	p := start(t, d, append([]string{"client", "forward", "--listen", listen, "--connect", connect}, args...)...)
	p.Err.Await(t, 1, "waiting for a ")
	return p
}

// wantHealthy checks that a relay answers. What came before the check, the
// relay's loop has seen then.
func wantHealthy(t testing.TB, d, address string) {
	t.Helper()
	if status, _, stderr := run(t, d, "", "client", "healthcheck", "--timeout", testkit.Patience.String(), "--listen", address); status != 0 {
		t.Errorf("the health check printed %s", stderr)
	}
}

func openFiles(t testing.TB, p *testkit.Process) int {
	t.Helper()
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.Pid()))
	check(t, err)
	return len(files)
}

// wantNoMoreFiles waits until a relay has no more open files than before: some
// may be about to be closed.
func wantNoMoreFiles(t testing.TB, p *testkit.Process, before int) {
	t.Helper()
	testkit.Await(t, func() error {
		if n := openFiles(t, p); n > before {
			return fmt.Errorf("%d descriptors are open in the relay, %d were at first", n, before)
		}
		return nil
	})
}

// A connection is one of package net whose two directions end separately.
type connection interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
}

// fdOf returns the descriptor of a connection, which has to be open for as long
// as it is used.
func fdOf(t testing.TB, c syscall.Conn) (fd int) {
	t.Helper()
	raw, err := c.SyscallConn()
	check(t, err)
	check(t, raw.Control(func(f uintptr) { fd = int(f) }))
	return fd
}

var networks = map[string]string{"stream": "unix", "datagram": "unixgram", "seqpacket": "unixpacket"}

// split returns an address for package net; paths are relative to d.
func split(d, address string) (network, at string) {
	form, at, _ := strings.Cut(address, ":")
	if form == "tcp" {
		return form, at
	}
	return networks[form], filepath.Join(d, at)
}

// freeTCP returns an address that is not in use: all of 127.0.0.0/8 is this
// host.
func freeTCP() string {
	return fmt.Sprintf("tcp:127.%d.%d.%d:7000", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
}

func dialAt(t testing.TB, d, address string) connection {
	t.Helper()
	network, at := split(d, address)
	conn, err := net.Dial(network, at)
	check(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	check(t, conn.SetDeadline(time.Now().Add(2*testkit.Patience)))
	return conn.(connection)
}

// serveAt serves every connection at an address with serve, and closes it then.
func serveAt(t testing.TB, d, address string, serve func(connection)) {
	t.Helper()
	network, at := split(d, address)
	l, err := net.Listen(network, at)
	check(t, err)
	var running errgroup.Group
	running.Go(func() error {
		for {
			conn, err := l.Accept()
			if err != nil {
				return nil
			}
			running.Go(func() error {
				defer func() { _ = conn.Close() }()
				_ = conn.SetDeadline(time.Now().Add(2 * testkit.Patience))
				serve(conn.(connection))
				return nil
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); _ = running.Wait() })
}

// echo is a target that returns what it receives.
func echo(conn connection) { _, _ = io.Copy(conn, conn) }

func send(t testing.TB, w io.Writer, words string) {
	t.Helper()
	_, err := io.WriteString(w, words)
	check(t, err)
}

// wantEcho sends words and wants the same back.
func wantEcho(t testing.TB, conn net.Conn, words string) {
	t.Helper()
	send(t, conn, words)
	back := make([]byte, len(words))
	if _, err := io.ReadFull(conn, back); err != nil || string(back) != words {
		t.Fatalf("sent %q, received %q, %v", words, back, err)
	}
}

// wantEnd wants the end of a connection on which nothing arrives.
func wantEnd(t testing.TB, conn net.Conn) {
	t.Helper()
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("%d bytes arrived, %v", n, err)
	}
}

// random returns n bytes that are the same for the same seed.
func random(seed byte, n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), n)
}

// same reads both to the end. Its error is that they differ, or else that of got.
func same(got, want io.Reader) error {
	gotSum, wantSum := sha256.New(), sha256.New()
	n, err := io.Copy(gotSum, got)
	if m, _ := io.Copy(wantSum, want); m != n || !bytes.Equal(gotSum.Sum(nil), wantSum.Sum(nil)) {
		return fmt.Errorf("received %d bytes, not the %d that were sent", n, m)
	}
	return err
}

// exchange sends one stream while it receives another one, both to the end.
func exchange(conn connection, send, want io.Reader) error {
	var both errgroup.Group
	both.Go(func() error {
		_, err := io.Copy(conn, send)
		if err == nil {
			err = conn.CloseWrite()
		}
		return err
	})
	both.Go(func() error { return same(conn, want) })
	return both.Wait()
}
