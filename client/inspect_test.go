package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

// inspect inspects paths without an error.
func inspect(t *testing.T, d string, args ...string) string {
	t.Helper()
	status, stdout, stderr := run(t, d, "", append([]string{"inspect"}, args...)...)
	if status != 0 || stderr != "" {
		t.Errorf("inspect %q: exit status %d, error %q", args, status, stderr)
	}
	return stdout
}

// wantLines compares the lines below the first one.
func wantLines(t *testing.T, got, want string) {
	t.Helper()
	_, lines, _ := strings.Cut(got, "\n")
	if d := cmp.Diff(want, lines); d != "" {
		t.Errorf("inspect (-want +got):\n%s", d)
	}
}

// who describes this test as the kernel reports it, with its process if that
// is given.
func who(pid int, process string) string {
	name := func(id int, of string) string {
		out, err := exec.Command("id", "-n"+of).Output()
		if err != nil {
			return fmt.Sprint(id)
		}
		return fmt.Sprintf("%d (%s)", id, strings.TrimSpace(string(out)))
	}
	uid := "uid " + name(os.Geteuid(), "u")
	if pid == 0 {
		return uid
	}
	return fmt.Sprintf("%s, gid %s, pid %d (%s)", uid, name(os.Getegid(), "g"), pid, process)
}

func TestInspectPrintsTypeModeAndOwnerAsLsDoes(t *testing.T) {
	t.Parallel()
	need(t, "ls", "coreutils")
	d, _ := listen(t)
	check(t, os.WriteFile(d+"/regular", []byte("12345"), 0o640))
	check(t, os.Mkdir(d+"/directory", 0o750))
	check(t, os.Symlink("uds_socket", d+"/link"))
	check(t, unix.Mkfifo(d+"/pipe", 0o600))
	for i, mode := range []uint32{0o1777, 0o1644, 0o2755, 0o2644, 0o4755, 0o4644, 0o7777, 0} {
		path := fmt.Sprintf("%s/mode%d", d, i)
		check(t, os.WriteFile(path, nil, 0o600))
		check(t, unix.Chmod(path, mode))
	}
	if os.Geteuid() == 0 {
		check(t, os.WriteFile(d+"/unnamed", nil, 0o600))
		check(t, os.Chown(d+"/unnamed", 54321, 54322))
	}
	paths, err := filepath.Glob(d + "/*")
	check(t, err)
	paths = append(paths, "/dev/null", blockDevice(t, d))
	letters := ""
	bits := strings.NewReplacer("s", "x", "t", "x", "S", "-", "T", "-") // these letters show more than the permissions
	for _, path := range paths {
		ls := exec.CommandContext(t.Context(), "ls", "-ld", path)
		ls.Env = append(os.Environ(), "LC_ALL=C")
		out, err := ls.Output()
		check(t, err)
		f := strings.Fields(string(out))
		want := fmt.Sprintf("%c%s %s %s %s", f[0][0], bits.Replace(f[0][1:10]), f[2], f[3], path)
		row, _, _ := strings.Cut(inspect(t, d, path), "\n")
		if row != want {
			t.Errorf("inspect and ls differ:\n%s\n%s", row, want)
		}
		letters += row[:1]
	}
	for _, letter := range "-dlcbsp" {
		if !strings.ContainsRune(letters, letter) {
			t.Errorf("no row starts with %c: %s", letter, letters)
		}
	}
}

// blockDevice returns a block device of the machine, or a new one.
func blockDevice(t *testing.T, d string) string {
	t.Helper()
	paths, err := filepath.Glob("/dev/*")
	check(t, err)
	for _, path := range paths {
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
			return path
		}
	}
	check(t, unix.Mknod(d+"/block", unix.S_IFBLK|0o600, int(unix.Mkdev(7, 0))))
	return d + "/block"
}

func TestInspectSocketsOfSocat(t *testing.T) {
	t.Parallel()
	need(t, "socat", "socat")
	d := dir(t)
	for _, tt := range []struct{ address, typ, state string }{
		{"UNIX-LISTEN:s", "stream socket", "backlog   0 of 5 connections wait"},
		{"UNIX-RECV:s", "datagram socket", "queue     not full; nothing waits, or an empty message is next"},
		{"UNIX-LISTEN:s,type=5", "seqpacket socket", "backlog   0 of 5 connections wait"},
	} {
		socat := start(t, d, "socat", "-dd", "-u", tt.address, "STDOUT")
		ready := "listening on"
		listener := who(socat.Pid(), "socat")
		if strings.Contains(tt.address, "RECV") {
			ready = "starting data transfer loop"
			listener = who(0, "") + "; for datagram sockets, the kernel reports only the owner"
		}
		socat.Err.Await(t, 1, ready)
		wantLines(t, inspect(t, d, "s"), fmt.Sprintf("  type      %s\n  state     live\n  listener  %s\n  %s\n", tt.typ, listener, tt.state))
		if strings.Contains(tt.address, "RECV") {
			socat.Terminate(t) // removes its file
			continue
		}
		// It serves one client, which was the probe.
		if status := socat.Status(t); status != 0 || socat.Out.String() != "" {
			t.Errorf("socat: exit status %d, output %q", status, &socat.Out)
		}
	}
}

func TestInspectAnXServer(t *testing.T) {
	t.Parallel()
	need(t, "Xvfb", "xvfb")
	d := dir(t)
	x := start(t, d, "Xvfb", "-displayfd", "1", "-screen", "0", "64x64x8", "-nolisten", "tcp", "-noreset")
	defer x.Terminate(t) // removes its socket and its lock
	x.Out.Await(t, 1, "\n")
	path := "/tmp/.X11-unix/X" + strings.TrimSpace(x.Out.String())
	want := regexp.MustCompile(`^(s\S+ .* ` + path + `|@` + path + `)
  type      (stream socket|stream abstract socket)
  state     live
  listener  ` + regexp.QuoteMeta(who(x.Pid(), "Xvfb")) + `
  backlog   0 of \d+ connections wait
$`)
	for _, p := range []string{path, "@" + path} {
		if got := inspect(t, d, p); !want.MatchString(got) {
			t.Errorf("%s is not like %s", got, want)
		}
	}
}

func TestInspectAFullBacklog(t *testing.T) {
	t.Parallel()
	d := dir(t)
	server, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	defer func() { check(t, unix.Close(server)) }()
	check(t, unix.Bind(server, &unix.SockaddrUnix{Name: d + "/s"}))
	check(t, unix.Listen(server, 2))
	for range 2 {
		conn, err := net.Dial("unix", d+"/s")
		check(t, err)
		defer func() { _ = conn.Close() }()
	}
	comm, err := os.ReadFile("/proc/self/comm")
	check(t, err)
	wantLines(t, inspect(t, d, "s"), `  type      stream socket
  state     live
  listener  `+who(os.Getpid(), strings.TrimSpace(string(comm)))+`
  backlog   2 of 2 connections wait
`)
	// The inspection's own connection, although closed, is now waiting too.
	wantLines(t, inspect(t, d, "stream:s"), `  type      stream socket
  state     live
  listener  `+who(0, "")+`; the kernel reports more only to a connected client
  backlog   full: 3 of 2 connections wait, the kernel admits one more
`)
}

func TestInspectFilesWithoutAServer(t *testing.T) {
	t.Parallel()
	d, l := listen(t)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	check(t, os.Symlink("uds_socket", d+"/link"))
	check(t, os.Symlink("nothing", d+"/dangling"))
	check(t, os.WriteFile(d+"/stream", nil, 0o600))

	live := inspect(t, d, "link")
	wantWords(t, live, " link\n  type      stream socket, through a symbolic link\n  state     live\n")

	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: d + "/stale", Net: "unix"})
	check(t, err)
	stale.SetUnlinkOnClose(false)
	check(t, stale.Close())
	wantLines(t, inspect(t, d, "stale"), "  type      socket\n  state     stale: no process serves it\n")
	wantLines(t, inspect(t, d, "dangling"), "  type      symbolic link, whose target is missing\n")
	wantLines(t, inspect(t, d, "stream"), "  type      regular file\n")
	wantLines(t, inspect(t, d, "."), "  type      directory\n")
	wantFiles(t, d, "dangling", "link", "stale", "stream", "uds_socket")
}

func TestInspectRefusals(t *testing.T) {
	t.Parallel()
	d := dir(t)
	check(t, os.WriteFile(d+"/file", nil, 0o600))
	for _, tt := range []struct {
		status int
		args   []string
		words  string
	}{
		{1, []string{"missing"}, "client: inspect missing: no such file or directory (ENOENT): nothing is there; "},
		{1, []string{"@nobody" + d}, "no server has the name @nobody"},
		{1, []string{"a\x1bb\xff"}, `client: inspect a\x1bb\xff: no such file`},
		{2, nil, `expected "<path> ..."`},
		{2, []string{""}, "the path is empty"},
		{2, []string{"stream:"}, "the path is empty"},
		{2, []string{"tcp:127.0.0.1:7000"}, "tcp:127.0.0.1:7000 is not a path"},
		{2, []string{"--format", "xml", "."}, "--format must be one of"},
	} {
		status, stdout, stderr := run(t, d, "", append([]string{"inspect"}, tt.args...)...)
		if status != tt.status || stdout != "" || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: exit status %d, output %q, error %q", tt.args, status, stdout, stderr)
		}
		wantWords(t, stderr, tt.words)
	}
	// The other path is still shown.
	status, stdout, stderr := run(t, d, "", "inspect", "missing", ".")
	if status != 1 || !strings.HasSuffix(stdout, " .\n  type      directory\n") {
		t.Errorf("exit status %d, output %q, error %q", status, stdout, stderr)
	}
}

func TestInspectInJSONHasAllKeysAlways(t *testing.T) {
	t.Parallel()
	d, _ := listen(t)
	check(t, os.WriteFile(d+"/a\xff\n", nil, 0o600))
	var got []map[string]any
	for line := range strings.Lines(inspect(t, d, "--format", "json", "uds_socket", "a\xff\n")) {
		var o map[string]any
		check(t, json.Unmarshal([]byte(line), &o))
		delete(o, "row")
		got = append(got, o)
	}
	comm, err := os.ReadFile("/proc/self/comm")
	check(t, err)
	if len(got) == 2 {
		delete(got[0], "backlog") // the system's default
	}
	if diff := cmp.Diff([]map[string]any{{
		"path": "uds_socket", "kind": "socket", "type": "stream", "state": "live",
		"uid": float64(os.Geteuid()), "gid": float64(os.Getegid()), "pid": float64(os.Getpid()), "process": strings.TrimSpace(string(comm)),
		"waiting": 0.0, "next_bytes": nil, "full": false, "not_told": "", "why": []any{}, "read_only": false,
	}, {
		"path": `a\xff\n`, "kind": "regular file", "type": "", "state": "", "uid": nil, "gid": nil, "pid": nil, "process": "",
		"waiting": nil, "backlog": nil, "next_bytes": nil, "full": nil, "not_told": "", "why": []any{}, "read_only": false,
	}}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestInspectAsAStranger(t *testing.T) {
	t.Parallel()
	d, _ := listen(t)
	check(t, os.Chmod(d, 0o755))
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: d + "/stale", Net: "unix"})
	check(t, err)
	stale.SetUnlinkOnClose(false)
	check(t, stale.Close())
	// Without root the stranger is the test's own user.
	mode := os.FileMode(0o400)
	as := &syscall.SysProcAttr{}
	if os.Geteuid() == 0 {
		mode = 0o600
		as.Credential = &syscall.Credential{Uid: 10003, Gid: 10003}
	}
	check(t, os.Chmod(d+"/uds_socket", mode))
	check(t, os.Chmod(d+"/stale", mode))
	for _, tt := range []struct {
		path           string
		status         int
		stdout, stderr string
	}{
		{"uds_socket", 0, "  state     live\n  listener  " + who(0, "") + "; the kernel reports more only to a connected client\n  backlog   0 of ", ""},
		{"stale", 1, "  type      socket\n  state     cannot tell: permission denied\n", "cannot tell whether it is served: permission denied (EACCES): " + d + "/stale denies this process permission to connect to it"},
	} {
		cmd := exec.CommandContext(t.Context(), testkit.Program("client"), "inspect", tt.path)
		cmd.Dir, cmd.SysProcAttr = d, as
		stdout, err := cmd.Output()
		var exit *exec.ExitError
		stderr := ""
		if errors.As(err, &exit) {
			stderr = string(exit.Stderr)
		}
		if status := cmd.ProcessState.ExitCode(); status != tt.status {
			t.Errorf("%s: exit status %d, error %q", tt.path, status, stderr)
		}
		wantWords(t, string(stdout), tt.stdout)
		wantWords(t, stderr, tt.stderr)
	}
}
