//go:build linux

package sock_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

// A successor is a server that asks for sockets.
type successor struct {
	*sock.Handover
	err error
}

// succeed asks for the sockets at addrs in the background; the running server
// answers with an offer.
func succeed(c sock.ListenConfig, addrs ...sock.Addr) <-chan successor {
	done := make(chan successor, 1)
	go func() {
		h, err := c.Handover(context.Background(), addrs...)
		done <- successor{h, err}
	}()
	return done
}

// await waits for events: for a connection to accept, or a message. With no
// events it waits for the end of the other side, which a child that is being
// started may hold open for a moment.
func await(t testing.TB, fd int, events int16) {
	t.Helper()
	testkit.Await(t, func() error {
		if got, err := sock.Poll(fd, events); err != nil || got == 0 {
			return errors.Join(errors.New("nothing comes"), err)
		}
		return nil
	})
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
	await(t, h.FD(), unix.POLLIN)
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

// wantRefusal asks a running server for sockets that it does not hand over.
func wantRefusal(t *testing.T, old *sock.Handover, words string, addrs ...sock.Addr) {
	t.Helper()
	asking := succeed(sock.ListenConfig{}, addrs...)
	wantStep(t, old, sock.Offering)
	wantError(t, (<-asking).err, nil, "take over: ", words)
	await(t, old.FD(), 0)
	wantStep(t, old, sock.Serving)
}

// ask returns a successor that has copies of a running server's descriptors.
func ask(t testing.TB, old *sock.Handover) *sock.Handover {
	t.Helper()
	var addrs []sock.Addr
	for _, s := range old.Sockets {
		addrs = append(addrs, s.Addr())
	}
	// The running server's mode is another one, 0777 less the umask.
	asking := succeed(sock.ListenConfig{Mode: 0o600}, addrs...)
	wantStep(t, old, sock.Offering)
	return got(t, <-asking)
}

func got(t testing.TB, next successor) *sock.Handover {
	t.Helper()
	check(t, next.err)
	t.Cleanup(func() { end(next.Handover) })
	if next.State() != sock.Claiming {
		t.Fatal("the successor has not asked")
	}
	return next.Handover
}

// claim makes the running server yield its sockets to a successor.
func claim(t testing.TB, old, next *sock.Handover) {
	t.Helper()
	wantNoStep(t, old)
	next.Claim()
	wantStep(t, old, sock.Yielding)
	wantNoStep(t, old)
	wantNoStep(t, next)
	old.Yield()
}

// pass hands the sockets of the running server to a successor.
func pass(t testing.TB, old, next *sock.Handover) {
	t.Helper()
	claim(t, old, next)
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

// wantServed checks that clients reach a socket, and no other server can start.
func wantServed(t *testing.T, a sock.Addr) {
	t.Helper()
	dial(t, a)
	wantRefused(t, a, sock.ErrInUse, beside(a.Path, ".lock"))
}

func TestTakeoverLosesNoClientAndKeepsTheFiles(t *testing.T) {
	t.Parallel()
	for typ := range types {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			a := sock.Addr{Type: typ, Path: d + "/s"}
			old := handover(t, a)
			check(t, os.Chmod(a.Path, 0o600)) // as the successors will
			same := keeps(t, d)
			check(t, dial(t, a).Send([]byte("early"))) // no process has accepted it, or received from it

			next := ask(t, old)
			pass(t, old, next)
			if next.Sockets[0].Shared() {
				t.Error("it is shared")
			}
			same()
			message, err := sock.NewReceiver(100).ReceiveCred(accept(t, a, next.Sockets[0].FD()))
			wantMessage(t, "early", message, err)
			wantServed(t, a)

			// The next server hands over in the same way; after that no file
			// is left.
			last := ask(t, next)
			pass(t, next, last)
			same()
			end(last)
			wantFiles(t, d)
		})
	}
}

func TestTakeoverOfManySocketsKeepsTheirOrder(t *testing.T) {
	t.Parallel()
	d := dir(t)
	addrs := []sock.Addr{stream(d + "/c"), datagram(d + "/a"), seqpacket(d + "/b"), seqpacket(d + "/d")}
	old := handover(t, addrs...)
	wantFiles(t, d, ".a.lock", ".a.takeover", ".b.lock", ".c.lock", ".d.lock", "a", "b", "c", "d")
	next := ask(t, old)
	pass(t, old, next)
	for i, s := range next.Sockets {
		if s.Addr() != addrs[i] {
			t.Errorf("socket %d is %s, not %s", i, s.Addr(), addrs[i])
		}
		wantServed(t, s.Addr())
	}
	wantRefusal(t, next, "the running server listens on 4 sockets, not 3; use the same addresses", addrs[0], addrs[2], addrs[1])
	end(next)
	wantFiles(t, d)
}

func TestTakeoverWithoutServerIsAUsualStart(t *testing.T) {
	t.Parallel()
	d := dir(t)
	h := handover(t, stream(d+"/s"))
	wantFiles(t, d, ".s.lock", ".s.takeover", "s")
	if info, err := os.Lstat(d + "/.s.takeover"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the control socket is %v, %v", info, err)
	}
	end(h)

	// The files of a killed server are replaced.
	stale(t, d+"/s")
	stale(t, d+"/.s.takeover")
	end(handover(t, stream(d+"/s")))
	wantFiles(t, d)
}

func TestTakeoverThatCannotBegin(t *testing.T) {
	t.Parallel()
	d := dir(t)
	handoverError := func(a sock.Addr, target error, words ...string) {
		t.Helper()
		_, err := sock.ListenConfig{}.Handover(context.Background(), a)
		wantError(t, err, target, words...)
	}
	longest := d + "/" + strings.Repeat("s", sock.MaxPath-len(d)-1)
	handoverError(stream(longest), sock.ErrAddress, "path is 117 bytes", "holds 107")
	wantFiles(t, d)

	precious(t, d+"/.s.takeover")
	same := keeps(t, d)
	handoverError(stream(d+"/s"), sock.ErrNotSocket, d+"/.s.takeover is a regular file", "left alone")
	same()
	check(t, os.Remove(d+"/.s.takeover"))

	a := stream(d + "/s")
	listen(t, sock.ListenConfig{}, a) // which does not hand over
	stale(t, d+"/.s.takeover")        // left by a server that was killed
	handoverError(a, sock.ErrInUse, "listen "+a.String(), "stop it first", "started without takeover")
	dial(t, a)
}

func TestTakeoverOfAnotherType(t *testing.T) {
	t.Parallel()
	d := dir(t)
	a := stream(d + "/s")
	old := handover(t, a)
	same := keeps(t, d)
	wantRefusal(t, old, "the running server listens with stream:"+a.Path+"; use the same type", datagram(a.Path))
	same()
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
	start(t, testkit.Stranger, "hand", "stream:"+d+"/s").Do(t)
	_, err := sock.ListenConfig{}.Handover(context.Background(), stream(d+"/s"))
	wantError(t, err, nil, "take over: "+d+"/.s.takeover", words)
	dial(t, stream(d+"/s"))

	if os.Geteuid() == 0 {
		old := handover(t, stream(d+"/mine"))
		asStranger(func() {
			_, err := sock.ListenConfig{}.Handover(context.Background(), stream(d+"/mine"))
			wantError(t, err, unix.EACCES, "EACCES", d+"/.mine.takeover denies this process permission to connect to it: its mode is 0600, of user 0, group 0")
		})
		wantNoStep(t, old)
	}
}

// A process that may connect to the control socket may still send anything.
//
// Not parallel: a child that is being started would hold a socket open for a
// moment.
func TestNonsenseAtTheControlSocketChangesNothing(t *testing.T) {
	d := dir(t)
	a := stream(d + "/s")
	old := handover(t, a)
	same := keeps(t, d)
	connect := func() (fd int) {
		fd, err := sock.DialConfig{}.Connect(seqpacket(beside(a.Path, ".takeover")))
		check(t, err)
		return fd
	}
	for name, talk := range map[string]func(fd int) error{
		"nothing":     func(int) error { return nil },
		"empty":       func(fd int) error { return unix.Send(fd, nil, 0) },
		"other words": func(fd int) error { return unix.Send(fd, []byte("ours"), 0) },
		"more words":  func(fd int) error { return unix.Send(fd, []byte("claim, all of it"), 0) },
		"descriptors": func(fd int) error {
			err := unix.Sendmsg(fd, []byte("claim"), copies(1, os.Stdin), nil, 0)
			if err == unix.EPERM { // Linux 6.16 or later refuses them
				err = nil
			}
			return err
		},
	} {
		fd := connect()
		wantStep(t, old, sock.Offering)
		check(t, talk(fd))
		check(t, unix.Close(fd))
		if state, err := old.Step(); err != nil || state != sock.Serving {
			t.Errorf("%s: the state is %d (%v)", name, state, err)
		}
	}
	// One client has ended before the server answers.
	check(t, unix.Close(connect()))
	wantError(t, testkit.Err(old.Step()), unix.EPIPE, "sendmsg")
	same()
	dial(t, a)
}

// Not parallel: it counts the descriptors of the process.
func TestNonsenseInsteadOfAnOfferIsRefusedAndNoDescriptorKept(t *testing.T) {
	a := stream(dir(t) + "/s")
	control := bound(t, seqpacket(beside(a.Path, ".takeover")))
	same := keepsDescriptors(t)
	for _, tt := range []struct {
		says   string
		rights int
		words  string
	}{
		{"hello", 0, `the running server sent "hello"; is it another version?`},
		{"udsecho takeover 3", 0, "is it another version?"},
		{"udsecho takeover 1 stream", 3, `the running server sent "udsecho takeover 1 stream"`},
		{"udsecho takeover 3 stream", 2, "is it another version?"},
		{"udsecho takeover 3 strange", 3, "is it another version?"},
		{"udsecho takeover 3 stream stream", 3, "is it another version?"},
		{"udsecho takeover 3 stream", 253, "is it another version?"},
		{"udsecho takeover 3 stream" + strings.Repeat(" ", 10_000), 3, "larger than the receive buffer"},
		{"refuse", 0, "in use: the running server has given its sockets to another server, or is ending"},
		{"udsecho takeover 3 stream", 3, "the running server holds another lock than " + beside(a.Path, ".lock")},
	} {
		asking := succeed(sock.ListenConfig{}, a)
		fd, _, err := unix.Accept(control)
		check(t, err)
		check(t, unix.Sendmsg(fd, []byte(tt.says), copies(tt.rights, os.Stdin), nil, 0))
		wantError(t, (<-asking).err, nil, "take over: ", tt.words)
		check(t, unix.Close(fd))
	}
	same()
}

func TestSuccessorThatIsGoneLeavesTheServerAsItWas(t *testing.T) {
	t.Parallel()
	for _, state := range []sock.State{sock.Offering, sock.Yielding, sock.Yielded} {
		d := dir(t)
		a := stream(d + "/s")
		old := handover(t, a)
		same := keeps(t, d)
		next := ask(t, old)
		switch state {
		case sock.Yielding:
			next.Claim()
			wantStep(t, old, sock.Yielding)
		case sock.Yielded:
			claim(t, old, next)
			wantStep(t, next, sock.Claimed) // it has set its own mode
		}
		next.Close()
		wantStep(t, old, sock.Serving)
		same()
		wantServed(t, a)
		end(old)
		wantFiles(t, d)
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
	first := ask(t, old)
	asking := succeed(sock.ListenConfig{}, a)
	pass(t, old, first)
	same := keeps(t, d)
	wantStep(t, first, sock.Offering)
	second := got(t, <-asking)
	pass(t, first, second)
	same()
	wantServed(t, a)
	end(second)
	wantFiles(t, d)
}

func TestRefusedSuccessor(t *testing.T) {
	t.Parallel()
	a := stream(dir(t) + "/s")
	old := handover(t, a)
	next := ask(t, old)
	next.Claim() // the server has not received it yet
	old.Refuse()
	await(t, next.FD(), unix.POLLIN)
	wantError(t, testkit.Err(next.Step()), sock.ErrInUse, "take over: ", "or is ending")
	next.Close()
	dial(t, a)
}

func TestServerIsKilledDuringTheHandover(t *testing.T) {
	t.Parallel()
	for _, claims := range []bool{false, true} {
		d := dir(t)
		a := stream(d + "/s")
		old := start(t, 0, "hand", a.String(), "offers")
		old.Do(t)
		next := got(t, <-succeed(sock.ListenConfig{}, a))
		same := keeps(t, d)
		if claims {
			next.Claim()
		}
		if next.Orphaned() {
			t.Error("the server is not gone yet")
		}
		old.Kill(t)
		if !claims {
			next.Claim()
		}
		await(t, next.FD(), 0)
		if !next.Orphaned() {
			t.Error("the server is gone")
		}
		wantStep(t, next, sock.Claimed)
		next.Commit()
		same()
		wantServed(t, a)
		end(next)
		wantFiles(t, d)
	}
}

func TestServerEndsInsteadOfAnOffer(t *testing.T) {
	t.Parallel()
	a := stream(dir(t) + "/s")
	old := handover(t, a)
	asking := succeed(sock.ListenConfig{}, a)
	await(t, old.FD(), unix.POLLIN)
	end(old)
	got := <-asking
	check(t, got.err)
	defer end(got.Handover)
	if got.Pending() {
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
	next := ask(t, old)
	claim(t, old, next)
	check(t, os.Remove(a.Path))
	await(t, next.FD(), unix.POLLIN)
	wantError(t, testkit.Err(next.Step()), nil, "its file or its lock was removed meanwhile; start again")
	next.Close()
	wantStep(t, old, sock.Serving) // it recreates the file
}

// The old server ends while the sockets are its successor's, for example
// because its program does not know that they are.
//
// Not parallel: a child that is being started would hold a socket open for a
// moment.
func TestServerLeavesWhatIsYielded(t *testing.T) {
	for _, successorDies := range []bool{false, true} {
		d := dir(t)
		a := stream(d + "/s")
		old := handover(t, a)
		check(t, os.Chmod(a.Path, 0o600)) // as the successor will
		same := keeps(t, d)
		next := ask(t, old)
		claim(t, old, next)
		if successorDies {
			next.Close()
		}
		end(old)
		if successorDies {
			wantFiles(t, d)
			continue
		}
		wantStep(t, next, sock.Claimed)
		next.Commit()
		same()
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
		ended <- testkit.Err(sock.ListenConfig{}.Handover(ctx, a))
	}()
	await(t, old.FD(), unix.POLLIN)
	cancel()
	wantError(t, <-ended, context.Canceled, "take over: ")
	dial(t, a)
}

func TestInheritedSocketIsNotRemoved(t *testing.T) {
	t.Parallel()
	for typ := range types {
		d := dir(t)
		a := sock.Addr{Type: typ, Path: d + "/s"}
		parents := bound(t, a)
		check(t, os.Chmod(a.Path, 0o755))
		same := keeps(t, d)
		check(t, dial(t, a).Send([]byte("early")))
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
			same()
		}
		message, err := sock.NewReceiver(100).ReceiveCred(accept(t, a, parents))
		wantMessage(t, "early", message, err)
	}
}

// Not parallel: it counts the descriptors of the process.
func TestInheritRejectsOtherDescriptors(t *testing.T) {
	d := dir(t)
	same := keepsDescriptors(t)
	for words, open := range map[string]func() (int, error){
		"it is not a socket: socket operation on non-socket":        func() (int, error) { return unix.Open(d, unix.O_RDONLY|unix.O_CLOEXEC, 0) },
		"it is a socket without an address; pass one that is bound": func() (int, error) { return unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0) },
		"it is not a Unix socket; pass one":                         func() (int, error) { return unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0) },
		"the socket is a connection already; pass the listening one, Accept=no": func() (int, error) {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			check(t, err)
			check(t, unix.Close(fds[1]))
			return fds[0], unix.Bind(fds[0], &unix.SockaddrUnix{Name: d + "/c"})
		},
		"bad file descriptor": func() (int, error) { return 1 << 20, nil },
	} {
		fd, err := open()
		check(t, err)
		wantError(t, testkit.Err(sock.ListenConfig{}.Inherit(fd)), nil, words)
	}
	same()
}
