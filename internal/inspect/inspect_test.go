package inspect_test

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/inspect"
	"github.com/udsecho/udsecho/uds/sock"
)

func inspected(t *testing.T, path string) *inspect.Result {
	t.Helper()
	in, err := inspect.Path(path)
	check(t, err)
	return in
}

// want compares; the process is this test's binary, under any name.
func want(t *testing.T, path string, want inspect.Result) {
	t.Helper()
	want.Path = path
	if d := cmp.Diff(&want, inspected(t, path), cmpopts.IgnoreFields(inspect.Result{}, "Process", "Row"), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("%s (-want +got):\n%s", path, d)
	}
}

func me() (uid, gid *uint32, pid *int32) {
	return new(uint32(os.Geteuid())), new(uint32(os.Getegid())), new(int32(os.Getpid()))
}

// raw returns a socket that is bound to path, but does not listen.
func raw(t *testing.T, a sock.Addr) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, sotypes[a.Type]|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	check(t, err)
	t.Cleanup(func() { check(t, unix.Close(fd)) })
	check(t, unix.Bind(fd, &unix.SockaddrUnix{Name: a.Path}))
	return fd
}

// client returns a socket that is connected to path.
func client(t *testing.T, a sock.Addr) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, sotypes[a.Type]|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	check(t, err)
	t.Cleanup(func() { check(t, unix.Close(fd)) })
	check(t, unix.Connect(fd, &unix.SockaddrUnix{Name: a.Path}))
	return fd
}

func TestInspectFindsATypeByTrying(t *testing.T) {
	t.Parallel()
	uid, gid, pid := me()
	d := dir(t)
	for _, where := range []struct{ kind, path string }{{"socket", d + "/s"}, {"abstract socket", fmt.Sprintf("@inspect-%d", os.Getpid())}} {
		for _, typ := range []sock.Type{sock.Stream, sock.Seqpacket} {
			path := where.path + string(typ)
			listen(t, sock.ListenConfig{Backlog: 7}, sock.Addr{Type: typ, Path: path})
			want(t, path, inspect.Result{Kind: where.kind, Type: typ, State: inspect.Live, UID: uid, GID: gid, PID: pid,
				Waiting: new(uint32(0)), Backlog: new(uint32(7)), Full: new(false)})
		}
		path := where.path + "datagram"
		listen(t, sock.ListenConfig{}, datagram(path))
		want(t, path, inspect.Result{Kind: where.kind, Type: sock.Datagram, State: inspect.Live, UID: uid,
			NextBytes: new(uint32(0)), Full: new(false)})
	}
	if name := inspected(t, d+"/sstream").Process; name == "" {
		t.Error("the process has no name")
	}
}

func TestInspectCountsWaitingConnections(t *testing.T) {
	t.Parallel()
	a := stream(dir(t) + "/s")
	fd := raw(t, a)
	check(t, unix.Listen(fd, 3))
	uid, gid, pid := me()
	w := inspect.Result{Kind: "socket", Type: sock.Stream, State: inspect.Live, UID: uid, GID: gid, PID: pid,
		Waiting: new(uint32(2)), Backlog: new(uint32(3)), Full: new(false)}
	client(t, a)
	client(t, a)
	want(t, a.Path, w) // the inspection's own connection is the third
	client(t, a)
	w.Waiting, w.Full = new(uint32(4)), new(true)
	w.GID, w.PID = nil, nil
	want(t, a.Path, w)
}

func TestInspectShowsADatagramQueue(t *testing.T) {
	t.Parallel()
	a := datagram(dir(t) + "/d")
	raw(t, a)
	fd := client(t, a)
	check(t, unix.Send(fd, make([]byte, 100), 0))
	uid, _, _ := me()
	w := inspect.Result{Kind: "socket", Type: sock.Datagram, State: inspect.Live, UID: uid, NextBytes: new(uint32(100)), Full: new(false)}
	want(t, a.Path, w)
	var err error
	for err == nil {
		err = unix.Send(fd, nil, 0)
	}
	if err != unix.EAGAIN {
		t.Fatal(err)
	}
	w.Full = new(true)
	want(t, a.Path, w)
}

func TestInspectReportsSocketsThatAcceptNoClient(t *testing.T) {
	t.Parallel()
	d := dir(t)
	uid, _, _ := me()

	stale(t, d+"/stale")
	want(t, d+"/stale", inspect.Result{Kind: "socket", State: inspect.Stale})

	for typ := range sotypes {
		if typ != sock.Datagram {
			raw(t, sock.Addr{Type: typ, Path: d + "/" + string(typ)})
			want(t, d+"/"+string(typ), inspect.Result{Kind: "socket", Type: typ, State: inspect.Bound})
		}
	}
	abstract := fmt.Sprintf("@bound-%d", os.Getpid())
	raw(t, stream(abstract))
	want(t, abstract, inspect.Result{Kind: "abstract socket", State: inspect.Bound})

	raw(t, datagram(d+"/server"))
	check(t, unix.Connect(raw(t, datagram(d+"/client")), &unix.SockaddrUnix{Name: d + "/server"}))
	want(t, d+"/client", inspect.Result{Kind: "socket", Type: sock.Datagram, State: inspect.Private, UID: uid, NextBytes: new(uint32(0))})
}

func TestInspectNamesTheTypeOfOtherFiles(t *testing.T) {
	t.Parallel()
	d := dir(t)
	check(t, os.WriteFile(d+"/file", nil, 0o600))
	check(t, unix.Mkfifo(d+"/pipe", 0o600))
	check(t, os.Symlink("nothing", d+"/dangling"))
	check(t, os.Symlink("file", d+"/link"))
	for path, kind := range map[string]string{
		d: "directory", d + "/file": "regular file", d + "/pipe": "named pipe", "/dev/null": "character device",
		d + "/dangling": "symbolic link", d + "/link": "regular file",
	} {
		want(t, path, inspect.Result{Kind: kind})
	}
}

func TestInspectFollowsALinkAndALongPath(t *testing.T) {
	t.Parallel()
	d := dir(t)
	long := d + "/" + strings.Repeat("x", 200)
	check(t, os.Mkdir(long, 0o700))
	listen(t, sock.ListenConfig{}, stream(d+"/s"))
	check(t, os.Link(d+"/s", long+"/s"))
	check(t, os.Symlink("s", d+"/link"))
	for _, path := range []string{d + "/link", long + "/s"} {
		if in := inspected(t, path); in.State != inspect.Live || in.Type != sock.Stream || in.Backlog == nil {
			t.Errorf("%.100s: %+v", path, in)
		}
	}
}

func TestInspectRefusals(t *testing.T) {
	t.Parallel()
	d := dir(t)
	for path, word := range map[string]string{
		d + "/missing":                 "(ENOENT): nothing is there",
		"":                             "the path is empty",
		"@":                            "the path is empty",
		fmt.Sprint("@no-", d):          "no server has the name",
		"@" + strings.Repeat("x", 108): "sun_path holds 107",
		"/dev/null/s":                  "ENOTDIR",
	} {
		in, err := inspect.Path(path)
		if in != nil || err == nil {
			t.Errorf("%q: %+v, %v", path, in, err)
			continue
		}
		wantWords(t, err.Error(), word)
	}
}

// If connecting is not allowed, the kernel's list still contains the sockets
// of the caller's network namespace, but not a stale socket.
func TestInspectWithoutPermission(t *testing.T) {
	t.Parallel()
	d := dir(t)
	listen(t, sock.ListenConfig{Mode: closedMode()}, stream(d+"/live"))
	stale(t, d+"/stale")
	check(t, os.Chmod(d+"/stale", closedMode()))
	uid, _, _ := me()
	got := asStranger(t, d+"/live", d+"/stale")
	got[0].Result.Backlog = nil // the system's
	for _, o := range got {
		o.Result.Row = ""
		wantWords(t, strings.Join(o.Result.Why, "\n"), o.Result.Path+" denies this process permission to connect to it: its mode is 0")
		o.Result.Why = nil
	}
	wantWords(t, got[1].Err, "cannot tell whether it is served: permission denied (EACCES)", d+"/stale denies this process")
	got[1].Err = ""
	if diff := cmp.Diff([]outcome{
		{Result: &inspect.Result{Path: d + "/live", Kind: "socket", Type: sock.Stream, State: inspect.Live, UID: uid, Waiting: new(uint32(0)), Full: new(false)}},
		{Result: &inspect.Result{Path: d + "/stale", Kind: "socket", State: inspect.Unknown}},
	}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestInspectDoesNotDisturbAServer(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("unix", dir(t)+"/s")
	check(t, err)
	defer func() { check(t, l.Close()) }()
	inspected(t, l.Addr().String())
	conn, err := l.Accept()
	check(t, err)
	defer func() { _ = conn.Close() }()
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the probe sent %d bytes, %v", n, err)
	}
}
