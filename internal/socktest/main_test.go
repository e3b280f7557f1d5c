// Package socktest tests package sock. It is not in the module of that package,
// which needs nothing but golang.org/x/sys.
package socktest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

// A child is this test binary again, in a process of its own: the umask and
// the user belong to a process, and only a process can be killed. An
// environment variable holds its role.
const roleVar = "UDS_TEST_ROLE"

var roles = map[string]func(args []string) error{
	"listen":  listenRole,
	"dial":    dialRole,
	"restart": restartRole,
	"knock":   knockRole,
	"send":    sendRole,
	"answer":  answerRole,
	"redial":  redialRole,
	"poke":    pokeRole,
	"hold":    holdRole,
	"hand":    handRole,
	"full":    fullRole,
	"appear":  appearRole,
	"await":   awaitRole,
	"until":   untilRole,
}

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVar); role != "" {
		if err := roles[role](os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

const patience = testkit.Patience

var (
	beside    = testkit.Beside
	check     = testkit.Check
	dir       = testkit.Dir
	gone      = testkit.WantGone
	wantWords = testkit.WantWords
)

// stranger is a user id without any permissions.
const stranger = 10003

type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser // closing it is the cue
	out *bufio.Scanner
}

// start starts a child, as the stranger if uid is the stranger's. A test that
// does not run as root cannot choose the user; see [closedMode].
func start(t *testing.T, uid int, files []*os.File, role string, args ...string) *child {
	t.Helper()
	// The stranger has no access to the directory of the test binary; the link
	// in /proc leads to the binary anyway.
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleVar+"="+role, "GORACE=atexit_sleep_ms=0") // otherwise each takes a second to end
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = files
	if os.Geteuid() == 0 && uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	in, err := cmd.StdinPipe()
	check(t, err)
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	t.Cleanup(func() {
		_ = in.Close()
		cancel()
		_ = cmd.Wait()
	})
	return &child{cmd, in, bufio.NewScanner(out)}
}

// closedMode returns a mode of a socket file that denies access to the
// stranger. Without root, the stranger is the same user as the test; then only
// a file without any write permission denies access.
func closedMode() fs.FileMode {
	if os.Geteuid() == 0 {
		return 0o600
	}
	return 0o400
}

func (c *child) line(t *testing.T) string {
	t.Helper()
	if !c.out.Scan() {
		t.Fatalf("the child ended early: %v", c.out.Err())
	}
	return c.out.Text()
}

// end gives the cue and waits for the child to exit without an error.
func (c *child) end(t *testing.T) {
	t.Helper()
	check(t, c.in.Close())
	for c.out.Scan() {
	}
	check(t, c.cmd.Wait())
}

// outcome is an error as a child reports it.
type outcome struct {
	Err                       string
	Errno                     syscall.Errno
	InUse, NotSocket, Address bool
}

func report(err error) {
	var o outcome
	if err != nil {
		o.Err = err.Error()
		errors.As(err, &o.Errno)
		o.InUse, o.NotSocket, o.Address = errors.Is(err, sock.ErrInUse), errors.Is(err, sock.ErrNotSocket), errors.Is(err, sock.ErrAddress)
	}
	_ = json.NewEncoder(os.Stdout).Encode(o)
}

func (c *child) outcome(t *testing.T) outcome {
	t.Helper()
	var o outcome
	check(t, json.Unmarshal([]byte(c.line(t)), &o))
	return o
}

// listenRole listens once and holds the socket until the cue. If it was given
// another file, the end of that file is the cue to begin.
func listenRole(args []string) error {
	address, mode, umask := mustParse(args[0]), octal(args[1]), octal(args[2])
	unix.Umask(int(umask))
	if begin := os.NewFile(3, "begin"); len(args) > 3 {
		_, _ = io.Copy(io.Discard, begin)
	}
	s, err := sock.ListenConfig{Mode: mode}.Listen(address)
	report(err)
	_, _ = io.Copy(io.Discard, os.Stdin)
	if err != nil {
		return nil
	}
	return s.Close()
}

func dialRole(args []string) error {
	conn, err := sock.Dial(context.Background(), mustParse(args[0]), sock.DialConfig{})
	report(err)
	if err != nil {
		return nil
	}
	return conn.Close()
}

// restartRole listens many times under umask 0, and the last time until the
// cue.
func restartRole(args []string) error {
	unix.Umask(0)
	address, mode := mustParse(args[0]), octal(args[1])
	for range 100 {
		s, err := sock.ListenConfig{Mode: mode}.Listen(address)
		if err != nil {
			return err
		}
		if err := s.Close(); err != nil {
			return err
		}
	}
	s, err := sock.ListenConfig{Mode: mode}.Listen(address)
	report(err)
	_, _ = io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, s.Close())
}

// knockRole tries again and again, until the cue, to connect or to send a
// datagram. It prints a line when it starts and when it is first denied. At
// the end it prints how often it tried, and how often it passed the file's
// mode: connected, or refused only because no process was listening yet.
func knockRole(args []string) error {
	address := mustParse(args[0])
	server := &unix.SockaddrUnix{Name: address.Path}
	over := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(over)
	}()
	fmt.Println("knocking")
	denied, tried, passed := false, 0, 0
	for {
		select {
		case <-over:
			fmt.Println(tried, passed)
			return nil
		default:
		}
		tried++
		fd, err := unix.Socket(unix.AF_UNIX, sotypes[address.Type]|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		if address.Type == sock.Datagram {
			err = unix.Sendto(fd, []byte("knock"), 0, server)
		} else {
			err = unix.Connect(fd, server)
		}
		switch {
		case err == unix.EACCES && !denied:
			denied = true
			fmt.Println("denied")
		case err != unix.EACCES && err != unix.ENOENT:
			passed++
		}
		if err := unix.Close(fd); err != nil {
			return err
		}
	}
}

// sendRole sends a message.
func sendRole(args []string) error {
	conn, err := sock.Dial(context.Background(), mustParse(args[0]), sock.DialConfig{})
	if err == nil {
		_, err = conn.Write([]byte(args[1]))
		err = errors.Join(err, conn.Close())
	}
	report(err)
	return nil
}

// answerRole answers the first datagram.
func answerRole(args []string) error {
	s, err := sock.ListenConfig{Mode: 0o666}.Listen(mustParse(args[0]))
	report(err)
	if err != nil {
		return nil
	}
	if err := unix.SetNonblock(s.FD(), false); err != nil {
		return err
	}
	buf := make([]byte, 100)
	n, client, err := unix.Recvfrom(s.FD(), buf, 0)
	if err == nil {
		err = unix.Sendto(s.FD(), buf[:n], 0, client)
	}
	report(err)
	return s.Close()
}

// redialRole makes a datagram client many times under umask 0, and the last
// time until the cue.
func redialRole(args []string) error {
	unix.Umask(0)
	server, config := mustParse(args[0]), sock.DialConfig{Bind: args[1]}
	for range 100 {
		conn, err := sock.Dial(context.Background(), server, config)
		if err != nil {
			return err
		}
		if err := conn.Close(); err != nil {
			return err
		}
	}
	conn, err := sock.Dial(context.Background(), server, config)
	report(err)
	if err != nil {
		return nil
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return conn.Close()
}

// pokeRole sends datagrams to a client's own socket until the cue. It prints a
// line when it starts, when the mode first kept it out, and when the
// connection first did. At the end it prints how many datagrams it delivered.
func pokeRole(args []string) error {
	over := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(over)
	}()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	fmt.Println("poking")
	got, passed := map[error]bool{}, 0
	for {
		select {
		case <-over:
			fmt.Println(passed)
			return unix.Close(fd)
		default:
		}
		switch err := unix.Sendto(fd, []byte("poke"), 0, &unix.SockaddrUnix{Name: args[0]}); err {
		case unix.EACCES, unix.EPERM:
			if !got[err] {
				got[err] = true
				fmt.Println(unix.ErrnoName(err.(unix.Errno)))
			}
		case nil, unix.EAGAIN:
			passed++
		}
	}
}

var sotypes = map[sock.Type]int{sock.Stream: unix.SOCK_STREAM, sock.Datagram: unix.SOCK_DGRAM, sock.Seqpacket: unix.SOCK_SEQPACKET}

func mustParse(s string) sock.Addr {
	a, err := sock.ParseAddr(s)
	if err != nil {
		panic(err)
	}
	return a
}

func octal(s string) fs.FileMode {
	m, err := strconv.ParseUint(s, 8, 32)
	if err != nil {
		panic(err)
	}
	return fs.FileMode(m)
}

func stream(path string) sock.Addr   { return sock.Addr{Type: sock.Stream, Path: path} }
func datagram(path string) sock.Addr { return sock.Addr{Type: sock.Datagram, Path: path} }

func listen(t testing.TB, c sock.ListenConfig, a sock.Addr) *sock.Socket {
	t.Helper()
	s, err := c.Listen(a)
	check(t, err)
	t.Cleanup(func() { check(t, s.Close()) })
	return s
}

func dial(t testing.TB, a sock.Addr) *sock.Conn {
	t.Helper()
	conn, err := sock.Dial(t.Context(), a, sock.DialConfig{})
	check(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// stale leaves the file of a socket that no process serves.
func stale(t testing.TB, path string) {
	t.Helper()
	syscall.ForkLock.RLock() // otherwise a child that is being started has a copy of the socket
	defer syscall.ForkLock.RUnlock()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	check(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
	check(t, unix.Close(fd))
}

func inode(t testing.TB, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	check(t, unix.Lstat(path, &st))
	return st.Ino
}

func wantError(t testing.TB, err, want error, words ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error is %v, not %v", err, want)
	}
	wantWords(t, err.Error(), words...)
}

func say(conn *sock.Conn, words string) error {
	_, err := conn.Write([]byte(words))
	return err
}
