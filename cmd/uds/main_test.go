package main_test

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/inspect"
	"github.com/udsecho/udsecho/internal/testkit"
)

const roleVar = "UDSTEST_ROLE"

// A child is this test binary again, in a process of its own: it makes sockets,
// prints their numbers, and has them open until its standard input ends.
func TestMain(m *testing.M) {
	if os.Getenv(roleVar) == "" {
		testkit.Main(m, ".", "../../client", "../../server")
		return
	}
	var fds []int
	for _, what := range os.Args[1:] {
		fd, err := makeSocket(what, fds)
		if err != nil {
			fmt.Fprintln(os.Stderr, what, err)
			os.Exit(1)
		}
		fds = append(fds, fd)
	}
	for _, fd := range fds {
		fmt.Println(number(fd))
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

var (
	check     = testkit.Check
	dir       = testkit.Dir
	wantWords = testkit.WantWords
)

func TestScripts(t *testing.T) { testkit.Scripts(t, "testdata/script") }

var soTypes = map[string]int{"stream": unix.SOCK_STREAM, "seqpacket": unix.SOCK_SEQPACKET, "datagram": unix.SOCK_DGRAM}

// makeSocket makes a socket: "listen TYPE NAME", "connect TYPE NAME", or
// "accept" from the first of those that were made before.
func makeSocket(what string, before []int) (fd int, err error) {
	f := strings.Fields(what)
	if f[0] == "accept" {
		fd, _, err = unix.Accept4(before[0], unix.SOCK_CLOEXEC)
		return fd, err
	}
	if fd, err = unix.Socket(unix.AF_UNIX, soTypes[f[1]]|unix.SOCK_CLOEXEC, 0); err != nil {
		return fd, err
	}
	to := &unix.SockaddrUnix{Name: f[2]}
	switch {
	case f[0] == "connect":
		err = unix.Connect(fd, to)
	case f[1] == "datagram":
		err = unix.Bind(fd, to)
	default:
		if err = unix.Bind(fd, to); err == nil {
			err = unix.Listen(fd, 9)
		}
	}
	return fd, err
}

// number returns the number of a socket, as in socket:[N].
func number(fd int) uint32 {
	var st unix.Stat_t
	_ = unix.Fstat(fd, &st)
	return uint32(st.Ino)
}

// own makes sockets in the test's own process, as descriptors.
func own(t *testing.T, what ...string) []int {
	t.Helper()
	fds := make([]int, 0, len(what))
	for _, w := range what {
		fd, err := makeSocket(w, fds)
		if err != nil {
			t.Fatal(w, err)
		}
		fds = append(fds, fd)
		t.Cleanup(func() { shut(t, &fds[len(fds)-1]); fds = fds[:len(fds)-1] })
	}
	return fds
}

// shut closes a descriptor once: by then its number may be another test's.
func shut(t *testing.T, fd *int) {
	t.Helper()
	if *fd >= 0 {
		check(t, unix.Close(*fd))
		*fd = -1
	}
}

// A child has sockets with these numbers.
type child struct {
	*testkit.Process
	numbers []uint32
}

// start starts a process that makes sockets; as is what it runs as.
func start(t *testing.T, d string, as *syscall.SysProcAttr, what ...string) child {
	t.Helper()
	// The link leads to the test binary even for those who may not enter its directory.
	c := child{testkit.Prepare(t, d, append([]string{"/proc/self/exe"}, what...)...), nil}
	c.Cmd.Env = append(c.Cmd.Env, roleVar+"=child")
	c.Cmd.SysProcAttr = as
	c.Start(t)
	t.Cleanup(func() { _ = c.In.Close() }) // before the one that waits for its end
	if !c.Out.Reaches(1, "ready", c.Ended) {
		t.Fatal(c.Err.String())
	}
	for _, line := range strings.Fields(c.Out.String()) {
		var n uint32
		if _, err := fmt.Sscan(line, &n); err == nil {
			c.numbers = append(c.numbers, n)
		}
	}
	return c
}

// run runs uds to its end.
func run(t *testing.T, d string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	return testkit.Run(t, d, "", append([]string{"uds"}, args...)...)
}

// ls returns what uds ls lists.
func ls(t *testing.T, d string, args ...string) []inspect.Socket {
	t.Helper()
	status, stdout, stderr := run(t, d, append([]string{"ls", "--format", "json"}, args...)...)
	if status != 0 {
		t.Fatalf("uds ls %q: exit status %d, %s", args, status, stderr)
	}
	return decode(t, stdout)
}

func decode(t *testing.T, text string) (sockets []inspect.Socket) {
	t.Helper()
	for line := range strings.Lines(text) {
		var s inspect.Socket
		check(t, json.Unmarshal([]byte(line), &s))
		sockets = append(sockets, s)
	}
	return sockets
}

// lines describes sockets.
func lines(sockets ...inspect.Socket) string {
	var b strings.Builder
	for _, s := range sockets {
		waiting := "-"
		if s.Waiting != nil {
			waiting = fmt.Sprintf("%d/%d", *s.Waiting, *s.Backlog)
		}
		fmt.Fprintf(&b, "%s %s %s open %d: %s\n", s.Type, s.Address, waiting, s.Open, end(s.Server))
		var ends []string
		for _, c := range s.Connections {
			ends = append(ends, end(c.Client), end(c.Server))
		}
		b.WriteString(connections(ends...))
	}
	return b.String()
}

// connections describes connections by their ends, in the order of the text.
func connections(ends ...string) string {
	var all []string
	for two := range slices.Chunk(ends, 2) {
		all = append(all, fmt.Sprintf("  %s - %s\n", two[0], two[1]))
	}
	slices.Sort(all)
	return strings.Join(all, "")
}

// end describes an open socket by its number and its processes.
func end(e *inspect.End) string {
	if e == nil {
		return "none"
	}
	return has(e.Inode, pids(e)...)
}

func pids(e *inspect.End) (pids []int) {
	for _, p := range e.Processes {
		pids = append(pids, p.PID)
	}
	return pids
}

func has(number uint32, pids ...int) string {
	slices.Sort(pids)
	return fmt.Sprint(number, pids)
}
