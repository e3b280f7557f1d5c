package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
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

func TestAllowUIDRejectsStrangers(t *testing.T) {
	t.Parallel()
	d := open(t)
	server := serveAll(t, d, "--log-format", "json", "--allow-uid", strconv.Itoa(friend))
	var want []map[string]any
	for _, a := range places {
		client := startAs(t, stranger, d, "client", "--log-level", "warn", "--connect", a, "--bind", "./me")
		status := client.Status(t)
		if status != 1 || client.Out.String() != "" || strings.Count(client.Err.String(), "\n") != 1 {
			t.Errorf("%s: exit status %d, output %q, error %q", a, status, &client.Out, &client.Err)
		}
		wantWords(t, client.Err.String(), "uid 10003 gid 10003")
		peer := "./me"
		if a == "datagram:./d" {
			peer = d + "/me"
		}
		want = append(want, map[string]any{
			"message": "rejected a client: user 10003, group 10003 is not allowed", "cause": "user", "refused": float64(len(want) + 1),
			"peer": peer, "uid": 10003.0, "gid": 10003.0, "pid": float64(client.Pid()),
		})
		// A name that looks like an event field is only a name.
		for _, name := range []string{"@x;uid=0", d + "/x;uid=0"} {
			client := startAs(t, stranger, d, "client", "--log-level", "warn", "--connect", a, "--bind", name)
			if status := client.Status(t); status != 1 || client.Out.String() != "" {
				t.Errorf("%s from %s: exit status %d, output %q, error %q", a, name, status, &client.Out, &client.Err)
			}
			want = append(want, map[string]any{
				"message": "rejected a client: user 10003, group 10003 is not allowed", "cause": "user", "refused": float64(len(want) + 1),
				"peer": name, "uid": 10003.0, "gid": 10003.0, "pid": float64(client.Pid()),
			})
		}
	}
	for _, a := range places {
		client := startAs(t, friend, d, "client", "--connect", a)
		if status := client.Status(t); status != 0 || client.Out.String() != message {
			t.Errorf("the friend is not served: exit status %d, error %q", status, &client.Err)
		}
	}
	healthCheckAll(t, d)
	server.Stop(t)
	// The log has five lines a second; each contains the count.
	byCount := map[any]map[string]any{}
	for _, e := range want {
		byCount[e["refused"]] = e
	}
	got := refusals(t, server)
	for _, e := range got {
		if diff := cmp.Diff(byCount[e["refused"]], e); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	if len(got) < min(5, len(want)) {
		t.Errorf("%d refusals are in the log of %d", len(got), len(want))
	}
	if strings.Count(server.Err.String(), "connection from") != 2 {
		t.Errorf("a stranger's connection was served:\n%s", &server.Err)
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

func TestAllowListsAddUp(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args             []string
		stranger, friend bool
	}{
		{[]string{"--allow-gid", "10003"}, true, false},
		{[]string{"--allow-uid", "10004", "--allow-gid", "10003"}, true, true},
		{[]string{"--allow-uid", "10003", "--allow-uid", "10004"}, true, true},
		{[]string{"--allow-uid", "10005", "--allow-gid", "10005"}, false, false},
		{[]string{"--allow-gid", "0"}, false, false},
		{nil, true, true},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			t.Parallel()
			d := open(t)
			server := serveAll(t, d, tt.args...)
			for _, a := range places {
				for uid, served := range map[int]bool{stranger: tt.stranger, friend: tt.friend} {
					client := startAs(t, uid, d, "client", "--connect", a)
					if status := client.Status(t); (status == 0) != served {
						t.Errorf("%d at %s: exit status %d, error %q", uid, a, status, &client.Err)
					}
				}
			}
			healthCheckAll(t, d)
			server.Stop(t)
		})
	}
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

func TestUserFlagsNeedUnixSockets(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"server", "--allow-uid", "0", "--listen", "s", "--listen", "tcp:127.0.0.1:7000"},
			"--listen tcp:127.0.0.1:7000: --allow-uid and --allow-gid need a Unix socket"},
		{[]string{"server", "--allow-gid", "0", "--listen", "tcp:127.0.0.1:7000"}, "need a Unix socket"},
		{[]string{"server", "--allow-uid", "-1"}, "-1"},
		{[]string{"server", "--allow-uid", "root"}, "root"},
		{[]string{"server", "--allow-gid", "4294967296"}, "4294967296"},
		{[]string{"client", "--require-uid", "0", "--connect", "datagram:d"}, "--require-uid, --require-gid: the kernel does not report the server's user for a datagram socket"},
		{[]string{"client", "--require-gid", "0", "--connect", "tcp:127.0.0.1:7000"}, "use stream or seqpacket"},
		{[]string{"client", "--require-uid", "root"}, "root"},
		{[]string{"server", "--takeover", "--listen", "@s"}, "--takeover needs a path"},
		{[]string{"server", "--takeover", "--listen", "tcp:127.0.0.1:7000"}, "--takeover needs a path"},
	} {
		d := dir(t)
		status, stdout, stderr := run(t, d, "", tt.args...)
		if status != 2 || stdout != "" || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: exit status %d, output %q, error %q", tt.args, status, stdout, stderr)
		}
		wantWords(t, stderr, tt.want)
		wantFiles(t, d)
	}
}

func TestClientSendsNothingToServerOfAnotherUser(t *testing.T) {
	t.Parallel()
	uid, gid := strconv.Itoa(os.Geteuid()), strconv.Itoa(os.Getegid())
	for _, a := range places[:2] {
		d := dir(t)
		server := serveAll(t, d, "--log-format", "plain")
		for _, tt := range []struct {
			flag, id, words string
		}{
			{"--require-uid", "4242", "the server runs as user " + uid + ", not 4242 as --require-uid requires; nothing was sent"},
			{"--require-gid", "4242", "the server runs as group " + gid + ", not 4242 as --require-gid requires; nothing was sent"},
		} {
			status, stdout, stderr := run(t, d, "", "client", "--log-level", "warn", "--connect", a, tt.flag, tt.id)
			if status != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 {
				t.Errorf("%s %s: exit status %d, output %q, error %q", a, tt.flag, status, stdout, stderr)
			}
			wantWords(t, stderr, "client: "+a+": ", tt.words)
		}
		status, stdout, stderr := run(t, d, "", "client", "--connect", a, "--require-uid", uid, "--require-gid", gid)
		if status != 0 || stdout != message {
			t.Errorf("%s: exit status %d, output %q, error %q", a, status, stdout, stderr)
		}
		server.Err.Await(t, 4, "waiting for a connection\n")
		server.Stop(t)
		nothing := "connection from\nno data from\nwaiting for a connection\n"
		if a == "stream:./s" {
			nothing = "connection from\nreceived ''\nno data from\nwaiting for a connection\n"
		}
		if n := strings.Count(server.Err.String(), nothing); n != 2 {
			t.Errorf("%s: nothing was received %d times, not twice:\n%s", a, n, &server.Err)
		}
	}
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
	tcp, err := net.Listen("tcp", loopback())
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

func TestSystemdSocketActivate(t *testing.T) {
	t.Parallel()
	need(t, "systemd-socket-activate", "systemd")
	for _, tt := range []struct{ flag, address, bind string }{
		{"", places[0], "auto"},
		{"--datagram", places[2], "@" + t.Name()},
		{"--seqpacket", places[1], "auto"},
	} {
		t.Run(tt.address, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			name := tt.address[strings.LastIndexByte(tt.address, '/')+1:]
			args := []string{"systemd-socket-activate", "-l", d + "/" + name, testkit.Program("server"), "--log-format", "plain"}
			if tt.flag != "" {
				args = append(args[:1:1], append([]string{tt.flag}, args[1:]...)...)
			}
			p := start(t, d, args...)
			p.Err.Await(t, 1, "Listening on ")
			if tt.flag == "--datagram" {
				// The first message starts the server. It has no credentials, so
				// the server does not know whose name it comes from.
				first, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: tt.bind + ".first", Net: "unixgram"})
				check(t, err)
				defer func() { check(t, first.Close()) }()
				_, err = first.WriteTo([]byte("wake up"), &net.UnixAddr{Name: d + "/" + name, Net: "unixgram"})
				check(t, err)
				p.Err.Await(t, 1, "cannot reply, because the kernel does not report the client's user here")
			}
			status, stdout, stderr := run(t, d, "", "client", "--connect", tt.address, "--bind", tt.bind)
			if status != 0 || stdout != message {
				t.Errorf("exit status %d, output %q, error %q; the server wrote:\n%s", status, stdout, stderr, &p.Err)
			}
			p.Signal(t, syscall.SIGTERM) // it has become the server
			if status := p.Status(t); status != 0 {
				t.Errorf("exit status %d:\n%s", status, &p.Err)
			}
			wantFiles(t, d, name)
		})
	}
}

// Variables meant for another process have no effect.
func TestActivationOfAnotherProcess(t *testing.T) {
	t.Parallel()
	d := dir(t)
	script := `LISTEN_PID=1 LISTEN_FDS=1 exec "$0"`
	p := start(t, d, "sh", "-c", script, testkit.Program("server"))
	p.Err.Await(t, 1, "starting up on ./uds_socket")
	p.Err.Await(t, 1, "waiting for a connection")
	p.Stop(t)
}

func TestHealthCheckDoesNotTrustAnImpostor(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t, "to be two others")
	d := open(t)
	server := startAs(t, stranger, d, "server", "--listen", "s", "--listen", "seqpacket:q", "--listen", "files:f", "--mode", "0666")
	server.Err.Await(t, 1, "waiting for a connection")
	for _, a := range []string{"s", "seqpacket:q", "files:f"} {
		p := startAs(t, friend, d, "server", "healthcheck", "--listen", a)
		if status := p.Status(t); status != 1 {
			t.Errorf("%s: exit status %d", a, status)
		}
		wantWords(t, p.Err.String(), "user 10003 serves there, and this process is user 10004; find out which server this is")
	}
	server.Stop(t)
}

// The server looks names up in its own file system. If a client's name means
// another socket there, the server must not write to that socket, or to
// itself.
func TestReplyGoesToTheSendersOwnSocketOnly(t *testing.T) {
	t.Parallel()
	need(t, "socat", "socat")
	d := open(t)
	server := serve(t, d, "--listen", "datagram:d", "--mode", "0666", "--admin", "admin")
	theirs := filepath.Join(d, "theirs")
	check(t, os.Mkdir(theirs, 0o777))
	check(t, os.Chmod(theirs, 0o777))
	other, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: d + "/notify", Net: "unixgram"})
	check(t, err)
	defer func() { check(t, other.Close()) }()
	for i, name := range []string{"d", "notify"} {
		p := startAs(t, stranger, theirs, "socat", "-u", "-", "UNIX-SENDTO:../d,bind="+name)
		_, err := io.WriteString(p.In, "stop")
		check(t, errors.Join(err, p.In.Close()))
		p.Status(t)
		server.Err.Await(t, i+1, "cannot reply to a name that is not the client's own socket")
	}
	// The server serves a new client, and it answered none before.
	if status, stdout, stderr := run(t, d, "", "client", "--connect", "datagram:d"); status != 0 || stdout != message {
		t.Errorf("exit status %d, output %q, error %q", status, stdout, stderr)
	}
	if s := statusOf(t, d+"/admin"); s.Messages != 3 || s.Refused["nameless"] != 2 {
		t.Errorf("the status is %+v", s)
	}
	check(t, other.SetDeadline(time.Now()))
	if n, err := other.Read(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the other socket got %d bytes, %v", n, err)
	}
	check(t, os.RemoveAll(theirs))
	check(t, os.Remove(d+"/notify"))
	server.Stop(t)
}
