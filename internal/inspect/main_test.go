package inspect_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/inspect"
	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

const roleVar = "INSPECT_TEST_ROLE"

// A child is this test binary again, as another user: it inspects paths.
func TestMain(m *testing.M) {
	if os.Getenv(roleVar) == "" {
		goleak.VerifyTestMain(m)
		return
	}
	for _, path := range os.Args[1:] {
		in, err := inspect.Path(path)
		o := outcome{Result: in}
		if err != nil {
			o.Err = err.Error()
		}
		_ = json.NewEncoder(os.Stdout).Encode(o)
	}
}

type outcome struct {
	Result *inspect.Result
	Err    string
}

// asStranger inspects paths as a user without any permissions; without root,
// as the test's own user.
func asStranger(t *testing.T, paths ...string) (all []outcome) {
	t.Helper()
	// The stranger has no access to the directory of the test binary; the link
	// in /proc leads to the binary anyway.
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", paths...)
	cmd.Env = append(os.Environ(), roleVar+"=stranger", "GORACE=atexit_sleep_ms=0") // otherwise it takes a second to end
	cmd.Dir, cmd.Stderr = "/", os.Stderr
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 10003, Gid: 10003}}
	}
	out, err := cmd.Output()
	check(t, err)
	for line := range strings.Lines(string(out)) {
		var o outcome
		check(t, json.Unmarshal([]byte(line), &o))
		if o.Result == nil {
			t.Fatal(o.Err)
		}
		all = append(all, o)
	}
	return all
}

// closedMode returns a mode of a socket file that denies access to the
// stranger. Without root, the stranger is the test's own user; only a file
// without any write permission denies access to it.
func closedMode() os.FileMode {
	if os.Geteuid() == 0 {
		return 0o600
	}
	return 0o400
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// dir returns a short path, because sun_path is short; the path of t.TempDir
// is long.
func dir(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("", "uds")
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(d)) })
	check(t, os.Chmod(d, 0o755))
	return d
}

func stream(path string) sock.Addr   { return sock.Addr{Type: sock.Stream, Path: path} }
func datagram(path string) sock.Addr { return sock.Addr{Type: sock.Datagram, Path: path} }

var sotypes = map[sock.Type]int{sock.Stream: unix.SOCK_STREAM, sock.Datagram: unix.SOCK_DGRAM, sock.Seqpacket: unix.SOCK_SEQPACKET}

func listen(t *testing.T, c sock.ListenConfig, a sock.Addr) {
	t.Helper()
	s, err := c.Listen(a)
	check(t, err)
	t.Cleanup(func() { check(t, s.Close()) })
}

// stale leaves the file of a socket that no process serves.
func stale(t *testing.T, path string) {
	t.Helper()
	defer testkit.NoStarts(t)()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	check(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
	check(t, unix.Close(fd))
}

func wantWords(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q does not contain %q", text, w)
		}
	}
}
