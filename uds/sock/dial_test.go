//go:build linux

package sock_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

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
		path  string
		errno error
		make  func(t *testing.T, path string)
		words []string
	}{
		{"/missing", unix.ENOENT, func(*testing.T, string) {}, []string{"ENOENT", "start the server first, or keep trying"}},
		{"/none/s", unix.ENOENT, func(*testing.T, string) {}, []string{"/none does not exist", "mount the volume"}},
		{"/stale", unix.ECONNREFUSED, func(t *testing.T, path string) { stale(t, path) }, []string{"ECONNREFUSED", "stale", "start the server again"}},
		{"/full", unix.EAGAIN, func(t *testing.T, path string) {
			listen(t, sock.ListenConfig{Backlog: 1}, stream(path))
			fill(t, stream(path))
		}, []string{"EAGAIN", "backlog is full; keep trying"}},
		{"/file", unix.ECONNREFUSED, func(t *testing.T, path string) {
			check(t, os.WriteFile(path, []byte("precious"), 0o640))
		}, []string{"ECONNREFUSED", "/file is a regular file, not a socket", "use the path of a server's socket"}},
		{"/directory", unix.ECONNREFUSED, func(t *testing.T, path string) {
			check(t, os.Mkdir(path, 0o750))
		}, []string{"ECONNREFUSED", "/directory is a directory, not a socket"}},
		{"/bound", unix.ECONNREFUSED, func(t *testing.T, path string) {
			check(t, unix.Bind(socket(t, sock.Stream), &unix.SockaddrUnix{Name: path}))
		}, []string{"ECONNREFUSED", "/bound: a process has bound it, and does not listen"}},
	} {
		t.Run(tt.path, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			a := stream(d + tt.path)
			tt.make(t, a.Path)
			same := keeps(t, d) // its own name, too, must be removed
			wantError(t, dialError(a, sock.DialConfig{Bind: d + "/client"}), tt.errno, append(tt.words, "connect "+a.String()+": ")...)
			same()
		})
	}
}

func TestDialWrongTypeNamesTheRealOne(t *testing.T) {
	t.Parallel()
	for real := range types {
		d := dir(t)
		path := d + "/s"
		listen(t, sock.ListenConfig{}, sock.Addr{Type: real, Path: path})
		for asked := range types {
			if asked == real {
				continue
			}
			wantError(t, dialError(sock.Addr{Type: asked, Path: path}, sock.DialConfig{Bind: d + "/client"}), unix.EPROTOTYPE,
				fmt.Sprintf("connect %s:%s: ", asked, path), "(EPROTOTYPE)", fmt.Sprintf("%s is a %s socket; use %s:%s", path, real, real, path))
			wantFiles(t, d, ".s.lock", "s")
		}
	}
}

func TestModeDecidesWhoConnects(t *testing.T) {
	t.Parallel()
	d := dir(t)
	a := stream(d + "/open")
	listen(t, sock.ListenConfig{Mode: 0o666}, a)
	asStranger(func() { check(t, dialError(a, sock.DialConfig{})) })
	a = stream(d + "/closed")
	listen(t, sock.ListenConfig{Mode: testkit.ClosedMode()}, a)
	owner := "of user " + strconv.Itoa(os.Geteuid())
	asStranger(func() {
		wantError(t, dialError(a, sock.DialConfig{}), unix.EACCES, "EACCES", "connect "+a.String(),
			a.Path+" denies this process permission to connect to it: its mode is ", owner, "this process is")
	})
}

func TestDialEndsWithContext(t *testing.T) {
	t.Parallel()
	a := stream(dir(t) + "/s")
	listen(t, sock.ListenConfig{}, a)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantError(t, testkit.Err(sock.Dial(ctx, a, sock.DialConfig{})), context.Canceled)
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
		wantFiles(t, d, ".s.lock", "s")
		check(t, served.Close())
	}
}

// The server may run as another user, and writes to the client's socket file.
func TestServerOfAnotherUserAnswersDatagramClient(t *testing.T) {
	t.Parallel()
	d := dir(t)
	check(t, os.Chmod(d, 0o777))
	var s *sock.Socket
	asStranger(func() { s = listen(t, sock.ListenConfig{Mode: 0o666}, datagram(d+"/s")) })
	conn, err := sock.Dial(t.Context(), s.Addr(), sock.DialConfig{Bind: d + "/client"})
	check(t, err)
	check(t, conn.Send([]byte("hello")))
	asStranger(func() {
		r := sock.NewReceiver(100)
		got, err := r.ReceiveCred(s.FD())
		wantMessage(t, "hello", got, err)
		check(t, sock.ReplyTo(s.FD(), got, r.Peek()))
	})
	got, err := conn.Receive(sock.NewReceiver(100))
	wantMessage(t, "hello", got, err)
	check(t, conn.Close())
	check(t, s.Close())
	wantFiles(t, d)
}

// The file's mode gives every user access, but only after connect(2) has
// closed the socket to all but the server.
func TestDatagramClientIsAtNoMomentOpenToStrangers(t *testing.T) {
	t.Parallel()
	d := dir(t)
	listen(t, sock.ListenConfig{}, datagram(d+"/s"))
	poke := socket(t, sock.Datagram)
	until, results := pester(t, asStranger, func() error {
		return unix.Sendto(poke, []byte("poke"), unix.MSG_DONTWAIT, &unix.SockaddrUnix{Name: d + "/client"})
	})
	client := start(t, 0, "dial", "datagram:"+d+"/s", d+"/client")
	for range 100 {
		client.Do(t)
		client.Do(t)
	}
	client.Do(t) // the last one stays until the stranger has tried to connect to it
	until(unix.EPERM)
	// Only root can be the stranger as another user.
	if got := results(); os.Geteuid() == 0 && got[nil]+got[unix.EAGAIN] > 0 {
		t.Errorf("the stranger got datagrams in: %v", got)
	}
	client.End(t)
	wantFiles(t, d, ".s.lock", "s")
}

func TestBindLeavesExistingFilesAlone(t *testing.T) {
	t.Parallel()
	d := dir(t)
	a := stream(d + "/s")
	listen(t, sock.ListenConfig{}, a)
	precious(t, d+"/file")
	stale(t, d+"/stale")
	same := keeps(t, d)
	for _, name := range []string{d + "/file", d + "/stale"} {
		wantError(t, dialError(a, sock.DialConfig{Bind: name}), sock.ErrInUse, "bind the client's own name "+name, "left alone")
	}
	wantError(t, dialError(a, sock.DialConfig{Bind: d + "/none/client"}), unix.ENOENT, "bind the client's own name", "directory "+d+"/none does not exist")
	same()
}

func TestCloseWriteEndsOneDirection(t *testing.T) {
	t.Parallel()
	s := listen(t, sock.ListenConfig{}, stream(dir(t)+"/s"))
	conn := dial(t, s.Addr())
	served, err := sock.Accept(s.FD())
	check(t, err)
	check(t, conn.CloseWrite())
	check(t, testkit.Err(io.Copy(served, served)))
	check(t, testkit.Err(served.Write([]byte("still here"))))
	check(t, served.Close())
	got, err := io.ReadAll(conn)
	wantMessage(t, "still here", got, err)
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
	wantError(t, testkit.Err(conn.PeerCred()), net.ErrClosed)
}

// If a socket is closed while its file still exists, its inode may be reused
// for a file of another process. That file would be mistaken for the socket,
// and removed.
func TestNameOfAFailedDialIsRemovedBeforeItsSocketIsClosed(t *testing.T) {
	t.Parallel()
	d := dir(t)
	var name atomic.Pointer[string] // of the client that dials now
	met, last := 0, ""              // clients that the other process found alive
	_, results := pester(t, asSelf, func() error {
		now := name.Load()
		if now == nil {
			return nil
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
			}
		}
		return nil
	})
	for i := range testkit.Count(500, 3000) {
		s := d + "/client" + strconv.Itoa(i)
		name.Store(&s)
		wantError(t, dialError(datagram(d+"/none"), sock.DialConfig{Bind: s}), unix.ENOENT)
	}
	results()
	if met == 0 {
		t.Error("no client was met")
	}
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

// A name is not missing if its socket has another type, or does not listen.
func TestF62AbstractNamesThatRefuse(t *testing.T) {
	t.Parallel()
	name := sock.AutoName("@")
	wantError(t, dialError(stream(name), sock.DialConfig{}), unix.ECONNREFUSED, "no server has the name "+name+" in this network namespace")

	listen(t, sock.ListenConfig{}, datagram(name))
	wantError(t, dialError(stream(name), sock.DialConfig{}), unix.ECONNREFUSED, name+" is the name of a datagram socket; use datagram:"+name)

	name = sock.AutoName("@")
	check(t, unix.Bind(socket(t, sock.Stream), &unix.SockaddrUnix{Name: name}))
	wantError(t, dialError(stream(name), sock.DialConfig{}), unix.ECONNREFUSED, "a process has bound it, and does not listen")
}

func TestPairIsConnectedAndStaysWithinTheProcess(t *testing.T) {
	t.Parallel()
	own, other, err := sock.Pair()
	check(t, err)
	defer func() { _ = own.Close() }()
	if own.Type() != sock.Stream {
		t.Errorf("the type is %s", own.Type())
	}
	if flags, err := unix.FcntlInt(other.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("the other end is inherited by every program: flags %d, %v", flags, err)
	}
	check(t, testkit.Err(io.WriteString(other, "hello")))
	check(t, other.Close())
	got, err := io.ReadAll(own)
	wantMessage(t, "hello", got, err)
}

func TestConnReceivesMessagesAndThenTheEnd(t *testing.T) {
	t.Parallel()
	s := listen(t, sock.ListenConfig{}, seqpacket(dir(t)+"/s"))
	conn := dial(t, s.Addr())
	check(t, conn.SetDeadline(time.Now().Add(testkit.Patience)))
	served, err := sock.Accept(s.FD())
	check(t, err)
	records := []string{"one", "", "two", ""}
	for _, record := range records {
		check(t, testkit.Err(served.Write([]byte(record))))
	}
	check(t, served.Close())
	r := sock.NewReceiver(100)
	for _, want := range records {
		got, err := conn.Receive(r)
		wantMessage(t, want, got, err)
	}
	if got, err := conn.Receive(r); err != io.EOF || got != nil {
		t.Errorf("at the end: %q, %v", got, err)
	}
	wantError(t, conn.Send(nil), unix.EPIPE)
}

func TestConnReceiveAndSendWaitNoLongerThanTheDeadline(t *testing.T) {
	t.Parallel()
	for typ := range types {
		if typ == sock.Stream {
			continue
		}
		conn := dial(t, listen(t, sock.ListenConfig{}, sock.Addr{Type: typ, Path: dir(t) + "/s"}).Addr())
		check(t, conn.SetDeadline(time.Now().Add(50*time.Millisecond)))
		wantError(t, testkit.Err(conn.Receive(sock.NewReceiver(100))), os.ErrDeadlineExceeded)
		var err error
		for err == nil {
			err = conn.Send([]byte("fill it"))
		}
		wantError(t, err, os.ErrDeadlineExceeded)
	}
}
