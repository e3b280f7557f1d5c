package socktest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/nettest"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

func TestConn(t *testing.T) {
	t.Parallel()
	for _, bind := range []string{"", "client"} {
		t.Run("bind "+bind, func(t *testing.T) {
			t.Parallel()
			nettest.TestConn(t, func() (_, _ net.Conn, _ func(), err error) {
				d, err := os.MkdirTemp("", "uds")
				if err != nil {
					return nil, nil, nil, err
				}
				s, err := sock.ListenConfig{}.Listen(stream(d + "/s"))
				if err != nil {
					return nil, nil, nil, err
				}
				l, err := sock.NetListener(s.FD())
				if err != nil {
					return nil, nil, nil, err
				}
				config := sock.DialConfig{}
				if bind != "" {
					config.Bind = d + "/" + bind
				}
				c1, err := sock.Dial(t.Context(), s.Addr(), config)
				if err != nil {
					return nil, nil, nil, err
				}
				c2, err := l.Accept()
				return c1, c2, func() {
					// The connections may be closed already.
					_, _ = c1.Close(), c2.Close()
					if err := errors.Join(l.Close(), s.Close(), os.Remove(d)); err != nil {
						t.Error(err)
					}
				}, err
			})
		})
	}
}

// fill connects until the backlog is full.
func fill(t *testing.T, a sock.Addr) {
	t.Helper()
	for range 5 {
		conn, err := sock.Dial(t.Context(), a, sock.DialConfig{})
		if errors.Is(err, unix.EAGAIN) {
			return
		}
		check(t, err)
		t.Cleanup(func() { _ = conn.Close() })
	}
	t.Fatal("the backlog of 1 takes 5 connections")
}

func TestDialErrorsCarryErrnoAndCure(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		errno error
		make  func(t *testing.T, path string)
		words []string
	}{
		{"missing", unix.ENOENT, func(*testing.T, string) {}, []string{"ENOENT", "start the server first, or keep trying"}},
		{"stale", unix.ECONNREFUSED, func(t *testing.T, path string) { stale(t, path) }, []string{"ECONNREFUSED", "stale", "start the server again"}},
		{"backlog full", unix.EAGAIN, func(t *testing.T, path string) {
			listen(t, sock.ListenConfig{Backlog: 1}, stream(path))
			fill(t, stream(path))
		}, []string{"EAGAIN", "backlog is full; keep trying"}},
		{"regular file", unix.ECONNREFUSED, func(t *testing.T, path string) {
			check(t, os.WriteFile(path, []byte("precious"), 0o640))
		}, []string{"ECONNREFUSED", "/s is a regular file, not a socket", "use the path of a server's socket"}},
		{"directory", unix.ECONNREFUSED, func(t *testing.T, path string) {
			check(t, os.Mkdir(path, 0o750))
		}, []string{"ECONNREFUSED", "/s is a directory, not a socket"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			tt.make(t, d+"/s")
			// With a client socket of its own: its file must be removed.
			_, err := sock.Dial(t.Context(), stream(d+"/s"), sock.DialConfig{Bind: d + "/client"})
			wantError(t, err, tt.errno, append(tt.words, "connect stream:"+d+"/s")...)
			gone(t, d+"/client")
		})
	}
}

func TestDialWrongTypeNamesTheRealOne(t *testing.T) {
	t.Parallel()
	types := []sock.Type{sock.Stream, sock.Datagram, sock.Seqpacket}
	for _, real := range types {
		for _, asked := range types {
			if asked == real {
				continue
			}
			t.Run(string(asked)+" to "+string(real), func(t *testing.T) {
				t.Parallel()
				d := dir(t)
				path := d + "/s"
				listen(t, sock.ListenConfig{}, sock.Addr{Type: real, Path: path})
				_, err := sock.Dial(t.Context(), sock.Addr{Type: asked, Path: path}, sock.DialConfig{Bind: d + "/client"})
				wantError(t, err, unix.EPROTOTYPE, "connect "+string(asked)+":"+path+": ", "(EPROTOTYPE)",
					fmt.Sprintf("%s is a %s socket; use %s:%s", path, real, real, path))
				gone(t, d+"/client")
			})
		}
	}
}

func TestDialInMissingDirectory(t *testing.T) {
	t.Parallel()
	d := dir(t)
	_, err := sock.Dial(t.Context(), stream(d+"/none/s"), sock.DialConfig{})
	wantError(t, err, unix.ENOENT, "directory "+d+"/none does not exist", "mount the volume")
}

func TestDialWithoutPermission(t *testing.T) {
	t.Parallel()
	a := stream(dir(t) + "/s")
	listen(t, sock.ListenConfig{Mode: closedMode()}, a)
	o := start(t, stranger, nil, "dial", a.String()).outcome(t)
	if o.Errno != unix.EACCES {
		t.Fatalf("error is %q", o.Err)
	}
	wantWords(t, o.Err, "EACCES", "connect "+a.String(), a.Path+" denies this process permission to connect to it: its mode is ", "of user "+strconv.Itoa(os.Geteuid()), "this process is")
}

func TestDialIsAllowedByMode(t *testing.T) {
	t.Parallel()
	a := stream(dir(t) + "/s")
	listen(t, sock.ListenConfig{Mode: 0o666}, a)
	if o := start(t, stranger, nil, "dial", a.String()).outcome(t); o.Err != "" {
		t.Error(o.Err)
	}
}

func TestDialEndsWithContext(t *testing.T) {
	t.Parallel()
	a := stream(dir(t) + "/s")
	listen(t, sock.ListenConfig{}, a)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if conn, err := sock.Dial(ctx, a, sock.DialConfig{}); err == nil {
		_ = conn.Close()
		t.Error("connected although the context is over")
	}
}

func TestBoundNameIsSeenAndRemovedOnClose(t *testing.T) {
	t.Parallel()
	d := dir(t)
	s := listen(t, sock.ListenConfig{}, stream(d+"/s"))
	l, err := sock.NetListener(s.FD())
	check(t, err)
	defer func() { check(t, l.Close()) }()
	for _, name := range []string{d + "/client", sock.AutoName(d), sock.AutoName("@")} {
		conn, err := sock.Dial(t.Context(), s.Addr(), sock.DialConfig{Bind: name})
		check(t, err)
		served, err := l.Accept()
		check(t, err)
		if got := served.RemoteAddr().String(); got != name {
			t.Errorf("the server sees %q, not %q", got, name)
		}
		if name[0] != '@' {
			// The server, maybe run by another user, sends datagrams to it.
			info, err := os.Lstat(name)
			check(t, err)
			if info.Mode().Perm() != 0o666 {
				t.Errorf("mode of %s is %v", name, info.Mode())
			}
		}
		check(t, conn.Close())
		gone(t, name)
		check(t, served.Close())
	}
}

// The server may run as another user, and writes to the client's socket file.
func TestServerOfAnotherUserAnswersDatagramClient(t *testing.T) {
	t.Parallel()
	d := dir(t)
	check(t, os.Chmod(d, 0o777))
	server := start(t, stranger, nil, "answer", "datagram:"+d+"/s")
	if o := server.outcome(t); o.Err != "" {
		t.Fatal(o.Err)
	}
	conn, err := sock.Dial(t.Context(), datagram(d+"/s"), sock.DialConfig{Bind: d + "/client"})
	check(t, err)
	defer func() { _ = conn.Close() }()
	check(t, conn.SetDeadline(time.Now().Add(patience)))
	_, err = conn.Write([]byte("hello"))
	check(t, err)
	if o := server.outcome(t); o.Err != "" {
		t.Fatalf("the server cannot answer: %s", o.Err)
	}
	message := make([]byte, 100)
	if n, err := conn.Read(message); err != nil || string(message[:n]) != "hello" {
		t.Errorf("received %q, %v", message[:n], err)
	}
	check(t, conn.Close())
	server.end(t)
	if names := ls(t, d); names != nil {
		t.Errorf("left behind: %v", names)
	}
}

// The file's mode gives every user access, but only after connect(2) has
// closed the socket to all but the server.
func TestDatagramClientIsAtNoMomentOpenToStrangers(t *testing.T) {
	t.Parallel()
	d := dir(t)
	listen(t, sock.ListenConfig{}, datagram(d+"/s"))
	poking := start(t, stranger, nil, "poke", d+"/client")
	if got := poking.line(t); got != "poking" {
		t.Fatal(got)
	}
	client := start(t, 0, nil, "redial", "datagram:"+d+"/s", d+"/client")
	if o := client.outcome(t); o.Err != "" {
		t.Fatal(o.Err)
	}
	// The last client stays until the stranger has tried to connect to one.
	for poking.line(t) != "EPERM" {
	}
	check(t, poking.in.Close())
	passed := poking.line(t)
	if passed == "EACCES" {
		passed = poking.line(t)
	}
	// Only root can start the stranger as another user.
	if os.Geteuid() == 0 && passed != "0" {
		t.Errorf("the stranger got %s datagrams in", passed)
	}
	client.end(t)
	gone(t, d+"/client")
}

func TestBindLeavesExistingFilesAlone(t *testing.T) {
	t.Parallel()
	d := dir(t)
	a := stream(d + "/s")
	listen(t, sock.ListenConfig{}, a)
	check(t, os.WriteFile(d+"/file", []byte("precious"), 0o640))
	stale(t, d+"/stale")
	for _, name := range []string{d + "/file", d + "/stale"} {
		before := take(t, name)
		_, err := sock.Dial(t.Context(), a, sock.DialConfig{Bind: name})
		wantError(t, err, sock.ErrInUse, "bind the client's own name "+name, "left alone")
		if after := take(t, name); after != before {
			t.Errorf("%s changed: %+v, was %+v", name, after, before)
		}
	}
	_, err := sock.Dial(t.Context(), a, sock.DialConfig{Bind: d + "/none/client"})
	wantError(t, err, unix.ENOENT, "bind the client's own name", "directory "+d+"/none does not exist")
}

func TestAutoNameIsUniqueAndShort(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 1000 {
		name := sock.AutoName("/run/uds")
		if seen[name] {
			t.Fatalf("%s came twice", name)
		}
		seen[name] = true
		if filepath.Dir(name) != "/run/uds" || len(filepath.Base(name)) > 40 {
			t.Fatalf("name is %s", name)
		}
		if !strings.Contains(name, "."+strconv.Itoa(os.Getpid())+".") {
			t.Fatalf("%s has no process id", name)
		}
	}
	if name := sock.AutoName("@"); !strings.HasPrefix(name, "@client.") {
		t.Errorf("abstract name is %s", name)
	}
	if name := sock.AutoName("."); strings.Contains(name, "/") {
		t.Errorf("name in this directory is %s", name)
	}
}

func TestCloseWriteEndsOneDirection(t *testing.T) {
	t.Parallel()
	s := listen(t, sock.ListenConfig{}, stream(dir(t)+"/s"))
	l, err := sock.NetListener(s.FD())
	check(t, err)
	defer func() { check(t, l.Close()) }()
	conn := dial(t, s.Addr())
	served, err := l.Accept()
	check(t, err)
	check(t, conn.CloseWrite())
	_, err = io.Copy(served, served)
	check(t, err)
	_, err = served.Write([]byte("still here"))
	check(t, err)
	check(t, served.Close())
	got, err := io.ReadAll(conn)
	check(t, err)
	if string(got) != "still here" {
		t.Errorf("received %q", got)
	}
}

func TestPeerCredIsTheClients(t *testing.T) {
	t.Parallel()
	s := listen(t, sock.ListenConfig{}, stream(dir(t)+"/s"))
	conn := dial(t, s.Addr())
	cred, err := conn.PeerCred()
	check(t, err)
	if want := (unix.Ucred{Pid: int32(os.Getpid()), Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())}); *cred != want {
		t.Errorf("peer is %+v, not %+v", *cred, want)
	}
	check(t, conn.Close())
	if _, err := conn.PeerCred(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed connection gives %v", err)
	}
}

// If a socket is closed while its file still exists, its inode may be reused
// for a file of another process. That file would be mistaken for the socket,
// and removed.
func TestNameOfAFailedDialIsRemovedBeforeItsSocketIsClosed(t *testing.T) {
	t.Parallel()
	d := dir(t)
	var name atomic.Pointer[string] // of the client that dials now
	done := make(chan struct{})
	looking := make(chan struct{})
	met := 0 // clients that the stranger found alive
	go func() {
		defer close(looking)
		for last := ""; ; {
			select {
			case <-done:
				return
			default:
			}
			now := name.Load()
			if now == nil {
				continue
			}
			// While the socket is open it can be connected to; without a
			// listener, only a datagram socket can.
			switch err := connects(*now); {
			case err == nil && *now != last:
				met++
				last = *now
			case err == unix.ECONNREFUSED && *now == last: // before that it may be unfinished
				if _, err := os.Lstat(*now); err == nil {
					t.Errorf("%s is closed, and not removed", *now)
					return
				}
			}
		}
	}()
	for i := range testkit.Count(500, 3000) {
		s := d + "/client" + strconv.Itoa(i)
		name.Store(&s)
		_, err := sock.Dial(t.Context(), datagram(d+"/none"), sock.DialConfig{Bind: s})
		wantError(t, err, unix.ENOENT)
	}
	close(done)
	<-looking
	if met == 0 {
		t.Error("no client was met")
	}
}

// A name is not missing if its socket has another type, or does not listen.
func TestF62AbstractNamesThatRefuse(t *testing.T) {
	t.Parallel()
	name := sock.AutoName("@")
	_, err := sock.Dial(t.Context(), stream(name), sock.DialConfig{})
	wantError(t, err, unix.ECONNREFUSED, "no server has the name "+name+" in this network namespace")

	listen(t, sock.ListenConfig{}, sock.Addr{Type: sock.Datagram, Path: name})
	_, err = sock.Dial(t.Context(), stream(name), sock.DialConfig{})
	wantError(t, err, unix.ECONNREFUSED, name+" is the name of a datagram socket; use datagram:"+name)

	name = sock.AutoName("@")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	defer func() { check(t, unix.Close(fd)) }()
	check(t, unix.Bind(fd, &unix.SockaddrUnix{Name: name}))
	_, err = sock.Dial(t.Context(), stream(name), sock.DialConfig{})
	wantError(t, err, unix.ECONNREFUSED, "a process has bound it, and does not listen")
}

// connects tries to connect to a datagram socket.
func connects(path string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.Connect(fd, &unix.SockaddrUnix{Name: path})
}
