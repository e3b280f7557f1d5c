//go:build linux

package sock_test

import (
	"context"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

var (
	asStranger = testkit.AsStranger
	check      = testkit.Check
	dir        = testkit.Dir
	stale      = testkit.Stale
	start      = testkit.Start
	wantError  = testkit.WantError
	wantFiles  = testkit.WantFiles
)

func TestMain(m *testing.M) {
	testkit.Main(m, map[string]func([]string) (io.Closer, error){
		// listen ADDRESS MODE UMASK
		"listen": func(args []string) (io.Closer, error) {
			unix.Umask(int(octal(args[2])))
			return sock.ListenConfig{Mode: octal(args[1])}.Listen(parse(args[0]))
		},
		// dial ADDRESS NAME, and perhaps MESSAGE, which it sends
		"dial": func(args []string) (io.Closer, error) {
			unix.Umask(0)
			conn, err := sock.Dial(context.Background(), parse(args[0]), sock.DialConfig{Bind: args[1]})
			if err == nil && len(args) > 2 {
				err = conn.Send([]byte(args[2]))
			}
			return conn, err
		},
		// hand ADDRESS: it answers no server that asks. With a second argument it
		// offers its socket to the first one, and then answers no more.
		"hand": func(args []string) (io.Closer, error) {
			unix.Umask(0)
			h, err := sock.ListenConfig{}.Handover(context.Background(), parse(args[0]))
			if err == nil && len(args) > 1 {
				go func() {
					if sock.Wait(context.Background(), h.FD()) == nil {
						_, _ = h.Step()
					}
				}()
			}
			return closer{h}, err
		},
	})
}

type closer struct{ *sock.Handover }

func (c closer) Close() error { end(c.Handover); return nil }

func parse(s string) sock.Addr {
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

var types = map[sock.Type]int{sock.Stream: unix.SOCK_STREAM, sock.Datagram: unix.SOCK_DGRAM, sock.Seqpacket: unix.SOCK_SEQPACKET}

func stream(path string) sock.Addr    { return sock.Addr{Type: sock.Stream, Path: path} }
func datagram(path string) sock.Addr  { return sock.Addr{Type: sock.Datagram, Path: path} }
func seqpacket(path string) sock.Addr { return sock.Addr{Type: sock.Seqpacket, Path: path} }

// beside returns the path of a hidden file that belongs to the socket at path: its
// lock, ".lock", or its control socket, ".takeover".
func beside(path, suffix string) string {
	d, name := filepath.Split(path)
	return d + "." + name + suffix
}

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

// dialError dials and hangs up.
func dialError(a sock.Addr, c sock.DialConfig) error {
	conn, err := sock.Dial(context.Background(), a, c)
	if err != nil {
		return err
	}
	return conn.Close()
}

// accept accepts the connection that waits at a socket; for datagrams it returns
// the socket.
func accept(t testing.TB, a sock.Addr, fd int) int {
	t.Helper()
	if a.Type == sock.Datagram {
		return fd
	}
	conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
	check(t, err)
	t.Cleanup(func() { check(t, unix.Close(conn)) })
	return conn
}

// socket returns a socket of a type without this package.
func socket(t testing.TB, typ sock.Type) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, types[typ]|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// bound returns a socket that is served without this package.
func bound(t testing.TB, a sock.Addr) int {
	t.Helper()
	fd := socket(t, a.Type)
	check(t, unix.Bind(fd, &unix.SockaddrUnix{Name: a.Path}))
	if a.Type != sock.Datagram {
		check(t, unix.Listen(fd, 8))
	}
	return fd
}

// pair returns two sockets of a type, connected to each other.
func pair(t testing.TB, typ sock.Type) (a, b int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, types[typ]|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	check(t, err)
	t.Cleanup(func() { _, _ = unix.Close(fds[0]), unix.Close(fds[1]) })
	return fds[0], fds[1]
}

func send(t testing.TB, fd int, message string) {
	t.Helper()
	check(t, unix.Sendto(fd, []byte(message), 0, nil))
}

// wantMessage checks what a function of a Receiver returns.
func wantMessage(t testing.TB, want string, got []byte, err error) {
	t.Helper()
	if err != nil || string(got) != want {
		t.Fatalf("received %.100q, %v, not %.100q", got, err, want)
	}
}

// keeps returns a check that a directory and its files are what they are now.
func keeps(t testing.TB, d string) func() {
	t.Helper()
	type file struct {
		mode     fs.FileMode
		inode    uint64
		changed  int64
		contents string
	}
	look := func() map[string]file {
		files := map[string]file{}
		entries, err := os.ReadDir(d)
		check(t, err)
		for _, e := range entries {
			path := d + "/" + e.Name()
			info, err := os.Lstat(path)
			check(t, err)
			f := file{mode: info.Mode(), inode: info.Sys().(*syscall.Stat_t).Ino, changed: info.ModTime().UnixNano()}
			switch f.mode.Type() {
			case 0:
				text, err := os.ReadFile(path)
				check(t, err)
				f.contents = string(text)
			case fs.ModeSymlink:
				f.contents, err = os.Readlink(path)
				check(t, err)
			}
			files[e.Name()] = f
		}
		return files
	}
	before := look()
	return func() {
		t.Helper()
		if now := look(); !maps.Equal(before, now) {
			t.Errorf("the files are %v, were %v", now, before)
		}
	}
}

// keepsDescriptors returns a check that this process has as many as now. Such a
// test cannot be parallel.
func keepsDescriptors(t testing.TB) func() {
	t.Helper()
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		check(t, err)
		return len(entries)
	}
	before := count()
	return func() {
		t.Helper()
		if now := count(); now != before {
			t.Errorf("%d descriptors are open, %d were", now, before)
		}
	}
}

func asSelf(f func()) { f() }

// pester attempts something again and again, as the stranger for example. The
// first function that it returns waits for a result, the other one ends it and
// returns how often each result came.
func pester(t *testing.T, as func(func()), attempt func() error) (until func(error), results func() map[error]int) {
	t.Helper()
	var mu sync.Mutex
	counts := map[error]int{}
	over, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		as(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				err := attempt()
				mu.Lock()
				counts[err]++
				mu.Unlock()
			}
		})
	}()
	stop := sync.OnceFunc(func() {
		close(over)
		<-ended
	})
	t.Cleanup(stop)
	until = func(want error) {
		t.Helper()
		testkit.Await(t, func() error {
			mu.Lock()
			defer mu.Unlock()
			if counts[want] == 0 {
				return fs.ErrNotExist
			}
			return nil
		})
	}
	return until, func() map[error]int {
		stop()
		return counts
	}
}
