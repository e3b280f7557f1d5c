package uds_test

import (
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/uds"
)

var takeover = uds.ListenConfig{Takeover: true}

// A successor is a server that asks for a socket.
type successor struct {
	socket *uds.Socket
	err    error
}

// succeed asks for the socket at a; the answer to that is the other's.
func succeed(a uds.Addr) <-chan successor {
	done := make(chan successor, 1)
	go func() {
		s, err := takeover.Listen(a)
		done <- successor{s, err}
	}()
	return done
}

// readable waits until there is something to accept or to receive.
func readable(t testing.TB, fd int) {
	t.Helper()
	await(t, fd, unix.POLLIN)
}

// await waits for events; without any, for the end of the other side, which a
// child that is being started may hold open for a moment.
func await(t testing.TB, fd int, events int16) {
	t.Helper()
	poll := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		n, err := unix.Poll(poll, int(patience.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		check(t, err)
		if n == 0 {
			t.Fatal("nothing comes")
		}
		return
	}
}

// offer is the running server's side of succeed.
func offer(t testing.TB, s *uds.Socket) *uds.Offer {
	t.Helper()
	readable(t, s.Control)
	o, err := s.Offer()
	check(t, err)
	return o
}

// askedFor is a successor that has copies of a running server's descriptors.
func askedFor(t testing.TB, old *uds.Socket) (*uds.Socket, *uds.Offer) {
	t.Helper()
	asking := succeed(old.Addr)
	o := offer(t, old)
	got := <-asking
	check(t, got.err)
	t.Cleanup(func() { check(t, got.socket.Close()) })
	if !got.socket.TakenOver() {
		t.Fatal("the successor has not asked")
	}
	return got.socket, o
}

func wantTaken(t testing.TB, o *uds.Offer, want bool, wantErr error) {
	t.Helper()
	if wantErr == io.EOF {
		await(t, o.FD, 0)
	}
	if taken, err := o.Taken(); taken != want || !errors.Is(err, wantErr) {
		t.Errorf("taken: %v, %v; not %v, %v", taken, err, want, wantErr)
	}
}

// inodes are those of all that belongs to a socket.
func inodes(t testing.TB, a uds.Addr) [3]uint64 {
	t.Helper()
	return [3]uint64{inode(t, a.Path), inode(t, a.Path+".lock"), inode(t, a.Path+".takeover")}
}

// receive is how this package's users receive from a type.
func receive(typ uds.Type) func(*uds.Receiver, int) ([]byte, error) {
	if typ == uds.Datagram {
		return (*uds.Receiver).ReceiveCred
	}
	return (*uds.Receiver).Receive
}

func TestTakeoverLosesNobodyAndKeepsTheFiles(t *testing.T) {
	t.Parallel()
	for _, typ := range []uds.Type{uds.Stream, uds.Datagram, uds.Seqpacket} {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			old := listen(t, takeover, uds.Addr{Type: typ, Path: d + "/s"})
			before := inodes(t, old.Addr)
			early := dial(t, old.Addr) // nobody has accepted it, or received from it
			check(t, early.Send([]byte("early")))

			next, o := askedFor(t, old)
			wantTaken(t, o, false, nil)
			fd := next.Claim()
			wantTaken(t, o, true, nil)
			o.Release()
			check(t, old.Close())
			o.Done()
			readable(t, fd)
			check(t, next.Claimed())
			if next.TakenOver() || next.Shared() {
				t.Error("it is not the successor's own")
			}
			if diff := cmp.Diff(before, inodes(t, old.Addr)); diff != "" {
				t.Errorf("inodes of socket, lock and control socket (-before +after):\n%s", diff)
			}
			conn := next.FD
			if typ != uds.Datagram {
				accepted, _, err := unix.Accept(next.FD)
				check(t, err)
				defer func() { check(t, unix.Close(accepted)) }()
				conn = accepted
			}
			if got, err := receive(typ)(uds.NewReceiver(100), conn); err != nil || string(got) != "early" {
				t.Errorf("received %q, %v", got, err)
			}
			_, err := uds.ListenConfig{}.Listen(old.Addr)
			wantError(t, err, uds.ErrInUse, old.Addr.Path+".lock")

			// And the next hands over likewise, after which nothing is left.
			last, o := askedFor(t, next)
			last.Claim()
			wantTaken(t, o, true, nil)
			o.Release()
			check(t, next.Close())
			o.Done()
			check(t, last.Claimed())
			if diff := cmp.Diff(before, inodes(t, old.Addr)); diff != "" {
				t.Errorf("inodes after another takeover (-before +after):\n%s", diff)
			}
			check(t, last.Close())
			if names := ls(t, d); names != nil {
				t.Errorf("left behind: %v", names)
			}
		})
	}
}

func TestTakeoverWithoutServerIsAUsualStart(t *testing.T) {
	t.Parallel()
	d := dir(t)
	s := listen(t, takeover, stream(d+"/s"))
	if s.TakenOver() {
		t.Error("there is nobody to take it over from")
	}
	if diff := cmp.Diff([]string{"s", "s.lock", "s.takeover"}, ls(t, d)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if info, err := os.Lstat(d + "/s.takeover"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the control socket is %v, %v", info, err)
	}
	check(t, s.Close())

	// What a killed one leaves is replaced.
	stale(t, d+"/s")
	stale(t, d+"/s.takeover")
	check(t, listen(t, takeover, stream(d+"/s")).Close())
	if names := ls(t, d); names != nil {
		t.Errorf("left behind: %v", names)
	}
}

func TestTakeoverFromServerThatDoesNotHandOver(t *testing.T) {
	t.Parallel()
	d := dir(t)
	a := stream(d + "/s")
	listen(t, uds.ListenConfig{}, a)
	stale(t, d+"/s.takeover") // of a server that was killed
	_, err := takeover.Listen(a)
	wantError(t, err, uds.ErrInUse, "listen "+a.String(), "stop it first", "it was started without --takeover")
	dial(t, a)
}

func TestTakeoverLeavesAloneWhatIsNoControlSocket(t *testing.T) {
	t.Parallel()
	d := dir(t)
	check(t, os.WriteFile(d+"/s.takeover", []byte("precious"), 0o600))
	before := take(t, d+"/s.takeover")
	_, err := takeover.Listen(stream(d + "/s"))
	wantError(t, err, uds.ErrNotSocket, d+"/s.takeover is a regular file", "left alone")
	if diff := cmp.Diff(before, take(t, d+"/s.takeover")); diff != "" {
		t.Errorf("it changed (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"s.takeover"}, ls(t, d)); diff != "" {
		t.Errorf("left behind (-want +got):\n%s", diff)
	}
}

func TestTakeoverOfAnotherType(t *testing.T) {
	t.Parallel()
	old := listen(t, takeover, stream(dir(t)+"/s"))
	before := inodes(t, old.Addr)
	asking := succeed(datagram(old.Addr.Path))
	o := offer(t, old)
	got := <-asking
	wantError(t, got.err, got.err, "listen datagram:"+old.Addr.Path+": take over: ", `the running server listens with "stream"`, "use the same type")
	wantTaken(t, o, false, io.EOF)
	o.Close()
	if diff := cmp.Diff(before, inodes(t, old.Addr)); diff != "" {
		t.Errorf("inodes (-before +after):\n%s", diff)
	}
	dial(t, old.Addr)
}

func TestTakeoverFromAnotherUser(t *testing.T) {
	t.Parallel()
	d := dir(t)
	check(t, os.Chmod(d, 0o777))
	// Only root can be two users; by himself the stranger does not answer.
	words := "does not answer within 5s: is it paused?"
	if os.Geteuid() == 0 {
		words = "is served by user 10003, and this process is user 0: let one user run both"
	}
	if o := start(t, stranger, nil, "hold", "stream:"+d+"/s").outcome(t); o.Err != "" {
		t.Fatal(o.Err)
	}
	_, err := takeover.Listen(stream(d + "/s"))
	wantError(t, err, err, "take over: "+d+"/s.takeover", words)
	dial(t, stream(d+"/s"))

	if os.Geteuid() == 0 {
		old := listen(t, takeover, stream(d+"/mine"))
		o := start(t, stranger, nil, "hold", "stream:"+d+"/mine").outcome(t)
		wantWords(t, o.Err, "EACCES", d+"/mine.takeover is owned by 0:0 with mode 0600")
		if _, err := old.Offer(); err != unix.EAGAIN {
			t.Errorf("somebody asks: %v", err)
		}
	}
}

// Who may connect to the control socket is this user; he may still err.
func TestNonsenseAtTheControlSocketChangesNothing(t *testing.T) {
	t.Parallel()
	old := listen(t, takeover, stream(dir(t)+"/s"))
	before := inodes(t, old.Addr)
	null, err := os.Open(os.DevNull)
	check(t, err)
	defer func() { check(t, null.Close()) }()
	for name, talk := range map[string]func(fd int) error{
		"nothing":     func(int) error { return nil },
		"empty":       func(fd int) error { return unix.Send(fd, nil, 0) },
		"other words": func(fd int) error { return unix.Send(fd, []byte("ours"), 0) },
		"more words":  func(fd int) error { return unix.Send(fd, []byte("mine, all of it"), 0) },
		"descriptors": func(fd int) error {
			return unix.Sendmsg(fd, []byte("mine"), unix.UnixRights(int(null.Fd())), nil, 0)
		},
		"mine, and gone": func(fd int) error { return unix.Send(fd, []byte("mine"), 0) },
	} {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		check(t, err)
		check(t, unix.Connect(fd, &unix.SockaddrUnix{Name: old.Addr.Path + ".takeover"}))
		o := offer(t, old)
		check(t, talk(fd))
		check(t, unix.Close(fd))
		if taken, err := o.Taken(); taken || err == nil {
			t.Errorf("%s: taken: %v, %v", name, taken, err)
		}
		o.Close()
	}
	// And one who is gone before he is answered.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	check(t, unix.Connect(fd, &unix.SockaddrUnix{Name: old.Addr.Path + ".takeover"}))
	check(t, unix.Close(fd))
	_, err = old.Offer()
	wantError(t, err, unix.EPIPE, "sendmsg")

	if diff := cmp.Diff(before, inodes(t, old.Addr)); diff != "" {
		t.Errorf("inodes (-before +after):\n%s", diff)
	}
	dial(t, old.Addr)
}

// Not parallel: it counts the descriptors of the process.
func TestNonsenseInsteadOfHelloIsRefusedAndNoDescriptorKept(t *testing.T) {
	a := stream(dir(t) + "/s")
	control := bound(t, uds.Addr{Type: uds.Seqpacket, Path: a.Path + ".takeover"})
	null, err := os.Open(os.DevNull)
	check(t, err)
	defer func() { check(t, null.Close()) }()
	files := func(n int) []byte {
		fds := make([]int, n)
		for i := range fds {
			fds[i] = int(null.Fd())
		}
		return unix.UnixRights(fds...)
	}
	before := descriptors(t)
	for _, tt := range []struct {
		says   string
		rights []byte
		words  string
	}{
		{"hello", nil, `the running server says "hello": is it of another version?`},
		{"udsecho takeover 1", nil, "is it of another version?"},
		{"udsecho takeover 2", files(3), `the running server says "udsecho takeover 2"`},
		{"udsecho takeover 1 stream", files(2), "is it of another version?"},
		{"udsecho takeover 1 stream", files(253), "message carries file descriptors: more than 3"},
		{"udsecho takeover 1 files", files(3), `the running server listens with "files": use the same type`},
		{"udsecho takeover 1 stream" + strings.Repeat(" ", 100), files(3), "larger than the receive buffer"},
		{"udsecho takeover 1 stream", files(3), "the running server holds another lock than " + a.Path + ".lock"},
	} {
		asking := succeed(a)
		readable(t, control)
		fd, _, err := unix.Accept(control)
		check(t, err)
		check(t, unix.Sendmsg(fd, []byte(tt.says), tt.rights, nil, 0))
		got := <-asking
		wantError(t, got.err, got.err, "take over: ", tt.words)
		check(t, unix.Close(fd))
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}

func TestSuccessorThatIsGoneLeavesTheServerAsItWas(t *testing.T) {
	t.Parallel()
	for _, claims := range []bool{false, true} {
		d := dir(t)
		old := listen(t, takeover, stream(d+"/s"))
		before := inodes(t, old.Addr)
		next, o := askedFor(t, old)
		if claims {
			next.Claim()
		}
		check(t, next.Close())
		wantTaken(t, o, false, io.EOF)
		o.Close()
		if diff := cmp.Diff(before, inodes(t, old.Addr)); diff != "" {
			t.Errorf("inodes (-before +after):\n%s", diff)
		}
		dial(t, old.Addr)
		_, err := uds.ListenConfig{}.Listen(old.Addr)
		wantError(t, err, uds.ErrInUse)
		check(t, old.Close())
		if names := ls(t, d); names != nil {
			t.Errorf("left behind: %v", names)
		}
	}
}

func TestOfTwoSuccessorsOneGetsTheSocket(t *testing.T) {
	t.Parallel()
	d := dir(t)
	old := listen(t, takeover, stream(d+"/s"))
	before := inodes(t, old.Addr)
	first, toFirst := askedFor(t, old)
	second, toSecond := askedFor(t, old)
	second.Claim()
	first.Claim()
	wantTaken(t, toSecond, true, nil)
	toFirst.Refuse()
	toSecond.Release()
	check(t, old.Close())
	toSecond.Done()

	wantError(t, first.Claimed(), uds.ErrInUse, "take over "+old.Addr.String(), "given it to another, or ends")
	check(t, first.Close())
	check(t, second.Claimed())
	if diff := cmp.Diff(before, inodes(t, old.Addr)); diff != "" {
		t.Errorf("inodes (-before +after):\n%s", diff)
	}
	dial(t, old.Addr)
	_, err := uds.ListenConfig{}.Listen(old.Addr)
	wantError(t, err, uds.ErrInUse)
	check(t, second.Close())
	if names := ls(t, d); names != nil {
		t.Errorf("left behind: %v", names)
	}
}

func TestServerIsKilledDuringTheHandover(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"before it is asked", "before it answers"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			old := start(t, 0, nil, "hand", "stream:"+d+"/s")
			if o := old.outcome(t); o.Err != "" {
				t.Fatal(o.Err)
			}
			got := <-succeed(stream(d + "/s"))
			check(t, got.err)
			next := got.socket
			before := inodes(t, next.Addr)
			fd := -1
			if when == "before it answers" {
				fd = next.Claim()
			}
			check(t, old.cmd.Process.Kill())
			_ = old.cmd.Wait()
			if fd < 0 {
				fd = next.Claim()
			}
			readable(t, fd)
			check(t, next.Claimed())
			if diff := cmp.Diff(before, inodes(t, next.Addr)); diff != "" {
				t.Errorf("inodes (-before +after):\n%s", diff)
			}
			dial(t, next.Addr)
			_, err := uds.ListenConfig{}.Listen(next.Addr)
			wantError(t, err, uds.ErrInUse)
			check(t, next.Close())
			if names := ls(t, d); names != nil {
				t.Errorf("left behind: %v", names)
			}
		})
	}
}

func TestServerEndsInsteadOfHello(t *testing.T) {
	t.Parallel()
	d := dir(t)
	old := listen(t, takeover, stream(d+"/s"))
	asking := succeed(old.Addr)
	readable(t, old.Control)
	check(t, old.Close())
	got := <-asking
	check(t, got.err)
	defer func() { check(t, got.socket.Close()) }()
	if got.socket.TakenOver() {
		t.Error("there is nobody to take it over from")
	}
	dial(t, old.Addr)
}

// What was claimed must still be there, or two would serve one path.
func TestClaimOfSocketWhoseFileIsGone(t *testing.T) {
	t.Parallel()
	old := listen(t, takeover, stream(dir(t)+"/s"))
	next, o := askedFor(t, old)
	next.Claim()
	old.Unlink()
	o.Close()
	err := next.Claimed()
	wantError(t, err, err, "its file or its lock was removed meanwhile: start again")
}

func TestControlSocketWithoutRoomForItsName(t *testing.T) {
	t.Parallel()
	d := dir(t)
	path := d + "/"
	for len(path) < uds.MaxPath {
		path += "s"
	}
	_, err := takeover.Listen(stream(path))
	wantError(t, err, uds.ErrAddress, "path is 116 bytes", "holds 107")
	if names := ls(t, d); names != nil {
		t.Errorf("left behind: %v", names)
	}
}

func TestInheritedSocketIsNotRemoved(t *testing.T) {
	t.Parallel()
	for _, typ := range []uds.Type{uds.Stream, uds.Datagram, uds.Seqpacket} {
		d := dir(t)
		a := uds.Addr{Type: typ, Path: d + "/s"}
		parents := bound(t, a)
		before := take(t, a.Path)
		early := dial(t, a)
		check(t, early.Send([]byte("early")))
		for range 2 {
			fd, err := unix.FcntlInt(uintptr(parents), unix.F_DUPFD_CLOEXEC, 0)
			check(t, err)
			s, err := uds.ListenConfig{Mode: 0o600}.Inherit(fd)
			check(t, err)
			if s.Addr != a || !s.Shared() {
				t.Errorf("it is %s, shared: %v", s.Addr, s.Shared())
			}
			check(t, s.Refuse())
			check(t, s.Close())
			if diff := cmp.Diff(before, take(t, a.Path)); diff != "" {
				t.Errorf("it changed (-before +after):\n%s", diff)
			}
			if diff := cmp.Diff([]string{"s"}, ls(t, d)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		}
		conn := parents
		if typ != uds.Datagram {
			var err error
			conn, _, err = unix.Accept(parents)
			check(t, err)
			defer func() { check(t, unix.Close(conn)) }()
		}
		if got, err := receive(typ)(uds.NewReceiver(100), conn); err != nil || string(got) != "early" {
			t.Errorf("received %q, %v", got, err)
		}
	}
}

// Not parallel: it counts the descriptors of the process.
func TestInheritWhatIsNoBoundUnixSocket(t *testing.T) {
	d := dir(t)
	before := descriptors(t)
	for _, tt := range []struct {
		words string
		make  func() (int, error)
	}{
		{"it is no socket: socket operation on non-socket", func() (int, error) { return unix.Open(d, unix.O_RDONLY|unix.O_CLOEXEC, 0) }},
		{"it is a socket without an address: pass one that is bound", func() (int, error) { return unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0) }},
		{"it is no Unix socket: pass one", func() (int, error) { return unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0) }},
		{"the socket is a connection already: pass the listening one, Accept=no", func() (int, error) {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			check(t, err)
			check(t, unix.Close(fds[1]))
			return fds[0], unix.Bind(fds[0], &unix.SockaddrUnix{Name: d + "/c"})
		}},
		{"bad file descriptor", func() (int, error) { return 1 << 20, nil }},
	} {
		fd, err := tt.make()
		check(t, err)
		_, err = uds.ListenConfig{}.Inherit(fd)
		wantError(t, err, err, tt.words)
		if err == nil {
			t.Errorf("no error, want %q", tt.words)
		}
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}

// holdRole asks for a socket, or listens, and holds it until the cue. It
// answers nobody who asks.
func holdRole(args []string) error {
	unix.Umask(0)
	s, err := takeover.Listen(mustParse(args[0]))
	report(err)
	if err != nil {
		return nil
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return s.Close()
}

// handRole offers its socket to who asks, and answers no more.
func handRole(args []string) error {
	s, err := takeover.Listen(mustParse(args[0]))
	report(err)
	if err != nil {
		return nil
	}
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(s.Control), Events: unix.POLLIN}}, -1)
	if err != nil && !errors.Is(err, syscall.EINTR) {
		return err
	}
	if _, err := s.Offer(); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil
}
