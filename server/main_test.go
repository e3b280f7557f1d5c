package main_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m, ".", "../client", "../cmd/uds") }

// TestScripts is what the command line promises, except what needs more than a
// shell has.
func TestScripts(t *testing.T) { testkit.Scripts(t, "testdata/script") }

var patience = testkit.Patience

type process = testkit.Process

var (
	check     = testkit.Check
	dir       = testkit.Dir
	need      = testkit.Need
	run       = testkit.Run
	start     = testkit.Start
	wantFiles = testkit.WantFiles
	wantWords = testkit.WantWords
)

// startAs starts a process of another user.
func startAs(t *testing.T, uid int, d string, args ...string) *process {
	t.Helper()
	testkit.NeedRoot(t, "to be another user")
	return startAttr(t, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}, d, args...)
}

func startAttr(t *testing.T, attr *syscall.SysProcAttr, d string, args ...string) *process {
	t.Helper()
	p := testkit.Prepare(t, d, args...)
	p.Cmd.SysProcAttr = attr
	p.Start(t)
	return p
}

// serve starts a server in d and waits until it serves.
func serve(t *testing.T, d string, args ...string) *process {
	t.Helper()
	return serving(t, start(t, d, append([]string{"server"}, args...)...))
}

// serving waits until a server serves.
func serving(t *testing.T, server *process) *process {
	t.Helper()
	server.Err.Await(t, 1, "waiting for a ")
	return server
}

const message = "This is the message.  It will be repeated."

// clientEchoes runs the client, which must get its message back.
func clientEchoes(t *testing.T, d string, args ...string) {
	t.Helper()
	gotBack(t, start(t, d, append([]string{"client"}, args...)...))
}

// gotBack waits for the end of a client, which must have got its message back.
func gotBack(t *testing.T, client *process) {
	t.Helper()
	client.WantStatus(t, 0)
	if out := client.Out.String(); out != message {
		t.Errorf("%q: output %q", client.Cmd.Args, out)
	}
}

// wantHealthy runs a health check, which must succeed.
func wantHealthy(t *testing.T, d string, addrs ...string) {
	t.Helper()
	if status, _, stderr := run(t, d, "", "server", "healthcheck", "--timeout", patience.String(), "--listen", strings.Join(addrs, ",")); status != 0 {
		t.Errorf("health check of %q: exit status %d, error %q", addrs, status, stderr)
	}
}

// limitFiles limits the files that a running process may open. lift ends that.
func limitFiles(t *testing.T, p *process, n uint64) (lift func()) {
	t.Helper()
	var before unix.Rlimit
	check(t, unix.Prlimit(p.Pid(), unix.RLIMIT_NOFILE, nil, &before))
	check(t, unix.Prlimit(p.Pid(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: before.Max}, nil))
	return func() { t.Helper(); check(t, unix.Prlimit(p.Pid(), unix.RLIMIT_NOFILE, &before, nil)) }
}

// kinds are the three types of AF_UNIX.
var kinds = []string{"stream", "datagram", "seqpacket"}

// connect returns a connection of type network, "unix" or "unixpacket".
func connect(t *testing.T, network, path string) *net.UnixConn {
	t.Helper()
	conn, err := net.DialUnix(network, nil, &net.UnixAddr{Name: path, Net: network})
	check(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	check(t, conn.SetDeadline(time.Now().Add(5*patience)))
	return conn
}

// connectEither connects to d/s or d/q, a stream or a seqpacket socket, in turns.
func connectEither(t *testing.T, d string, i int) *net.UnixConn {
	t.Helper()
	return connect(t, []string{"unix", "unixpacket"}[i%2], d+[]string{"/s", "/q"}[i%2])
}

// echoed sends words and returns an error if the echo differs.
func echoed(conn net.Conn, words string) error {
	if _, err := io.WriteString(conn, words); err != nil {
		return err
	}
	got := make([]byte, len(words))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if string(got) != words {
		return fmt.Errorf("sent %q, got back %q", words, got)
	}
	return nil
}

// awaitServer waits for a server that logs nothing, by its admin socket.
func awaitServer(t *testing.T, admin string) {
	t.Helper()
	testkit.Await(t, func() error {
		_, err := tryGet(t, admin, "/status")
		return err
	})
}

// awaitEmpty waits until the server has removed its files, which it does not
// log.
func awaitEmpty(t *testing.T, d string) {
	t.Helper()
	testkit.Await(t, func() error {
		entries, err := os.ReadDir(d)
		if len(entries) > 0 {
			return fmt.Errorf("%v is still there", entries)
		}
		return err
	})
}
