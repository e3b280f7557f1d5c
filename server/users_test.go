package main_test

import (
	"fmt"
	"net"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

// The strangers run as users of their own, which only root can start. Without
// root they are the test's own user, whom the server always serves.
const stranger, friend = 10003, 10004

func asRoot() bool { return os.Geteuid() == 0 }

// open returns a directory with write permission for all users: a client makes
// its own name there.
func open(t *testing.T) string {
	t.Helper()
	d := dir(t)
	check(t, os.Chmod(d, 0o777))
	return d
}

var places = []string{"stream:./s", "seqpacket:./q", "datagram:./d"}

// serveAll serves all users at places.
func serveAll(t *testing.T, d string, args ...string) *process {
	t.Helper()
	return serve(t, d, append(args, "--listen", strings.Join(places, ","), "--mode", "0666")...)
}

// asStranger runs work as the stranger. User and group belong to a thread, and
// this thread ends with work.
func asStranger(t *testing.T, work func() error) {
	t.Helper()
	testkit.NeedRoot(t, "to be the stranger")
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		for _, call := range []uintptr{unix.SYS_SETRESGID, unix.SYS_SETRESUID} {
			if _, _, errno := unix.RawSyscall(call, stranger, stranger, stranger); errno != 0 {
				done <- errno
				return
			}
		}
		done <- work()
	}()
	check(t, <-done)
}

// knock connects to all places n times under each name, and sends something
// each time. It returns how many clients the server counted as rejected, and
// their lines in its log.
func knock(t *testing.T, n int, names ...string) (rejected int, told []string) {
	t.Helper()
	d := open(t)
	server := serveAll(t, d, "--log-format", "json", "--allow-uid", strconv.Itoa(friend), "--admin", "./admin")
	asStranger(t, func() error {
		for i := range n {
			for path, typ := range map[string]int{"s": unix.SOCK_STREAM, "q": unix.SOCK_SEQPACKET, "d": unix.SOCK_DGRAM} {
				for _, name := range names {
					// A child that is being started may still hold the previous
					// name.
					name := fmt.Sprintf("%s;%s%d", name, path, i)
					if !strings.HasPrefix(name, "@") {
						name = d + "/" + name
					}
					if err := knockOnce(typ, d+"/"+path, name); err != nil {
						return fmt.Errorf("%s as %s: %w", path, name, err)
					}
				}
			}
		}
		return nil
	})
	wantHealthy(t, d, places...) // all earlier connections have been accepted
	s := statusOf(t, d+"/admin")
	if s.Bytes != 3*len("are you well?") { // of the health check
		t.Errorf("%d bytes were received", s.Bytes)
	}
	server.Stop(t)
	return s.Refused["user"], regexp.MustCompile(`.*"cause":"user".*`).FindAllString(server.Err.String(), -1)
}

func knockOnce(typ int, path, name string) error {
	fd, err := unix.Socket(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		return err
	}
	if name[0] != '@' {
		defer func() { _ = os.Remove(name) }()
	}
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	if err == nil {
		_, err = unix.SendmsgN(fd, []byte("let me in"), nil, nil, unix.MSG_NOSIGNAL)
	}
	if err == unix.EPIPE || typ == unix.SOCK_DGRAM && name[0] != '@' {
		return nil // the server may not write to a name with the stranger's mode
	}
	if err != nil {
		return err
	}
	back := make([]byte, 100)
	switch n, err := unix.Read(fd, back); {
	case err != nil && err != unix.ECONNRESET:
		return err
	case n > 0:
		return fmt.Errorf("received %q", back[:n])
	}
	return nil
}

func TestF9PeerThatIsNotAllowed(t *testing.T) {
	t.Parallel()
	const each = 334
	const attempts = 3 * each
	rejected, told := knock(t, each, "@stranger")
	if rejected != attempts {
		t.Errorf("%d of %d were rejected", rejected, attempts)
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F9", Done: "a user who is not in `--allow-uid` connects and sends something, or sends a datagram, over each type", Count: attempts,
		Outcome: fmt.Sprintf("all rejected and counted, no payload read; %d lines in the log, with uid and gid", len(told)),
	})
}

func TestF10NameThatLies(t *testing.T) {
	t.Parallel()
	const each = 50
	names := []string{"x;uid=0", "@x;uid=0", "x\nuid=0", "@udsecho.healthcheck.x"}
	attempts := 3 * each * len(names)
	rejected, told := knock(t, each, names...)
	if rejected != attempts {
		t.Errorf("%d of %d were rejected", rejected, attempts)
	}
	for _, line := range told {
		wantWords(t, line, `"uid":10003,"gid":10003`) // the stranger's
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F10", Done: "a user who is not allowed binds `x;uid=0`, `@x;uid=0`, one with a new line, and the name of a health check, over each type", Count: attempts,
		Outcome: "all rejected; every line of the log has the kernel's uid and gid",
	})
}

// A datagram server has no connection to close: it answers with a message that
// is not an echo. Here the test is the stranger.
func TestRejectedDatagramIsNotEchoed(t *testing.T) {
	t.Parallel()
	d := open(t)
	server := serving(t, startAs(t, stranger, d, "server", "--listen", "datagram:d", "--mode", "0666", "--allow-uid", strconv.Itoa(friend)))
	conn, err := net.DialUnix("unixgram", &net.UnixAddr{Name: "@" + d, Net: "unixgram"}, &net.UnixAddr{Name: d + "/d", Net: "unixgram"})
	check(t, err)
	defer func() { check(t, conn.Close()) }()
	check(t, conn.SetDeadline(time.Now().Add(patience)))
	for sent, want := range map[string]string{"hello": "", "": "\x00", "\x00": ""} {
		_, err := conn.Write([]byte(sent))
		check(t, err)
		back := make([]byte, 100)
		n, err := conn.Read(back)
		check(t, err)
		if got := string(back[:n]); got != want {
			t.Errorf("%q is answered by %q, not %q", sent, got, want)
		}
	}
	server.Stop(t)
}
