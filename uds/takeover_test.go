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

	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/internal/transport"
	"github.com/udsecho/udsecho/uds"
)

// A successor is a server that asks for sockets.
type successor struct {
	handover *uds.Handover
	err      error
}

// succeed asks for the sockets at addrs in the background; the running server
// answers with offer.
func succeed(addrs ...uds.Addr) <-chan successor {
	done := make(chan successor, 1)
	go func() {
		h, err := uds.ListenConfig{}.Handover(addrs...)
		done <- successor{h, err}
	}()
	return done
}

// readable waits until there is a connection to accept or a message to
// receive.
func readable(t testing.TB, fd int) {
	t.Helper()
	await(t, fd, unix.POLLIN)
}

// await waits for events. With no events, it waits for the end of the other
// side, which a child that is being started may hold open for a moment.
func await(t testing.TB, fd int, events int16) {
	t.Helper()
	if !testkit.Ready(t, fd, events) {
		t.Fatal("nothing comes")
	}
}

// handover listens on addrs, which no server has.
func handover(t testing.TB, addrs ...uds.Addr) *uds.Handover {
	t.Helper()
	h, err := uds.ListenConfig{}.Handover(addrs...)
	check(t, err)
	if h.Pending() {
		t.Fatal("there is no server to take them over from")
	}
	t.Cleanup(func() { end(h) })
	return h
}

// end closes everything, in the order in which a server does.
func end(h *uds.Handover) {
	h.Remove()
	if !h.Pending() {
		for _, s := range h.Sockets {
			_ = s.Close()
		}
	}
	h.Close()
}

// offer is the running server's side of succeed.
func offer(t testing.TB, h *uds.Handover) *uds.Offer {
	t.Helper()
	readable(t, h.Control())
	o, err := h.Offer()
	check(t, err)
	t.Cleanup(o.Close)
	return o
}

// askedFor returns a successor that has copies of a running server's
// descriptors.
func askedFor(t testing.TB, old *uds.Handover) (*uds.Handover, *uds.Offer) {
	t.Helper()
	var addrs []uds.Addr
	for _, s := range old.Sockets {
		addrs = append(addrs, s.Addr())
	}
	asking := succeed(addrs...)
	o := offer(t, old)
	got := <-asking
	check(t, got.err)
	t.Cleanup(func() { end(got.handover) })
	if !got.handover.Pending() {
		t.Fatal("the successor has not asked")
	}
	return got.handover, o
}

func wantNext(t testing.TB, o *uds.Offer, want uds.Step) {
	t.Helper()
	if want == uds.Gone {
		await(t, o.FD(), 0)
	}
	if got := o.Next(); got != want {
		t.Errorf("the next step is %d, not %d", got, want)
	}
}

// pass hands the sockets of the running server to a successor.
func pass(t testing.TB, old, next *uds.Handover, o *uds.Offer) {
	t.Helper()
	wantNext(t, o, uds.Waits)
	fd := next.Claim()
	wantNext(t, o, uds.Claims)
	if err := next.Claimed(); err != unix.EAGAIN {
		t.Errorf("before the answer: %v", err)
	}
	o.Yield()
	readable(t, fd)
	check(t, next.Claimed())
	next.Commit()
	wantNext(t, o, uds.Serves)
	old.Release()
	o.Close()
	if next.Pending() {
		t.Error("they are not the successor's own")
	}
}

// inodes returns the inodes of all files of a socket that is the first of its
// group.
func inodes(t testing.TB, a uds.Addr) [3]uint64 {
	t.Helper()
	return [3]uint64{inode(t, a.Path), inode(t, beside(a.Path, ".lock")), inode(t, beside(a.Path, ".takeover"))}
}

// receive returns the function with which users of this package receive from a
// type.
func receive(typ uds.Type) func(*transport.Receiver, int) ([]byte, error) {
	if typ == uds.Datagram {
		return (*transport.Receiver).ReceiveCred
	}
	return (*transport.Receiver).Receive
}

func TestTakeoverLosesNoClientAndKeepsTheFiles(t *testing.T) {
	t.Parallel()
	for _, typ := range []uds.Type{uds.Stream, uds.Datagram, uds.Seqpacket} {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			a := uds.Addr{Type: typ, Path: d + "/s"}
			old := handover(t, a)
			before := inodes(t, a)
			early := dial(t, a) // no process has accepted it, or received from it
			check(t, say(early, "early"))

			next, o := askedFor(t, old)
			pass(t, old, next, o)
			if next.Sockets[0].Shared() {
				t.Error("it is shared")
			}
			if diff := cmp.Diff(before, inodes(t, a)); diff != "" {
				t.Errorf("inodes of socket, lock and control socket (-before +after):\n%s", diff)
			}
			conn := next.Sockets[0].FD()
			if typ != uds.Datagram {
				accepted, _, err := unix.Accept(conn)
				check(t, err)
				defer func() { check(t, unix.Close(accepted)) }()
				conn = accepted
			}
			if got, err := receive(typ)(transport.NewReceiver(100), conn); err != nil || string(got) != "early" {
				t.Errorf("received %q, %v", got, err)
			}
			_, err := uds.ListenConfig{}.Listen(a)
			wantError(t, err, uds.ErrInUse, beside(a.Path, ".lock"))

			// The next server hands over in the same way; after that no file
			// is left.
			last, o := askedFor(t, next)
			pass(t, next, last, o)
			if diff := cmp.Diff(before, inodes(t, a)); diff != "" {
				t.Errorf("inodes after another takeover (-before +after):\n%s", diff)
			}
			end(last)
			if names := ls(t, d); names != nil {
				t.Errorf("left behind: %v", names)
			}
		})
	}
}

func TestTakeoverOfManySocketsKeepsTheirOrder(t *testing.T) {
	t.Parallel()
	d := dir(t)
	addrs := []uds.Addr{stream(d + "/c"), datagram(d + "/a"), {Type: uds.Seqpacket, Path: d + "/b"}, {Type: uds.Seqpacket, Path: d + "/d"}}
	old := handover(t, addrs...)
	if diff := cmp.Diff([]string{".a.lock", ".a.takeover", ".b.lock", ".c.lock", ".d.lock", "a", "b", "c", "d"}, ls(t, d)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	next, o := askedFor(t, old)
	pass(t, old, next, o)
	for i, s := range next.Sockets {
		if s.Addr() != addrs[i] {
			t.Errorf("socket %d is %s, not %s", i, s.Addr(), addrs[i])
		}
		_, err := uds.ListenConfig{}.Listen(s.Addr())
		wantError(t, err, uds.ErrInUse)
	}
	asking := succeed(addrs[0], addrs[2], addrs[1])
	o = offer(t, next)
	err := (<-asking).err
	wantError(t, err, err, "the running server listens on 4 sockets, not 3; use the same addresses")
	wantNext(t, o, uds.Gone)
	end(next)
	if names := ls(t, d); names != nil {
		t.Errorf("left behind: %v", names)
	}
}

func TestTakeoverWithoutServerIsAUsualStart(t *testing.T) {
	t.Parallel()
	d := dir(t)
	h := handover(t, stream(d+"/s"))
	if diff := cmp.Diff([]string{".s.lock", ".s.takeover", "s"}, ls(t, d)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if info, err := os.Lstat(d + "/.s.takeover"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the control socket is %v, %v", info, err)
	}
	end(h)

	// The files of a killed server are replaced.
	stale(t, d+"/s")
	stale(t, d+"/.s.takeover")
	end(handover(t, stream(d+"/s")))
	if names := ls(t, d); names != nil {
		t.Errorf("left behind: %v", names)
	}
}

func TestTakeoverFromServerThatDoesNotHandOver(t *testing.T) {
	t.Parallel()
	d := dir(t)
	a := stream(d + "/s")
	listen(t, uds.ListenConfig{}, a)
	stale(t, d+"/.s.takeover") // left by a server that was killed
	_, err := uds.ListenConfig{}.Handover(a)
	wantError(t, err, uds.ErrInUse, "listen "+a.String(), "stop it first", "started without takeover")
	dial(t, a)
}

func TestTakeoverLeavesOtherFilesAlone(t *testing.T) {
	t.Parallel()
	d := dir(t)
	check(t, os.WriteFile(d+"/.s.takeover", []byte("precious"), 0o600))
	before := take(t, d+"/.s.takeover")
	_, err := uds.ListenConfig{}.Handover(stream(d + "/s"))
	wantError(t, err, uds.ErrNotSocket, d+"/.s.takeover is a regular file", "left alone")
	if diff := cmp.Diff(before, take(t, d+"/.s.takeover")); diff != "" {
		t.Errorf("it changed (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff([]string{".s.takeover"}, ls(t, d)); diff != "" {
		t.Errorf("left behind (-want +got):\n%s", diff)
	}
}

func TestTakeoverOfAnotherType(t *testing.T) {
	t.Parallel()
	a := stream(dir(t) + "/s")
	old := handover(t, a)
	before := inodes(t, a)
	asking := succeed(datagram(a.Path))
	o := offer(t, old)
	got := <-asking
	wantError(t, got.err, got.err, "take over: the running server listens with stream:"+a.Path, "use the same type")
	wantNext(t, o, uds.Gone)
	if diff := cmp.Diff(before, inodes(t, a)); diff != "" {
		t.Errorf("inodes (-before +after):\n%s", diff)
	}
	dial(t, a)
}

func TestTakeoverFromAnotherUser(t *testing.T) {
	t.Parallel()
	d := dir(t)
	check(t, os.Chmod(d, 0o777))
	// Only root can start two users; without root, the stranger is the same
	// user and does not answer.
	words := "does not answer within 5s; is it paused"
	if os.Geteuid() == 0 {
		words = "is served by user 10003, and this process is user 0; let one user run both"
	}
	if o := start(t, stranger, nil, "hold", "stream:"+d+"/s").outcome(t); o.Err != "" {
		t.Fatal(o.Err)
	}
	_, err := uds.ListenConfig{}.Handover(stream(d + "/s"))
	wantError(t, err, err, "take over: "+d+"/.s.takeover", words)
	dial(t, stream(d+"/s"))

	if os.Geteuid() == 0 {
		old := handover(t, stream(d+"/mine"))
		o := start(t, stranger, nil, "hold", "stream:"+d+"/mine").outcome(t)
		wantWords(t, o.Err, "EACCES", d+"/.mine.takeover denies this process permission to connect to it: its mode is 0600, of user 0, group 0")
		if _, err := old.Offer(); err != unix.EAGAIN {
			t.Errorf("another server asks: %v", err)
		}
	}
}

// A process that may connect to the control socket may still send anything.
func TestNonsenseAtTheControlSocketChangesNothing(t *testing.T) {
	t.Parallel()
	a := stream(dir(t) + "/s")
	old := handover(t, a)
	before := inodes(t, a)
	null, err := os.Open(os.DevNull)
	check(t, err)
	defer func() { check(t, null.Close()) }()
	ask := func() (fd int) {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		check(t, err)
		check(t, unix.Connect(fd, &unix.SockaddrUnix{Name: beside(a.Path, ".takeover")}))
		return fd
	}
	for name, talk := range map[string]func(fd int) error{
		"nothing":     func(int) error { return nil },
		"empty":       func(fd int) error { return unix.Send(fd, nil, 0) },
		"other words": func(fd int) error { return unix.Send(fd, []byte("ours"), 0) },
		"more words":  func(fd int) error { return unix.Send(fd, []byte("mine, all of it"), 0) },
		"descriptors": func(fd int) error {
			err := unix.Sendmsg(fd, []byte("mine"), unix.UnixRights(int(null.Fd())), nil, 0)
			if err == unix.EPERM { // Linux 6.16 or later refuses them
				err = nil
			}
			return err
		},
	} {
		fd := ask()
		o := offer(t, old)
		check(t, talk(fd))
		check(t, unix.Close(fd))
		if step := o.Next(); step != uds.Gone {
			t.Errorf("%s: the next step is %d", name, step)
		}
		o.Close()
	}
	// One client has ended before the server answers.
	check(t, unix.Close(ask()))
	_, err = old.Offer()
	wantError(t, err, unix.EPIPE, "sendmsg")

	if diff := cmp.Diff(before, inodes(t, a)); diff != "" {
		t.Errorf("inodes (-before +after):\n%s", diff)
	}
	dial(t, a)
}

// Not parallel: it counts the descriptors of the process.
func TestNonsenseInsteadOfHelloIsRefusedAndNoDescriptorKept(t *testing.T) {
	a := stream(dir(t) + "/s")
	control := bound(t, uds.Addr{Type: uds.Seqpacket, Path: beside(a.Path, ".takeover")})
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
		{"hello", nil, `the running server sent "hello"; is it another version?`},
		{"udsecho takeover 2", nil, "is it another version?"},
		{"udsecho takeover 1 stream", files(3), `the running server sent "udsecho takeover 1 stream"`},
		{"udsecho takeover 2 stream", files(2), "is it another version?"},
		{"udsecho takeover 2 strange", files(3), "is it another version?"},
		{"udsecho takeover 2 stream stream", files(3), "is it another version?"},
		{"udsecho takeover 2 stream", files(253), "is it another version?"},
		{"udsecho takeover 2 stream" + strings.Repeat(" ", 10_000), files(3), "larger than the receive buffer"},
		{"no", nil, "in use: the running server has given its sockets to another server, or is ending"},
		{"udsecho takeover 2 stream", files(3), "the running server holds another lock than " + beside(a.Path, ".lock")},
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
	for _, when := range []string{"it has asked", "it claims", "it owns"} {
		d := dir(t)
		a := stream(d + "/s")
		old := handover(t, a)
		mode := take(t, a.Path)
		before := inodes(t, a)
		asking := make(chan successor, 1)
		go func() {
			h, err := uds.ListenConfig{Mode: 0o600}.Handover(a)
			asking <- successor{h, err}
		}()
		o := offer(t, old)
		got := <-asking
		check(t, got.err)
		if when != "it has asked" {
			fd := got.handover.Claim()
			wantNext(t, o, uds.Claims)
			if when == "it owns" {
				o.Yield()
				readable(t, fd)
				check(t, got.handover.Claimed())
			}
		}
		got.handover.Close()
		wantNext(t, o, uds.Gone)
		check(t, old.TakeBack())
		if diff := cmp.Diff(before, inodes(t, a)); diff != "" {
			t.Errorf("%s: inodes (-before +after):\n%s", when, diff)
		}
		if diff := cmp.Diff(mode, take(t, a.Path)); diff != "" {
			t.Errorf("%s: the file changed (-before +after):\n%s", when, diff)
		}
		dial(t, a)
		_, err := uds.ListenConfig{}.Listen(a)
		wantError(t, err, uds.ErrInUse)
		end(old)
		if names := ls(t, d); names != nil {
			t.Errorf("left behind: %v", names)
		}
	}
}

// The second successor waits to be accepted, and takes over from the first,
// which has the control socket by then. If the second had descriptors before,
// it could read the old server's end as permission to serve.
func TestTwoSuccessorsTakeOverOneAfterTheOther(t *testing.T) {
	t.Parallel()
	d := dir(t)
	a := stream(d + "/s")
	old := handover(t, a)
	before := inodes(t, a)
	first, o := askedFor(t, old)
	asking := succeed(a)
	readable(t, old.Control())
	pass(t, old, first, o)
	o = offer(t, first)
	got := <-asking
	check(t, got.err)
	second := got.handover
	pass(t, first, second, o)
	if diff := cmp.Diff(before, inodes(t, a)); diff != "" {
		t.Errorf("inodes (-before +after):\n%s", diff)
	}
	dial(t, a)
	_, err := uds.ListenConfig{}.Listen(a)
	wantError(t, err, uds.ErrInUse)
	end(second)
	if names := ls(t, d); names != nil {
		t.Errorf("left behind: %v", names)
	}
}

func TestRefusedSuccessor(t *testing.T) {
	t.Parallel()
	a := stream(dir(t) + "/s")
	old := handover(t, a)
	next, o := askedFor(t, old)
	fd := next.Claim() // the server has not received it yet
	o.Refuse()
	readable(t, fd)
	wantError(t, next.Claimed(), uds.ErrInUse, "take over: ", "or is ending")
	next.Close()
	dial(t, a)
}

func TestServerIsKilledDuringTheHandover(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"before it is asked", "before it answers"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			a := stream(d + "/s")
			old := start(t, 0, nil, "hand", a.String())
			if o := old.outcome(t); o.Err != "" {
				t.Fatal(o.Err)
			}
			got := <-succeed(a)
			check(t, got.err)
			next := got.handover
			defer end(next)
			before := inodes(t, a)
			fd := -1
			if when == "before it answers" {
				fd = next.Claim()
			}
			if next.Orphaned() {
				t.Error("the server is not gone yet")
			}
			check(t, old.cmd.Process.Kill())
			_ = old.cmd.Wait()
			if fd < 0 {
				fd = next.Claim()
			}
			readable(t, fd)
			if !next.Orphaned() {
				t.Error("the server is gone")
			}
			check(t, next.Claimed())
			next.Commit()
			if diff := cmp.Diff(before, inodes(t, a)); diff != "" {
				t.Errorf("inodes (-before +after):\n%s", diff)
			}
			dial(t, a)
			_, err := uds.ListenConfig{}.Listen(a)
			wantError(t, err, uds.ErrInUse)
			end(next)
			if names := ls(t, d); names != nil {
				t.Errorf("left behind: %v", names)
			}
		})
	}
}

func TestServerEndsInsteadOfHello(t *testing.T) {
	t.Parallel()
	a := stream(dir(t) + "/s")
	old := handover(t, a)
	asking := succeed(a)
	readable(t, old.Control())
	end(old)
	got := <-asking
	check(t, got.err)
	defer end(got.handover)
	if got.handover.Pending() {
		t.Error("there is no server to take it over from")
	}
	dial(t, a)
}

// The claimed files must still be there, otherwise two servers would serve one
// path.
func TestClaimOfSocketWhoseFileIsGone(t *testing.T) {
	t.Parallel()
	a := stream(dir(t) + "/s")
	old := handover(t, a)
	next, o := askedFor(t, old)
	next.Claim()
	o.Yield()
	check(t, os.Remove(a.Path))
	err := next.Claimed()
	wantError(t, err, err, "its file or its lock was removed meanwhile; start again")
	next.Close()
	wantNext(t, o, uds.Claims)
	wantNext(t, o, uds.Gone)
	check(t, old.TakeBack()) // its server recreates the file
}

func TestControlSocketWithoutRoomForItsName(t *testing.T) {
	t.Parallel()
	d := dir(t)
	path := d + "/"
	for len(path) < uds.MaxPath {
		path += "s"
	}
	_, err := uds.ListenConfig{}.Handover(stream(path))
	wantError(t, err, uds.ErrAddress, "path is 117 bytes", "holds 107")
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
		check(t, say(early, "early"))
		for range 2 {
			fd, err := unix.FcntlInt(uintptr(parents), unix.F_DUPFD_CLOEXEC, 0)
			check(t, err)
			s, err := uds.ListenConfig{Mode: 0o600}.Inherit(fd)
			check(t, err)
			if s.Addr() != a || !s.Shared() {
				t.Errorf("it is %s, shared: %v", s.Addr(), s.Shared())
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
		if got, err := receive(typ)(transport.NewReceiver(100), conn); err != nil || string(got) != "early" {
			t.Errorf("received %q, %v", got, err)
		}
	}
}

// Not parallel: it counts the descriptors of the process.
func TestInheritRejectsOtherDescriptors(t *testing.T) {
	d := dir(t)
	before := descriptors(t)
	for _, tt := range []struct {
		words string
		make  func() (int, error)
	}{
		{"it is not a socket: socket operation on non-socket", func() (int, error) { return unix.Open(d, unix.O_RDONLY|unix.O_CLOEXEC, 0) }},
		{"it is a socket without an address; pass one that is bound", func() (int, error) { return unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0) }},
		{"it is not a Unix socket; pass one", func() (int, error) { return unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0) }},
		{"the socket is a connection already; pass the listening one, Accept=no", func() (int, error) {
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
// answers no server that asks.
func holdRole(args []string) error {
	unix.Umask(0)
	h, err := uds.ListenConfig{}.Handover(mustParse(args[0]))
	report(err)
	if err != nil {
		return nil
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	end(h)
	return nil
}

// handRole offers its socket to the server that asks, and then answers no
// more.
func handRole(args []string) error {
	h, err := uds.ListenConfig{}.Handover(mustParse(args[0]))
	report(err)
	if err != nil {
		return nil
	}
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(h.Control()), Events: unix.POLLIN}}, -1)
	if err != nil && !errors.Is(err, syscall.EINTR) {
		return err
	}
	if _, err := h.Offer(); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil
}
