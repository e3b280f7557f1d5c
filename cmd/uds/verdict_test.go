package main_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

// Each reason is looked at through inspect, and through the error of a client;
// a relay's start has the server's.
func TestF62ReasonsAreTheReasons(t *testing.T) {
	t.Parallel()
	count := 0
	for _, verdict := range []struct {
		name string
		test func(t *testing.T)
	}{
		{"a socket that does not listen", boundIsNotStale},
		{"a mounted file whose server has started again", mountedIsNotStale},
		{"a directory in the place of a socket", directoryNamesTheEngine},
		{"a file system whose stat shows another device", deviceIsTheMounts},
		{"an access control list", listIsNotTheMode},
		{"an open socket", openSocketIsNotStale},
		{"a socket whose tap was killed", tappedIsNotStale},
	} {
		t.Run(verdict.name, verdict.test)
		count++
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID:      "F62",
		Done:    "paths at which a socket does not work: bound without listen(2); a mounted file whose server has started again; an empty directory; overlayfs over two devices; an access control list; /proc/PID/fd/N; a socket whose tap and guard were killed",
		Count:   count,
		Outcome: "inspect, the client's error and the error at a start name the same reason and a cure that helps; what the kernel does not report is said to be not known",
	})
}

func inspected(t *testing.T, d, path string) string {
	t.Helper()
	status, stdout, stderr := testkit.Run(t, d, "", "uds", "inspect", path)
	if status != 0 || stderr != "" {
		t.Errorf("inspect %s: exit status %d, error %q", path, status, stderr)
	}
	return stdout
}

// failing runs a program until it fails, and returns the error.
func failing(t *testing.T, d string, args ...string) (stderr string) {
	t.Helper()
	status, _, stderr := testkit.Run(t, d, "", args...)
	if status != 1 {
		t.Errorf("%q: exit status %d, error %q", args, status, stderr)
	}
	return stderr
}

func listen(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	check(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func boundIsNotStale(t *testing.T) {
	d := dir(t)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	defer func() { check(t, unix.Close(fd)) }()
	check(t, unix.Bind(fd, &unix.SockaddrUnix{Name: d + "/s"}))
	wantWords(t, inspected(t, d, "s"), "state     bound, but no process listens: a client's own name, or a server that is about to start")
	const bound = "a process has bound it, and does not listen: a server that is about to start, or a client's own name"
	wantWords(t, failing(t, d, "client", "--connect", "s", "hello"), "ECONNREFUSED", bound, "keep trying")
	wantWords(t, failing(t, d, "uds", "forward", "--listen", "s", "--connect", "none"), "in use", bound)
}

// The shell has its own mount namespace, so the mount ends with the shell. Between
// the two inspections it waits for the server's restart.
func mountedIsNotStale(t *testing.T) {
	testkit.NeedNamespace(t, "-rm")
	d := dir(t)
	old := listen(t, d+"/s")
	check(t, os.WriteFile(d+"/mounted", nil, 0o600))
	p := testkit.Start(t, d, "unshare", "-rm", "sh", "-c", `mount --bind s mounted; "$0" inspect mounted; echo mounted >&2; read again
		mount -o remount,bind,ro mounted; "$0" inspect mounted; "$0" send --connect mounted hello; "$0" forward --listen mounted --connect none`, testkit.Program("uds"))
	p.Err.Await(t, 1, "mounted")
	check(t, old.Close())
	testkit.AwaitClosed(t, d+"/s")
	listen(t, d+"/s")
	_, err := fmt.Fprintln(p.In)
	check(t, err)
	p.Status(t)
	const reason = "it is itself a mount, and the file that was mounted is deleted: its server has started again and made a new one. Mount the directory, not the file"
	wantWords(t, p.Out.String(), "state     live\n", "why       it is itself a mount: when its server starts again and makes a new file, this one stays the old. Mount the directory, not the file\n",
		"state     stale: no process serves it\n", "why       "+reason, "mount     read-only: the socket cannot be replaced through it, but clients can connect\n")
	wantWords(t, p.Err.String(), "connection refused (ECONNREFUSED): "+reason, "EBUSY): "+reason)
	if strings.Contains(p.Err.String(), "it replaces the file") {
		t.Error(&p.Err)
	}
}

func directoryNamesTheEngine(t *testing.T) {
	d := dir(t)
	check(t, os.Mkdir(d+"/s", 0o755))
	const reason = "t is an empty directory. If a socket was to be mounted here, the socket was missing when the container was created"
	errors := func() []string {
		return []string{inspected(t, d, "s"), failing(t, d, "client", "--connect", "s", "hello"), failing(t, d, "uds", "forward", "--listen", "s", "--connect", "none")}
	}
	for _, text := range errors() {
		wantWords(t, text, reason, "Remove the directory, start the server, and create this container again")
	}
	check(t, os.WriteFile(d+"/s/file", nil, 0o600))
	for _, text := range errors() {
		if strings.Contains(text, reason) {
			t.Errorf("not empty: %s", text)
		}
	}
}

func deviceIsTheMounts(t *testing.T) {
	testkit.NeedRoot(t, "to mount")
	testkit.NeedNamespace(t, "-mpf", "--mount-proc")
	testkit.Need(t, "setpriv", "util-linux")
	p := testkit.Start(t, dir(t), "unshare", "-mpf", "--kill-child", "--mount-proc", "sh", "-ec", `mkdir lower other merged
		mount -t tmpfs none other; mkdir other/upper other/work
		mount -t overlay none -o lowerdir=lower,upperdir=other/upper,workdir=other/work merged
		"$0" forward --listen merged/s --mode 0600 --connect none & relay=$!
		"$0" send --retry 60s --connect merged/s hello || true # which needs the relay, not its target
		"$0" inspect merged/s
		chown 10004:10004 merged/s; setpriv --reuid 10003 --regid 10003 --clear-groups "$0" inspect merged/s
		kill -TERM $relay; wait $relay; umount merged other`, testkit.Program("uds"))
	if status := p.Status(t); status != 0 {
		t.Errorf("exit status %d, error %s", status, &p.Err)
	}
	if n := strings.Count(p.Out.String(), " connections wait"); n != 2 {
		t.Errorf("%d of 2 have counted: %s", n, &p.Out)
	}
}

// The mask of an access control list, which stat(2) shows as the group's bits,
// permits what the group's own entry does not.
func listIsNotTheMode(t *testing.T) {
	testkit.NeedRoot(t, "to be another user")
	testkit.Need(t, "setpriv", "util-linux")
	d := dir(t)
	listen(t, d+"/s")
	check(t, os.Chown(d+"/s", 0, 10001))
	type entry struct {
		Tag, Permission uint16
		ID              uint32
	}
	const anyID = 1<<32 - 1
	look := func(entries ...entry) string { // besides those of the owner and of others, acl(5)
		t.Helper()
		entries = append(append([]entry{{1, 6, anyID}}, entries...), entry{0x10, 6, anyID}, entry{0x20, 0, anyID})
		list, err := binary.Append([]byte{2, 0, 0, 0}, binary.LittleEndian, entries)
		check(t, err)
		if err := unix.Setxattr(d+"/s", "system.posix_acl_access", list, 0); err != nil {
			t.Skipf("the file system has no access control lists: %v", err)
		}
		_, stdout, _ := testkit.Run(t, d, "", "setpriv", "--reuid", "10003", "--regid", "10003", "--clear-groups", testkit.Program("uds"), "inspect", d+"/s")
		return stdout
	}
	const user, group, named = 2, 4, 8
	wantWords(t, look(entry{group, 4, anyID}, entry{named, 6, 10005}), "its mode is 0660", "Group 10005 has permission")
	got := look(entry{group, 4, anyID})
	wantWords(t, got, "its mode is 0660", "Its access control list (getfacl) decides, not the mode", "setfacl -m u:10003:rw "+d+"/s")
	if strings.Contains(got, "Group 10001 has") {
		t.Error(got)
	}
	// An entry for the user precedes those for groups.
	wantWords(t, look(entry{user, 4, 10003}, entry{group, 6, anyID}), "setfacl -m u:10003:rw")
	wantWords(t, look(entry{group, 6, anyID}), "Group 10001 has permission")
}

func openSocketIsNotStale(t *testing.T) {
	d := dir(t)
	f, err := listen(t, d+"/uds_socket").File()
	check(t, err)
	defer func() { check(t, f.Close()) }()
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
	wantWords(t, inspected(t, d, path), "type      stream open socket, through a symbolic link\n", "state     live\n", " connections wait\n",
		"its name is "+d+"/uds_socket, which clients connect to")
	wantWords(t, failing(t, d, "client", "--connect", path, "hello"), path+" is an open socket of a process, not a socket file")
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer func() { check(t, tcp.Close()) }()
	g, err := tcp.(*net.TCPListener).File()
	check(t, err)
	defer func() { check(t, g.Close()) }()
	wantWords(t, failing(t, d, "uds", "inspect", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), g.Fd())), "it is not a Unix socket, or belongs to another network namespace")
}

// The socket is that of another program, which gives nothing back by itself.
func tappedIsNotStale(t *testing.T) {
	d := dir(t)
	listen(t, d+"/s")
	check(t, os.Symlink("s", d+"/link"))
	tapping(t, d, "s").KillAll(t)
	for _, path := range []string{"s", d + "/s", "link"} {
		reason := fmt.Sprintf("a uds tap of %s was killed, and its server may still run; uds tap --undo %s gives the name back", path, path)
		wantWords(t, inspected(t, d, path), "state     stale: no process serves it\n", "why       "+reason+"\n")
		for _, args := range [][]string{{"client", "--connect", path, "hello"}, {"uds", "send", "--connect", path, "hello"}, {"uds", "wait", path, "--timeout", "50ms"}} {
			wantWords(t, failing(t, d, args...), "(ECONNREFUSED): "+reason)
		}
		wantWords(t, failing(t, d, "uds", "ls", path), "uds inspect "+path+" shows why")
	}
	const reason = "a uds tap of s was killed"
	wantWords(t, failing(t, d, "uds", "forward", "--listen", "s", "--connect", "none"), "in use: "+reason)
	status, _, stderr := testkit.Run(t, d, "", "uds", "tap", "--undo", "link")
	if status != 0 || strings.Contains(inspected(t, d, "s"), reason) {
		t.Errorf("exit status %d: %s", status, stderr)
	}
}
