//go:build linux

package testkit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Stranger is a user without any permissions.
const Stranger = 10003

// A Child is this test binary again, in a process of its own: the umask belongs
// to a process, and only a process can be killed. At each cue it opens what its
// role opens, at the next it closes that, and then it prints a line, "ok" or the
// error.
type Child struct {
	Cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

const roleVar = "UDS_TEST_ROLE"

// Main runs the tests and checks that no goroutine of the library is left, or it
// is a [Child].
func Main(m *testing.M, roles map[string]func(args []string) (io.Closer, error)) {
	role := os.Getenv(roleVar)
	if role == "" {
		code := m.Run()
		if left := leaked(); code == 0 && left != "" {
			fmt.Println(left)
			code = 1
		}
		os.Exit(code)
	}
	report := func(err error) {
		if err == nil {
			err = errors.New("ok")
		}
		fmt.Println(err)
	}
	for cue := bufio.NewScanner(os.Stdin); cue.Scan(); {
		c, err := roles[role](os.Args[1:])
		report(err)
		if err == nil {
			cue.Scan()
			report(c.Close())
		}
	}
}

// leaked returns the stacks of goroutines of this module that do not end.
func leaked() string {
	buf := make([]byte, 1<<20)
	for late := time.Now().Add(Patience); ; time.Sleep(5 * time.Millisecond) {
		stacks := strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")[1:] // the first is this one
		stacks = slices.DeleteFunc(stacks, func(s string) bool { return !strings.Contains(s, "/udsecho/uds") })
		if len(stacks) == 0 || time.Now().After(late) {
			return strings.Join(stacks, "\n\n")
		}
	}
}

// Start starts a child as a user: 0 is the test's own. Without root all are.
func Start(t testing.TB, uid int, role string, args ...string) *Child {
	t.Helper()
	// The stranger has no access to the directory of the test binary; the link
	// in /proc leads to the binary anyway.
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleVar+"="+role, "GORACE=atexit_sleep_ms=0") // otherwise each takes a second to end
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	if isRoot && uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	in, err := cmd.StdinPipe()
	Check(t, err)
	out, err := cmd.StdoutPipe()
	Check(t, err)
	Check(t, cmd.Start())
	t.Cleanup(func() {
		_ = in.Close()
		cancel()
		_ = cmd.Wait()
	})
	return &Child{cmd, in, bufio.NewScanner(out)}
}

// Cue gives the next cue.
func (c *Child) Cue(t testing.TB) {
	t.Helper()
	Check(t, Err(io.WriteString(c.in, "\n")))
}

// Line returns the next line that the child prints.
func (c *Child) Line(t testing.TB) string {
	t.Helper()
	if !c.out.Scan() {
		t.Fatalf("the child ended early: %v", c.out.Err())
	}
	return c.out.Text()
}

// Do gives the next cue, which the child must follow without an error.
func (c *Child) Do(t testing.TB) {
	t.Helper()
	c.Cue(t)
	if got := c.Line(t); got != "ok" {
		t.Fatal(got)
	}
}

// End makes the child close what it has open, and waits for its end.
func (c *Child) End(t testing.TB) {
	t.Helper()
	Check(t, c.in.Close())
	for c.out.Scan() {
	}
	Check(t, c.Cmd.Wait())
}

// Kill kills the child.
func (c *Child) Kill(t testing.TB) {
	t.Helper()
	Check(t, c.Cmd.Process.Kill())
	_ = c.Cmd.Wait()
	if status, ok := c.Cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != unix.SIGKILL {
		t.Fatalf("it has ended by itself: %v", c.Cmd.ProcessState)
	}
}

// AsStranger runs f as the stranger: on a thread of its own, which ends with f.
// Without root the stranger is the user of the test; see [ClosedMode].
func AsStranger(f func()) {
	ended, done := false, make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() { // the main thread does not end
			defer runtime.UnlockOSThread()
			AsStranger(f)
			ended = true
			return
		}
		if isRoot {
			for _, call := range [][2]uintptr{{unix.SYS_SETGROUPS, 0}, {unix.SYS_SETRESGID, Stranger}, {unix.SYS_SETRESUID, Stranger}} {
				if _, _, errno := unix.RawSyscall(call[0], call[1], call[1], call[1]); errno != 0 {
					panic(errno)
				}
			}
		}
		f()
		ended = true
	}()
	<-done
	if !ended { // a test has failed
		runtime.Goexit()
	}
}

var isRoot = os.Geteuid() == 0

// ClosedMode returns a mode of a socket file that denies access to the
// stranger. Without root only a file without any write permission does.
func ClosedMode() fs.FileMode {
	if isRoot {
		return 0o600
	}
	return 0o400
}

// Missing skips a test that lacks something. With CI=true in the environment
// the test fails instead, so that nothing stays untested there.
func Missing(t testing.TB, what, cure string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("missing %s: %s", what, cure)
	}
	t.Skipf("missing %s: %s", what, cure)
}

// ReportFault reports a row of docs/faults.csv at the end of a test that has not
// failed, as that of the other module's testkit does: the test fails if the file
// has another row, numbers aside that belong to one run; with FAULTS=write it
// writes the row.
func ReportFault(t *testing.T, id string, count int, done, outcome string) {
	t.Helper()
	f, err := os.OpenFile("../../docs/faults.csv", os.O_RDWR, 0)
	if t.Failed() || errors.Is(err, fs.ErrNotExist) { // this module stands alone
		return
	}
	Check(t, err)
	defer func() { _ = f.Close() }()
	Check(t, unix.Flock(int(f.Fd()), unix.LOCK_EX)) // tests of several packages run at the same time
	rows, err := csv.NewReader(f).ReadAll()
	Check(t, err)
	row := []string{id, strconv.Itoa(count), done, outcome, t.Name()}
	i := slices.IndexFunc(rows, func(r []string) bool { return r[0] == id })
	if i < 0 {
		t.Fatalf("docs/faults.csv has no row of %s yet; add one", id)
	}
	if os.Getenv("FAULTS") == "write" {
		rows[i] = row
		var text bytes.Buffer
		Check(t, errors.Join(csv.NewWriter(&text).WriteAll(rows), os.WriteFile(f.Name(), text.Bytes(), 0o644)))
		return
	}
	number := regexp.MustCompile(`[0-9][0-9,.]*`)
	for column, got := range row {
		want := rows[i][column]
		if column == 3 || column > 0 && column < 3 && Count(0, 1) == 0 {
			got, want = number.ReplaceAllString(got, "#"), number.ReplaceAllString(want, "#")
		}
		if got != want {
			t.Errorf("docs/faults.csv and the test differ: run `make faults`\n file: %q\n test: %q", rows[i], row)
		}
	}
}
