package main_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

// why inspects a path in a shell that first prepares something, and returns
// the lines that explain why.
func why(t *testing.T, d string, as *syscall.SysProcAttr, words ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), words[0], words[1:]...)
	cmd.Dir, cmd.SysProcAttr = d, as
	cmd.Env = append(os.Environ(), "CLIENT="+testkit.Program("client"))
	out, err := cmd.CombinedOutput()
	t.Logf("%q: %v\n%s", words, err, out)
	lines := ""
	for line := range strings.Lines(string(out)) {
		if text, ok := strings.CutPrefix(line, "  why       "); ok {
			lines += text
		}
	}
	return lines
}

func TestInspectReportsWhichPartOfThePathDeniesAccess(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t, "to mount")
	d := dir(t)
	check(t, os.MkdirAll(d+"/a/b", 0o755))
	l, err := net.Listen("unix", d+"/a/b/s")
	check(t, err)
	defer func() { check(t, l.Close()) }()
	check(t, os.Chmod(d+"/a/b/s", 0o666))
	check(t, os.Symlink("a/b", d+"/link"))
	for _, tt := range []struct {
		mode  os.FileMode
		gid   int
		words string // "": it has permission
	}{
		{0o755, 0, ""},
		{0o750, 10000, ""},
		{0o750, 10001, "Group 10001 has permission: use group_add in Compose"},
		{0o700, 10000, "chmod g+x gives permission to its group, which this process has"},
		{0o700, 10001, "Group 10001 with chmod g+x has permission, or user 0"},
	} {
		check(t, os.Chown(d+"/a", 0, tt.gid))
		check(t, os.Chmod(d+"/a", tt.mode))
		for _, path := range []string{"a/b/s", "link/s", d + "/link/s"} {
			got := why(t, d, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 10003, Gid: 10003, Groups: []uint32{10000}}}, testkit.Program("client"), "inspect", path)
			if tt.words == "" && got != "" {
				t.Errorf("%v: %q", tt, got)
			} else if tt.words != "" {
				wantWords(t, got, d+"/a denies this process permission to search it: its mode is "+fmt.Sprintf("%04o", tt.mode), tt.words, "this process is user 10003, group 10003, groups [10000]")
			}
		}
	}
	// The last part of the path is the socket.
	check(t, os.Chmod(d+"/a", 0o755))
	check(t, os.Chmod(d+"/a/b/s", 0o660))
	check(t, os.Chown(d+"/a/b/s", 0, 10001))
	got := why(t, d, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 10003, Gid: 10003}}, testkit.Program("client"), "inspect", "a/b/s")
	wantWords(t, got, d+"/a/b/s denies this process permission to connect to it: its mode is 0660, of user 0, group 10001", "Group 10001 has permission")
}

func TestInspectReportsThatTheFileItselfIsAMount(t *testing.T) {
	t.Parallel()
	testkit.NeedNamespace(t, "-rm")
	d := dir(t)
	l, err := net.Listen("unix", d+"/uds_socket")
	check(t, err)
	check(t, os.WriteFile(d+"/mounted", nil, 0o600))
	// The shell has its own mount namespace, so the mount ends with the shell.
	// Between the two inspections it waits for the server's restart.
	p := testkit.Start(t, d, "unshare", "-rm", "sh", "-ec", `mount --bind uds_socket mounted; "$0" inspect mounted; echo first >&2; read again; "$0" inspect mounted; mount -o remount,bind,ro mounted; "$0" inspect mounted`, testkit.Program("client"))
	p.Err.Await(t, 1, "first")
	check(t, l.Close())
	again, err := net.Listen("unix", d+"/uds_socket")
	check(t, err)
	defer func() { _ = again.Close() }()
	_, err = io.WriteString(p.In, "\n")
	check(t, err)
	if status := p.Status(t); status != 0 {
		t.Errorf("exit status %d\n%s", status, &p.Err)
	}
	wantWords(t, p.Out.String(), "state     live\n", "why       it is itself a mount: when its server starts again and makes a new file, this one stays the old. Mount the directory, not the file\n",
		"state     stale: no process serves it\n", "why       it is itself a mount, and the file that was mounted is deleted: its server has started again and made a new one. Mount the directory",
		"mount     read-only: the socket cannot be replaced through it, but clients can connect\n")
	t.Logf("%s", &p.Out)
}

func TestInspectReportsAFileSystemThatDoesNotCarrySockets(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t, "to mount")
	need(t, "fuse-overlayfs", "fuse-overlayfs")
	testkit.NeedNamespace(t, "-m")
	d := dir(t)
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		check(t, os.Mkdir(d+"/"+name, 0o755))
	}
	l, err := net.Listen("unix", d+"/upper/s")
	check(t, err)
	defer func() { check(t, l.Close()) }()
	got := why(t, d, nil, "unshare", "-m", "sh", "-ec", `fuse-overlayfs -o lowerdir=lower,upperdir=upper,workdir=work merged
		trap 'umount merged' EXIT; "$CLIENT" inspect merged/s`)
	wantWords(t, got, "it is on fuse.fuse-overlayfs (fuse-overlayfs): a socket there works only for processes that see it through the same mount of the same kernel as its server")
}

func TestInspectReportsTheIdsInAUserNamespace(t *testing.T) {
	t.Parallel()
	testkit.NeedNamespace(t, "-r")
	d, _ := listen(t)
	uid, gid := os.Geteuid(), os.Getegid()
	got := why(t, d, nil, "unshare", "-U", "sh", "-c", `"$CLIENT" inspect uds_socket`)
	wantWords(t, got, "a user namespace maps ids: this process is user 65534, group 65534 here, and a user that is not mapped, a group that is not mapped outside; the socket's owner is user 65534, group 65534 here")
	got = why(t, d, nil, "unshare", "-r", "sh", "-c", `"$CLIENT" inspect uds_socket`)
	wantWords(t, got, fmt.Sprintf("this process is user 0, group 0 here, and user %d, group %d outside; the socket's owner is user 0, group 0 here, and user %d, group %d outside", uid, gid, uid, gid))
	if got := why(t, d, nil, "sh", "-c", `"$CLIENT" inspect uds_socket`); got != "" && uid == 0 {
		t.Errorf("without a namespace: %q", got)
	}
}

func TestInspectShowsSELinuxLabels(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t, "to mount")
	d, _ := listen(t)
	if err := unix.Setxattr(d+"/uds_socket", "security.selinux", []byte("system_u:object_r:container_file_t:s0\x00"), 0); err != nil {
		t.Skipf("the file system keeps no labels: %v", err)
	}
	wantWords(t, why(t, d, nil, "sh", "-c", `"$CLIENT" inspect uds_socket`), "SELinux: the socket's label is system_u:object_r:container_file_t:s0, this process's ", "mount the directory with :z")
}
