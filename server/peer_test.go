package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
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

// refusals returns the events of clients that were rejected.
func refusals(t *testing.T, p *process) (all []map[string]any) {
	t.Helper()
	for line := range strings.Lines(p.Err.String()) {
		e := map[string]any{}
		check(t, json.Unmarshal([]byte(line), &e))
		if e["level"] == "warn" {
			delete(e, "time")
			delete(e, "level")
			all = append(all, e)
		}
	}
	return all
}

var places = []string{"stream:./s", "seqpacket:./q", "datagram:./d"}

func serveAll(t *testing.T, d string, args ...string) *process {
	t.Helper()
	for _, a := range places {
		args = append(args, "--listen", a)
	}
	return serve(t, d, append(args, "--mode", "0666")...)
}

func healthCheckAll(t *testing.T, d string) {
	t.Helper()
	args := []string{"server", "healthcheck", "--timeout", "20s"}
	for _, a := range places {
		args = append(args, "--listen", a)
	}
	if status, _, stderr := run(t, d, "", args...); status != 0 {
		t.Errorf("health check: exit status %d, %q", status, stderr)
	}
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
// each time. It returns what the server counted and logged meanwhile.
func knock(t *testing.T, n int, names ...string) (s status, told []map[string]any) {
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
	healthCheckAll(t, d) // all earlier connections have been accepted
	s = statusOf(t, d+"/admin")
	server.Stop(t)
	return s, refusals(t, server)
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
	if !strings.HasPrefix(name, "@") {
		defer func() { _ = os.Remove(name) }()
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return err
	}
	if _, err := unix.SendmsgN(fd, []byte("let me in"), nil, nil, unix.MSG_NOSIGNAL); err == unix.EPIPE {
		return nil
	} else if err != nil {
		return err
	}
	if typ == unix.SOCK_DGRAM && !strings.HasPrefix(name, "@") {
		return nil // the server may not write to a name with the stranger's mode
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
	s, told := knock(t, each, "@stranger")
	const attempts = 3 * each
	// The only bytes received are those of the health check.
	if s.Refused["user"] != attempts || s.Bytes != 3*len("are you well?") {
		t.Errorf("%d of %d were refused, and %d bytes received", s.Refused["user"], attempts, s.Bytes)
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
	s, told := knock(t, each, names...)
	attempts := 3 * each * len(names)
	if s.Refused["user"] != attempts || s.Bytes != 3*len("are you well?") {
		t.Errorf("%d of %d were refused, and %d bytes received", s.Refused["user"], attempts, s.Bytes)
	}
	for _, e := range told {
		if e["uid"] != float64(stranger) || e["gid"] != float64(stranger) {
			t.Errorf("the log believes a name: %v", e)
		}
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
	server := startAs(t, stranger, d, "server", "--listen", "datagram:d", "--mode", "0666", "--allow-uid", strconv.Itoa(friend))
	server.Err.Await(t, 1, "waiting for a message")
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

// soPassRights is SO_PASSRIGHTS, of Linux 6.16, which lets a socket receive
// descriptors.
const soPassRights = 83

// F11 of the fault matrix.
func TestF11UnrequestedDescriptorsAreClosed(t *testing.T) {
	null, err := os.Open(os.DevNull)
	check(t, err)
	t.Cleanup(func() { check(t, null.Close()) })
	fds := make([]int, 253) // SCM_MAX_FD
	for i := range fds {
		fds[i] = int(null.Fd())
	}
	rights := unix.UnixRights(fds...)
	t.Run("each", func(t *testing.T) {
		for _, option := range []string{"without SO_PASSRIGHTS=0", "with SO_PASSRIGHTS=0"} {
			for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET, unix.SOCK_DGRAM} {
				t.Run(fmt.Sprintf("%d %s", typ, option), func(t *testing.T) {
					t.Parallel()
					d := dir(t)
					socket := boundFile(t, typ, d+"/s")
					// A datagram that arrives before the server has begun would get no
					// reply without credentials.
					check(t, unix.SetsockoptInt(int(socket.Fd()), unix.SOL_SOCKET, unix.SO_PASSCRED, 1))
					wantErr := error(nil)
					if option == "with SO_PASSRIGHTS=0" {
						switch err := unix.SetsockoptInt(int(socket.Fd()), unix.SOL_SOCKET, soPassRights, 0); err {
						case nil:
							wantErr = unix.EPERM
						case unix.ENOPROTOOPT:
							t.Log("this kernel does not know SO_PASSRIGHTS: the sender gets no error")
						default:
							t.Fatal(err)
						}
					}
					server := activate(t, d, []*os.File{socket}, "--log-level", "warn")
					name := map[int]string{unix.SOCK_STREAM: "stream", unix.SOCK_SEQPACKET: "seqpacket", unix.SOCK_DGRAM: "datagram"}[typ] + ":./s"
					healthy := func() {
						t.Helper()
						if status, _, stderr := run(t, d, "", "server", "healthcheck", "--timeout", "20s", "--listen", name); status != 0 {
							t.Fatalf("health check: %s", stderr)
						}
					}
					healthy()
					// Its connection may still be open; then the listening socket
					// is not the only one.
					testkit.Await(t, func() error {
						if n := openSockets(t, server); n != 1 {
							return fmt.Errorf("%d sockets are open, not 1", n)
						}
						return nil
					})
					before := descriptors(t, server)
					for range 1000 {
						fd, err := unix.Socket(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
						check(t, err)
						check(t, unix.Connect(fd, &unix.SockaddrUnix{Name: d + "/s"}))
						err = unix.Sendmsg(fd, []byte("take these"), rights, nil, 0)
						if !errors.Is(err, wantErr) {
							t.Fatalf("send: %v, want %v", err, wantErr)
						}
						if typ != unix.SOCK_DGRAM && err == nil {
							buf := make([]byte, 100)
							if n, err := unix.Read(fd, buf); n > 0 || err != nil && err != unix.ECONNRESET {
								t.Fatalf("received %q, %v", buf[:n], err)
							}
						}
						check(t, unix.Close(fd))
					}
					healthy() // all earlier messages have been received
					late := time.Now().Add(patience)
					for descriptors(t, server) != before && time.Now().Before(late) {
						healthy() // the last check's connection may still be open
					}
					if after := descriptors(t, server); after != before {
						t.Errorf("%d descriptors are open, %d were", after, before)
					}
					if status := server.Terminate(t); status != 0 {
						t.Errorf("exit status %d:\n%s", status, &server.Err)
					}
					if wantErr == nil {
						wantWords(t, server.Err.String(), "message carries file descriptors", "cause=descriptors", "refused=1")
					} else if server.Err.String() != "" {
						t.Errorf("the server wrote:\n%s", &server.Err)
					}
				})
			}
		}
	})
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F11", Done: "messages with 253 descriptors each, over each type, without and with SO_PASSRIGHTS=0 on the server's socket", Count: 6000,
		Outcome: "the server's count of descriptors is what it was; without the option senders are disconnected and counted, with it the kernel gives them EPERM",
	})
}

// boundFile returns a socket in the state in which a parent passes it on:
// bound, and listening if its type can.
func boundFile(t *testing.T, typ int, path string) *os.File {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	check(t, err)
	f := os.NewFile(uintptr(fd), path)
	t.Cleanup(func() { _ = f.Close() })
	check(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
	check(t, unix.Chmod(path, 0o666))
	if typ != unix.SOCK_DGRAM {
		check(t, unix.Listen(fd, 100))
	}
	return f
}

// activated starts a server by systemd's protocol: LISTEN_PID is the process
// id of the shell, which becomes the server.
func activated(t *testing.T, d string, files []*os.File, args ...string) *process {
	t.Helper()
	script := fmt.Sprintf(`LISTEN_PID=$$ LISTEN_FDS=%d exec "$0" "$@"`, len(files))
	p := testkit.Prepare(t, d, append([]string{"sh", "-c", script, testkit.Program("server")}, args...)...)
	p.Cmd.ExtraFiles = files
	p.Start(t)
	return p
}

// activate waits until the server serves; at level warn the server does not
// log that.
func activate(t *testing.T, d string, files []*os.File, args ...string) *process {
	t.Helper()
	p := activated(t, d, files, args...)
	if !strings.Contains(strings.Join(args, " "), "warn") {
		p.Err.Await(t, 1, "waiting for a ")
	}
	return p
}

func TestActivatedServerServesEarlierConnectionsAndLeavesTheFile(t *testing.T) {
	t.Parallel()
	d := dir(t)
	stream, record := boundFile(t, unix.SOCK_STREAM, d+"/s"), boundFile(t, unix.SOCK_SEQPACKET, d+"/q")
	datagram := boundFile(t, unix.SOCK_DGRAM, d+"/d")
	// Options that a unit sets with PassCredentials=yes must not cause any
	// rejection.
	for _, f := range []*os.File{stream, record, datagram} {
		check(t, unix.SetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_PASSCRED, 1))
		check(t, unix.SetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_TIMESTAMP, 1))
	}
	for range 2 {
		// These clients connect while no server is running.
		var early []net.Conn
		for _, to := range [][2]string{{"unix", "s"}, {"unixpacket", "q"}} {
			conn, err := net.Dial(to[0], d+"/"+to[1])
			check(t, err)
			early = append(early, conn)
		}
		me := &net.UnixAddr{Name: d + "/me", Net: "unixgram"}
		conn, err := net.DialUnix("unixgram", me, &net.UnixAddr{Name: d + "/d", Net: "unixgram"})
		check(t, err)
		early = append(early, conn)
		for _, conn := range early {
			_, err := conn.Write([]byte("early"))
			check(t, err)
		}
		server := activate(t, d, []*os.File{stream, record, datagram}, "--log-format", "plain", "--listen", "other", "--mode", "0600")
		if want := fmt.Sprintf("starting up on %[1]s/s\nstarting up on %[1]s/q\nstarting up on %[1]s/d\n", d); !strings.HasPrefix(server.Err.String(), want) {
			t.Errorf("the server wrote:\n%s", &server.Err)
		}
		for _, conn := range early {
			back := make([]byte, 100)
			check(t, conn.SetDeadline(time.Now().Add(patience)))
			if n, err := conn.Read(back); err != nil || string(back[:n]) != "early" {
				t.Errorf("%v: received %q, %v", conn.RemoteAddr(), back[:n], err)
			}
			check(t, conn.Close())
		}
		check(t, os.Remove(me.Name))
		for _, a := range places {
			if status, stdout, stderr := run(t, d, "", "client", "--connect", a); status != 0 || stdout != message {
				t.Errorf("%s: exit status %d, output %q, error %q", a, status, stdout, stderr)
			}
		}
		if status := server.Terminate(t); status != 0 {
			t.Errorf("exit status %d:\n%s", status, &server.Err)
		}
		wantFiles(t, d, "d", "q", "s")
	}
}

func TestActivationWithOtherDescriptorsFails(t *testing.T) {
	t.Parallel()
	d := dir(t)
	null, err := os.Open(os.DevNull)
	check(t, err)
	unbound, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer func() { check(t, tcp.Close()) }()
	internet, err := tcp.(*net.TCPListener).File()
	check(t, err)
	good := boundFile(t, unix.SOCK_STREAM, d+"/s")
	for _, tt := range []struct {
		file  *os.File
		words string
	}{
		{null, "it is not a socket"},
		{os.NewFile(uintptr(unbound), "unbound"), "it is a socket without an address"},
		{internet, "it is not a Unix socket; pass one, ListenStream=/path"},
	} {
		p := activated(t, d, []*os.File{good, tt.file})
		if status := p.Status(t); status != 1 || strings.Count(p.Err.String(), "\n") != 1 {
			t.Errorf("exit status %d, error %q", status, &p.Err)
		}
		wantWords(t, p.Err.String(), "server: LISTEN_FD_4, passed on by the parent process: "+tt.words)
		wantFiles(t, d, "s")
		check(t, tt.file.Close())
	}
}
