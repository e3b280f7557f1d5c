package main_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
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
	} {
		t.Run(verdict.name, verdict.test)
		count++
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID:      "F62",
		Done:    "paths at which a socket does not work: bound without listen(2); a mounted file whose server has started again; an empty directory; overlayfs over two devices; an access control list; /proc/PID/fd/N",
		Count:   count,
		Outcome: "inspect, the client's error and the error at a start name the same reason and a cure that helps; what the kernel does not report is said to be not known",
	})
}

// failing runs a client and a relay's start in a directory, and returns the
// errors.
func failing(t *testing.T, d, path string) (connecting, listening string) {
	t.Helper()
	for _, tt := range []struct {
		errors *string
		args   []string
	}{
		{&connecting, []string{"--connect", path, "hello"}},
		{&listening, []string{"forward", "--listen", path, "--connect", "none"}},
	} {
		status, _, stderr := run(t, d, "", tt.args...)
		if status != 1 {
			t.Errorf("%q: exit status %d, error %q", tt.args, status, stderr)
		}
		*tt.errors = stderr
	}
	return connecting, listening
}

func boundIsNotStale(t *testing.T) {
	d := dir(t)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	defer func() { check(t, unix.Close(fd)) }()
	check(t, unix.Bind(fd, &unix.SockaddrUnix{Name: d + "/s"}))
	wantWords(t, inspect(t, d, "s"), "state     bound, but no process listens: a client's own name, or a server that is about to start")
	connecting, listening := failing(t, d, "s")
	const bound = "a process has bound it, and does not listen: a server that is about to start, or a client's own name"
	wantWords(t, connecting, "ECONNREFUSED", bound, "keep trying")
	wantWords(t, listening, "in use", bound)
}

func mountedIsNotStale(t *testing.T) {
	testkit.NeedNamespace(t, "-rm")
	d := dir(t)
	old, err := net.Listen("unix", d+"/s")
	check(t, err)
	check(t, os.WriteFile(d+"/mounted", nil, 0o600))
	p := start(t, d, "unshare", "-rm", "sh", "-c", `mount --bind s mounted; echo mounted >&2; read again
		"$0" inspect mounted; "$0" --connect mounted hello; "$0" forward --listen mounted --connect none`, testkit.Program("client"))
	p.Err.Await(t, 1, "mounted")
	check(t, old.Close())
	again, err := net.Listen("unix", d+"/s")
	check(t, err)
	defer func() { _ = again.Close() }()
	_, err = fmt.Fprintln(p.In)
	check(t, err)
	p.Status(t)
	const reason = "it is itself a mount, and the file that was mounted is deleted: its server has started again and made a new one. Mount the directory, not the file"
	wantWords(t, p.Out.String(), "state     stale", reason)
	wantWords(t, p.Err.String(), "connection refused (ECONNREFUSED): "+reason, "EBUSY): "+reason)
	if strings.Contains(p.Err.String(), "it replaces the file") {
		t.Error(&p.Err)
	}
}

func directoryNamesTheEngine(t *testing.T) {
	d := dir(t)
	check(t, os.Mkdir(d+"/s", 0o755))
	const reason = "t is an empty directory. If a socket was to be mounted here, the socket was missing when the container was created"
	connecting, listening := failing(t, d, "s")
	for _, text := range []string{inspect(t, d, "s"), connecting, listening} {
		wantWords(t, text, reason, "Remove the directory, start the server, and create this container again")
	}
	check(t, os.WriteFile(d+"/s/file", nil, 0o600))
	connecting, listening = failing(t, d, "s")
	for _, text := range []string{inspect(t, d, "s"), connecting, listening} {
		if strings.Contains(text, reason) {
			t.Errorf("not empty: %s", text)
		}
	}
}

func deviceIsTheMounts(t *testing.T) {
	testkit.NeedRoot(t, "to mount")
	testkit.NeedNamespace(t, "-mpf", "--mount-proc")
	need(t, "setpriv", "util-linux")
	d := dir(t)
	p := start(t, d, "unshare", "-mpf", "--kill-child", "--mount-proc", "sh", "-ec", `mkdir lower other merged
		mount -t tmpfs none other; mkdir other/upper other/work
		mount -t overlay none -o lowerdir=lower,upperdir=other/upper,workdir=other/work merged
		"$0" forward --listen merged/s --mode 0600 --connect none & relay=$!
		"$0" --retry 20s --no-echo --connect merged/s hello || true # which needs the relay, not its target
		"$0" inspect merged/s
		chown 10004:10004 merged/s; setpriv --reuid 10003 --regid 10003 --clear-groups "$0" inspect merged/s
		kill -TERM $relay; wait $relay; umount merged other`, testkit.Program("client"))
	if status := p.Status(t); status != 0 {
		t.Errorf("exit status %d, error %s", status, &p.Err)
	}
	if n := strings.Count(p.Out.String(), " connections wait"); n != 2 {
		t.Errorf("%d of 2 have counted: %s", n, &p.Out)
	}
}

// group's bits, permits what the group's own entry does not.
func listIsNotTheMode(t *testing.T) {
	testkit.NeedRoot(t, "to be another user")
	d := dir(t)
	l, err := net.Listen("unix", d+"/s")
	check(t, err)
	defer func() { check(t, l.Close()) }()
	check(t, os.Chown(d+"/s", 0, 10001))
	const user, group, mask = 2, 8, 0x10
	list := func(entries ...[3]uint32) {
		b := binary.LittleEndian.AppendUint32(nil, 2)
		for _, e := range entries {
			b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
			b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
			b = binary.LittleEndian.AppendUint32(b, e[2])
		}
		if err := unix.Setxattr(d+"/s", "system.posix_acl_access", b, 0); err != nil {
			t.Skipf("the file system has no access control lists: %v", err)
		}
	}
	const none = 1<<32 - 1
	look := func() string {
		cmd := exec.CommandContext(t.Context(), testkit.Program("client"), "inspect", d+"/s")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 10003, Gid: 10003}}
		out, err := cmd.CombinedOutput()
		check(t, err)
		return string(out)
	}
	list([3]uint32{1, 6, none}, [3]uint32{4, 4, none}, [3]uint32{group, 6, 10005}, [3]uint32{mask, 6, none}, [3]uint32{0x20, 0, none})
	wantWords(t, look(), "its mode is 0660", "Group 10005 has permission")

	list([3]uint32{1, 6, none}, [3]uint32{4, 4, none}, [3]uint32{mask, 6, none}, [3]uint32{0x20, 0, none})
	got := look()
	wantWords(t, got, "its mode is 0660", "Its access control list (getfacl) decides, not the mode", "setfacl -m u:10003:rw "+d+"/s")
	if strings.Contains(got, "Group 10001 has") {
		t.Error(got)
	}
	// An entry for the user precedes those for groups.
	list([3]uint32{1, 6, none}, [3]uint32{user, 4, 10003}, [3]uint32{4, 6, none}, [3]uint32{mask, 6, none}, [3]uint32{0x20, 0, none})
	wantWords(t, look(), "setfacl -m u:10003:rw")
	list([3]uint32{1, 6, none}, [3]uint32{4, 6, none}, [3]uint32{mask, 6, none}, [3]uint32{0x20, 0, none})
	wantWords(t, look(), "Group 10001 has permission")
}

func openSocketIsNotStale(t *testing.T) {
	d, l := listen(t)
	f, err := l.(*net.UnixListener).File()
	check(t, err)
	defer func() { check(t, f.Close()) }()
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
	wantWords(t, inspect(t, d, path), "type      stream open socket, through a symbolic link\n", "state     live\n", " connections wait\n",
		"its name is "+d+"/uds_socket, which clients connect to")
	status, _, stderr := run(t, d, "", "--connect", path, "hello")
	if status != 1 {
		t.Errorf("exit status %d", status)
	}
	wantWords(t, stderr, path+" is an open socket of a process, not a socket file")
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer func() { check(t, tcp.Close()) }()
	g, err := tcp.(*net.TCPListener).File()
	check(t, err)
	defer func() { check(t, g.Close()) }()
	status, _, stderr = run(t, d, "", "inspect", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), g.Fd()))
	if status != 1 {
		t.Errorf("exit status %d", status)
	}
	wantWords(t, stderr, "it is not a Unix socket, or belongs to another network namespace")
}
