package socktest

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

// A successor is a server that asks for sockets.
type successor struct {
	handover *sock.Handover
	err      error
}

// succeed asks for the sockets at addrs in the background; the running server
// answers with offer.
func succeed(addrs ...sock.Addr) <-chan successor {
	done := make(chan successor, 1)
	go func() {
		h, err := sock.ListenConfig{}.Handover(context.Background(), addrs...)
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
func handover(t testing.TB, addrs ...sock.Addr) *sock.Handover {
	t.Helper()
	h, err := sock.ListenConfig{}.Handover(context.Background(), addrs...)
	check(t, err)
	if h.Pending() {
		t.Fatal("there is no server to take them over from")
	}
	t.Cleanup(func() { end(h) })
	return h
}

// end closes everything, in the order in which a server does.
func end(h *sock.Handover) {
	h.Leave()
	for _, s := range h.Sockets {
		_ = s.Close()
	}
	h.Close()
}

// wantStep takes the next step of a handover, once there is one.
func wantStep(t testing.TB, h *sock.Handover, want sock.State) {
	t.Helper()
	readable(t, h.FD())
	if got, err := h.Step(); err != nil || got != want {
		t.Fatalf("the state is %d, not %d (%v)", got, want, err)
	}
}

// wantNoStep checks that a handover has no step to take.
func wantNoStep(t testing.TB, h *sock.Handover) {
	t.Helper()
	before := h.State()
	if got, err := h.Step(); err != nil || got != before {
		t.Fatalf("the state is %d, was %d (%v)", got, before, err)
	}
}

// wantGone waits for the end of the other server, and takes the sockets back.
func wantGone(t testing.TB, h *sock.Handover) {
	t.Helper()
	await(t, h.FD(), 0)
	for h.State() != sock.Serving {
		_, err := h.Step()
		check(t, err)
	}
}

// askedFor returns a successor that has copies of a running server's
// descriptors.
func askedFor(t testing.TB, old *sock.Handover) *sock.Handover {
	t.Helper()
	var addrs []sock.Addr
	for _, s := range old.Sockets {
		addrs = append(addrs, s.Addr())
	}
	asking := succeed(addrs...)
	wantStep(t, old, sock.Offering)
	got := <-asking
	check(t, got.err)
	t.Cleanup(func() { end(got.handover) })
	if got.handover.State() != sock.Claiming {
		t.Fatal("the successor has not asked")
	}
	return got.handover
}

// pass hands the sockets of the running server to a successor.
func pass(t testing.TB, old, next *sock.Handover) {
	t.Helper()
	wantNoStep(t, old)
	next.Claim()
	wantStep(t, old, sock.Yielding)
	wantNoStep(t, old)
	wantNoStep(t, next)
	old.Yield()
	wantStep(t, next, sock.Claimed)
	next.Commit()
	wantStep(t, old, sock.Released)
	if next.State() != sock.Serving {
		t.Error("they are not the successor's own")
	}
	for _, s := range old.Sockets {
		if s.FD() >= 0 {
			t.Errorf("the old server has kept %s", s.Addr())
		}
	}
	if old.FD() >= 0 {
		t.Error("the old server has kept the control socket")
	}
}

// inodes returns the inodes of all files of a socket that is the first of its
// group.
func inodes(t testing.TB, a sock.Addr) [3]uint64 {
	t.Helper()
	return [3]uint64{inode(t, a.Path), inode(t, beside(a.Path, ".lock")), inode(t, beside(a.Path, ".takeover"))}
}

// receive returns the function with which users of this package receive from a
// type.
func receive(typ sock.Type) func(*sock.Receiver, int) ([]byte, error) {
	if typ == sock.Datagram {
		return (*sock.Receiver).ReceiveCred
	}
	return (*sock.Receiver).Receive
}

func TestTakeoverLosesNoClientAndKeepsTheFiles(t *testing.T) {
	t.Parallel()
	for _, typ := range []sock.Type{sock.Stream, sock.Datagram, sock.Seqpacket} {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			a := sock.Addr{Type: typ, Path: d + "/s"}
			old := handover(t, a)
			before := inodes(t, a)
			early := dial(t, a) // no process has accepted it, or received from it
			check(t, say(early, "early"))

			next := askedFor(t, old)
			pass(t, old, next)
			if next.Sockets[0].Shared() {
				t.Error("it is shared")
			}
			if diff := cmp.Diff(before, inodes(t, a)); diff != "" {
				t.Errorf("inodes of socket, lock and control socket (-before +after):\n%s", diff)
			}
			conn := next.Sockets[0].FD()
			if typ != sock.Datagram {
				accepted, _, err := unix.Accept(conn)
				check(t, err)
				defer func() { check(t, unix.Close(accepted)) }()
				conn = accepted
			}
			if got, err := receive(typ)(sock.NewReceiver(100), conn); err != nil || string(got) != "early" {
				t.Errorf("received %q, %v", got, err)
			}
			_, err := sock.ListenConfig{}.Listen(a)
			wantError(t, err, sock.ErrInUse, beside(a.Path, ".lock"))

			// The next server hands over in the same way; after that no file
			// is left.
			last := askedFor(t, next)
			pass(t, next, last)
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
	addrs := []sock.Addr{stream(d + "/c"), datagram(d + "/a"), {Type: sock.Seqpacket, Path: d + "/b"}, {Type: sock.Seqpacket, Path: d + "/d"}}
	old := handover(t, addrs...)
	if diff := cmp.Diff([]string{".a.lock", ".a.takeover", ".b.lock", ".c.lock", ".d.lock", "a", "b", "c", "d"}, ls(t, d)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	next := askedFor(t, old)
	pass(t, old, next)
	for i, s := range next.Sockets {
		if s.Addr() != addrs[i] {
			t.Errorf("socket %d is %s, not %s", i, s.Addr(), addrs[i])
		}
		_, err := sock.ListenConfig{}.Listen(s.Addr())
		wantError(t, err, sock.ErrInUse)
	}
	asking := succeed(addrs[0], addrs[2], addrs[1])
	wantStep(t, next, sock.Offering)
	err := (<-asking).err
	wantError(t, err, err, "the running server listens on 4 sockets, not 3; use the same addresses")
	wantGone(t, next)
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
	listen(t, sock.ListenConfig{}, a)
	stale(t, d+"/.s.takeover") // left by a server that was killed
	_, err := sock.ListenConfig{}.Handover(context.Background(), a)
	wantError(t, err, sock.ErrInUse, "listen "+a.String(), "stop it first", "started without takeover")
	dial(t, a)
}

func TestTakeoverLeavesOtherFilesAlone(t *testing.T) {
	t.Parallel()
	d := dir(t)
	check(t, os.WriteFile(d+"/.s.takeover", []byte("precious"), 0o600))
	before := take(t, d+"/.s.takeover")
	_, err := sock.ListenConfig{}.Handover(context.Background(), stream(d+"/s"))
	wantError(t, err, sock.ErrNotSocket, d+"/.s.takeover is a regular file", "left alone")
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
	wantStep(t, old, sock.Offering)
	got := <-asking
	wantError(t, got.err, got.err, "take over: the running server listens with stream:"+a.Path, "use the same type")
	wantGone(t, old)
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
	_, err := sock.ListenConfig{}.Handover(context.Background(), stream(d+"/s"))
	wantError(t, err, err, "take over: "+d+"/.s.takeover", words)
	dial(t, stream(d+"/s"))

	if os.Geteuid() == 0 {
		old := handover(t, stream(d+"/mine"))
		o := start(t, stranger, nil, "hold", "stream:"+d+"/mine").outcome(t)
		wantWords(t, o.Err, "EACCES", d+"/.mine.takeover denies this process permission to connect to it: its mode is 0600, of user 0, group 0")
		wantNoStep(t, old)
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
		"more words":  func(fd int) error { return unix.Send(fd, []byte("claim, all of it"), 0) },
		"descriptors": func(fd int) error {
			err := unix.Sendmsg(fd, []byte("claim"), unix.UnixRights(int(null.Fd())), nil, 0)
			if err == unix.EPERM { // Linux 6.16 or later refuses them
				err = nil
			}
			return err
		},
	} {
		fd := ask()
		wantStep(t, old, sock.Offering)
		check(t, talk(fd))
		check(t, unix.Close(fd))
		if state, err := old.Step(); err != nil || state != sock.Serving {
			t.Errorf("%s: the state is %d (%v)", name, state, err)
		}
	}
	// One client has ended before the server answers.
	check(t, unix.Close(ask()))
	_, err = old.Step()
	wantError(t, err, unix.EPIPE, "sendmsg")

	if diff := cmp.Diff(before, inodes(t, a)); diff != "" {
		t.Errorf("inodes (-before +after):\n%s", diff)
	}
	dial(t, a)
}

// Not parallel: it counts the descriptors of the process.
func TestNonsenseInsteadOfAnOfferIsRefusedAndNoDescriptorKept(t *testing.T) {
	a := stream(dir(t) + "/s")
	control := bound(t, sock.Addr{Type: sock.Seqpacket, Path: beside(a.Path, ".takeover")})
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
		{"udsecho takeover 3", nil, "is it another version?"},
		{"udsecho takeover 1 stream", files(3), `the running server sent "udsecho takeover 1 stream"`},
		{"udsecho takeover 3 stream", files(2), "is it another version?"},
		{"udsecho takeover 3 strange", files(3), "is it another version?"},
		{"udsecho takeover 3 stream stream", files(3), "is it another version?"},
		{"udsecho takeover 3 stream", files(253), "is it another version?"},
		{"udsecho takeover 3 stream" + strings.Repeat(" ", 10_000), files(3), "larger than the receive buffer"},
		{"refuse", nil, "in use: the running server has given its sockets to another server, or is ending"},
		{"udsecho takeover 3 stream", files(3), "the running server holds another lock than " + beside(a.Path, ".lock")},
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
			h, err := sock.ListenConfig{Mode: 0o600}.Handover(context.Background(), a)
			asking <- successor{h, err}
		}()
		wantStep(t, old, sock.Offering)
		got := <-asking
		check(t, got.err)
		if when != "it has asked" {
			got.handover.Claim()
			wantStep(t, old, sock.Yielding)
			if when == "it owns" {
				old.Yield()
				wantStep(t, got.handover, sock.Claimed)
			}
		}
		got.handover.Close()
		wantStep(t, old, sock.Serving)
		if diff := cmp.Diff(before, inodes(t, a)); diff != "" {
			t.Errorf("%s: inodes (-before +after):\n%s", when, diff)
		}
		if diff := cmp.Diff(mode, take(t, a.Path)); diff != "" {
			t.Errorf("%s: the file changed (-before +after):\n%s", when, diff)
		}
		dial(t, a)
		_, err := sock.ListenConfig{}.Listen(a)
		wantError(t, err, sock.ErrInUse)
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
	first := askedFor(t, old)
	asking := succeed(a)
	pass(t, old, first)
	wantStep(t, first, sock.Offering)
	got := <-asking
	check(t, got.err)
	second := got.handover
	pass(t, first, second)
	if diff := cmp.Diff(before, inodes(t, a)); diff != "" {
		t.Errorf("inodes (-before +after):\n%s", diff)
	}
	dial(t, a)
	_, err := sock.ListenConfig{}.Listen(a)
	wantError(t, err, sock.ErrInUse)
	end(second)
	if names := ls(t, d); names != nil {
		t.Errorf("left behind: %v", names)
	}
}

func TestRefusedSuccessor(t *testing.T) {
	t.Parallel()
	a := stream(dir(t) + "/s")
	old := handover(t, a)
	next := askedFor(t, old)
	next.Claim() // the server has not received it yet
	old.Refuse()
	readable(t, next.FD())
	_, err := next.Step()
	wantError(t, err, sock.ErrInUse, "take over: ", "or is ending")
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
			if when == "before it answers" {
				next.Claim()
			}
			if next.Orphaned() {
				t.Error("the server is not gone yet")
			}
			check(t, old.cmd.Process.Kill())
			_ = old.cmd.Wait()
			if when != "before it answers" {
				next.Claim()
			}
			readable(t, next.FD())
			if !next.Orphaned() {
				t.Error("the server is gone")
			}
			wantStep(t, next, sock.Claimed)
			next.Commit()
			if diff := cmp.Diff(before, inodes(t, a)); diff != "" {
				t.Errorf("inodes (-before +after):\n%s", diff)
			}
			dial(t, a)
			_, err := sock.ListenConfig{}.Listen(a)
			wantError(t, err, sock.ErrInUse)
			end(next)
			if names := ls(t, d); names != nil {
				t.Errorf("left behind: %v", names)
			}
		})
	}
}

func TestServerEndsInsteadOfAnOffer(t *testing.T) {
	t.Parallel()
	a := stream(dir(t) + "/s")
	old := handover(t, a)
	asking := succeed(a)
	readable(t, old.FD())
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
	next := askedFor(t, old)
	next.Claim()
	wantStep(t, old, sock.Yielding)
	old.Yield()
	check(t, os.Remove(a.Path))
	readable(t, next.FD())
	_, err := next.Step()
	wantError(t, err, err, "its file or its lock was removed meanwhile; start again")
	next.Close()
	wantStep(t, old, sock.Serving) // it recreates the file
}

// The old server ends while the sockets are its successor's, for example
// because its program does not know that they are.
func TestServerLeavesWhatIsYielded(t *testing.T) {
	t.Parallel()
	for _, successorDies := range []bool{false, true} {
		d := dir(t)
		a := stream(d + "/s")
		old := handover(t, a)
		before := inodes(t, a)
		next := askedFor(t, old)
		next.Claim()
		wantStep(t, old, sock.Yielding)
		old.Yield()
		if successorDies {
			next.Close()
		}
		end(old)
		if successorDies {
			if names := ls(t, d); names != nil {
				t.Errorf("no server is left, but %v", names)
			}
			continue
		}
		wantStep(t, next, sock.Claimed)
		next.Commit()
		if diff := cmp.Diff(before, inodes(t, a)); diff != "" {
			t.Errorf("inodes (-before +after):\n%s", diff)
		}
		dial(t, a)
	}
}

func TestContextEndsTheWaitForAServerThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	a := stream(dir(t) + "/s")
	old := handover(t, a)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := sock.ListenConfig{}.Handover(ctx, a)
		ended <- err
	}()
	readable(t, old.FD())
	cancel()
	wantError(t, <-ended, context.Canceled, "take over: ")
	dial(t, a)
}

func TestControlSocketWithoutRoomForItsName(t *testing.T) {
	t.Parallel()
	d := dir(t)
	path := d + "/"
	for len(path) < sock.MaxPath {
		path += "s"
	}
	_, err := sock.ListenConfig{}.Handover(context.Background(), stream(path))
	wantError(t, err, sock.ErrAddress, "path is 117 bytes", "holds 107")
	if names := ls(t, d); names != nil {
		t.Errorf("left behind: %v", names)
	}
}

func TestInheritedSocketIsNotRemoved(t *testing.T) {
	t.Parallel()
	for _, typ := range []sock.Type{sock.Stream, sock.Datagram, sock.Seqpacket} {
		d := dir(t)
		a := sock.Addr{Type: typ, Path: d + "/s"}
		parents := bound(t, a)
		before := take(t, a.Path)
		early := dial(t, a)
		check(t, say(early, "early"))
		for range 2 {
			fd, err := unix.FcntlInt(uintptr(parents), unix.F_DUPFD_CLOEXEC, 0)
			check(t, err)
			s, err := sock.ListenConfig{Mode: 0o600}.Inherit(fd)
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
		if typ != sock.Datagram {
			var err error
			conn, _, err = unix.Accept(parents)
			check(t, err)
			defer func() { check(t, unix.Close(conn)) }()
		}
		if got, err := receive(typ)(sock.NewReceiver(100), conn); err != nil || string(got) != "early" {
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
		_, err = sock.ListenConfig{}.Inherit(fd)
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
	h, err := sock.ListenConfig{}.Handover(context.Background(), mustParse(args[0]))
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
	h, err := sock.ListenConfig{}.Handover(context.Background(), mustParse(args[0]))
	report(err)
	if err != nil {
		return nil
	}
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(h.FD()), Events: unix.POLLIN}}, -1)
	if err != nil && !errors.Is(err, syscall.EINTR) {
		return err
	}
	if _, err := h.Step(); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil
}
