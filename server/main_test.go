package main_test

import (
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m, ".", "../client", "../cmd/uds") }

// TestScripts is what the command line promises, except what needs more than a
// shell has.
func TestScripts(t *testing.T) { testkit.Scripts(t, "testdata/script") }

const patience = testkit.Patience

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
