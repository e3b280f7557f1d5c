package relay_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"regexp"
	"runtime"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

// sendFiles sends words with descriptors, to another address than that of the
// connection if to is not nil. Package net does not, if a datagram socket is
// connected.
func sendFiles(t testing.TB, conn syscall.Conn, to net.Addr, words string, files ...*os.File) error {
	t.Helper()
	var at unix.Sockaddr
	if to != nil {
		at = &unix.SockaddrUnix{Name: to.String()}
	}
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	for testkit.Ready(t, fdOf(t, conn), unix.POLLOUT) {
		if err := unix.Sendmsg(fdOf(t, conn), []byte(words), unix.UnixRights(fds...), at, unix.MSG_NOSIGNAL); err != unix.EAGAIN {
			return err
		}
	}
	return os.ErrDeadlineExceeded
}

// receiveFile receives words with a descriptor, which is nil at the end.
func receiveFile(t testing.TB, conn net.Conn) (words string, f *os.File, from net.Addr) {
	t.Helper()
	buf, control := make([]byte, 100), make([]byte, 100)
	n, size, _, from, err := conn.(*net.UnixConn).ReadMsgUnix(buf, control)
	if n == 0 && size == 0 {
		return "", nil, nil
	}
	check(t, err)
	messages, err := unix.ParseSocketControlMessage(control[:size])
	if check(t, err); len(messages) != 1 {
		t.Fatalf("received %q with %d control messages", buf[:n], len(messages))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if check(t, err); len(fds) != 1 {
		t.Fatalf("received %d descriptors", len(fds))
	}
	return string(buf[:n]), os.NewFile(uintptr(fds[0]), words), from
}

func openNull(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Open(os.DevNull)
	check(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestForwardPassesFiles(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"stream", "seqpacket"} {
		d := dir(t)
		check(t, os.WriteFile(d+"/file", []byte("what is in it"), 0o600))
		serveAt(t, d, kind+":s", func(conn connection) {
			for words, f, _ := receiveFile(t, conn); f != nil; words, f, _ = receiveFile(t, conn) {
				check(t, errors.Join(sendFiles(t, conn, nil, "back: "+words, f), f.Close()))
			}
		})
		relay := forward(t, d, kind+":r", kind+":s", "--pass-files", "--show", "json")
		conn := dialAt(t, d, kind+":r")
		before := 0
		for i := range 10 {
			f, err := os.Open(d + "/file")
			check(t, err)
			check(t, errors.Join(sendFiles(t, conn, nil, "a file", f), f.Close()))
			words, back, _ := receiveFile(t, conn)
			content, err := io.ReadAll(back)
			check(t, errors.Join(err, back.Close()))
			if words != "back: a file" || string(content) != "what is in it" {
				t.Errorf("%q with %q", words, content)
			}
			if i == 0 {
				before = openFiles(t, relay)
			}
		}
		wantNoMoreFiles(t, relay, before)
		check(t, conn.Close())
		relay.Err.Await(t, 1, "connection ended")
		relay.Terminate(t)
		wantWords(t, relay.Out.String(), `"descriptors":["regular file"]`)
	}
}

func TestForwardEndsConnectionsWithFilesItMayNotPass(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"stream", "seqpacket"} {
		d := dir(t)
		heard := make(chan string, 1)
		serveAt(t, d, kind+":s", func(conn connection) {
			text, _ := io.ReadAll(conn)
			heard <- string(text)
		})
		relay := forward(t, d, kind+":r", kind+":s")
		conn := dialAt(t, d, kind+":r")
		if err := sendFiles(t, conn, nil, "a file", openNull(t)); !sock.CanRefuseRights() {
			check(t, err)
			wantEnd(t, conn)
			relay.Err.Await(t, 1, "disconnected a client: the client's message carries file descriptors; --pass-files passes descriptors on")
		} else if !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: the sender got %v", kind, err)
		}
		check(t, conn.Close())
		if got := <-heard; got != "" {
			t.Errorf("the target got %q", got)
		}
	}
}

// Descriptors arrive with the bytes that they were sent with, whatever was sent
// before and after: PulseAudio gives a descriptor to a frame, X a descriptor to a
// request, and so do others.
func TestF52DescriptorsKeepTheirPlace(t *testing.T) {
	t.Parallel()
	d := dir(t)
	conns, done := make(chan connection), make(chan bool)
	serveAt(t, d, "stream:s", func(conn connection) {
		conns <- conn
		<-done
	})
	forward(t, d, "stream:r", "stream:s", "--pass-files")
	files := make([]int, 8) // distinguished by their sizes
	for i := range files {
		f, err := os.Create(fmt.Sprintf("%s/f%d", d, i))
		check(t, err)
		defer func() { _ = f.Close() }()
		check(t, f.Truncate(int64(i)))
		files[i] = int(f.Fd())
	}
	type place struct {
		at    int   // the offset of the first byte that has descriptors
		sizes []int // of their files
	}
	r := rand.New(rand.NewPCG(1, 2))
	count := 0
	for round := range testkit.Count(4, 20) {
		client := dialAt(t, d, "stream:r")
		from, to := client, <-conns
		if round%2 == 1 {
			from, to = to, from
		}
		var pieces [][]byte // what to send, so that nothing but sending takes time
		var rights [][]int
		var want, got []place
		var sent, received []byte
		for range 100 {
			piece, p, fds := make([]byte, 1+r.IntN(2000)), place{at: len(sent)}, []int(nil)
			for i := range piece {
				piece[i] = byte(r.Uint32())
			}
			if r.IntN(3) == 0 {
				for range 1 + r.IntN(3) {
					n := r.IntN(len(files))
					p.sizes, fds = append(p.sizes, n), append(fds, files[n])
				}
				want = append(want, p)
			}
			pieces, rights, sent = append(pieces, piece), append(rights, fds), append(sent, piece...)
		}
		var sending errgroup.Group
		sending.Go(func() error {
			for i, piece := range pieces {
				control := []byte(nil)
				if rights[i] != nil {
					control = unix.UnixRights(rights[i]...)
				}
				for ; len(piece) > 0; control = nil {
					n, _, err := from.(*net.UnixConn).WriteMsgUnix(piece, control, nil)
					if err != nil {
						return err
					}
					piece = piece[n:]
				}
			}
			return from.CloseWrite()
		})
		for buf, control := make([]byte, 1), make([]byte, 100); ; { // byte by byte
			n, size, _, _, err := to.(*net.UnixConn).ReadMsgUnix(buf, control)
			if n == 0 {
				break
			}
			check(t, err)
			if size > 0 {
				messages, err := unix.ParseSocketControlMessage(control[:size])
				check(t, err)
				fds, err := unix.ParseUnixRights(&messages[0])
				check(t, err)
				p := place{at: len(received)}
				for _, fd := range fds {
					var st unix.Stat_t
					check(t, errors.Join(unix.Fstat(fd, &st), unix.Close(fd)))
					p.sizes = append(p.sizes, int(st.Size))
				}
				got = append(got, p)
				count += len(fds)
			}
			received = append(received, buf[0])
		}
		check(t, sending.Wait())
		if !slices.EqualFunc(got, want, func(a, b place) bool { return a.at == b.at && slices.Equal(a.sizes, b.sizes) }) {
			t.Errorf("descriptors came at %v\nwere sent at %v", got, want)
		}
		if !slices.Equal(received, sent) {
			t.Error("other bytes came")
		}
		check(t, client.Close())
		done <- true
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F52", Count: count,
		Done:    "descriptors between and with bytes of all lengths through a stream, in both directions, received byte by byte",
		Outcome: "each came with the first byte of its own message, and in order",
	})
}

// passPipe sends words and the writing end of a new pipe from one socket to
// another. The pipe has no other writing end any more then: so sd_notify(3)
// waits until its message is handled.
func passPipe(t testing.TB, from, to *net.UnixConn, address net.Addr, words string) (sender net.Addr) {
	t.Helper()
	r, w, err := os.Pipe()
	check(t, err)
	defer func() { _ = r.Close() }()
	check(t, errors.Join(sendFiles(t, from, address, words, w), w.Close()))
	got, end, sender := receiveFile(t, to)
	if got != words {
		t.Errorf("received %q, not %q", got, words)
	}
	send(t, end, "through the pipe")
	check(t, end.Close())
	if text, err := io.ReadAll(r); err != nil || string(text) != "through the pipe" {
		t.Errorf("the pipe gave %q, %v", text, err)
	}
	return sender
}

func TestF52RelayPassesDescriptorsOfDatagrams(t *testing.T) {
	t.Parallel()
	d := dir(t)
	target := listenDatagrams(t, d+"/s")
	relay := forward(t, d, "datagram:r", "datagram:s", "--pass-files", "--show", "json", "--drain-timeout", "0s")
	clients := []*net.UnixConn{dialDatagrams(t, d+"/c0", d+"/r"), dialDatagrams(t, d+"/c1", d+"/r")}
	before := 0
	for round := range 50 {
		for i, c := range clients {
			words := []string{"", "BARRIER=1"}[(round+i)%2] // journald gets large entries with an empty message
			passPipe(t, target, c, passPipe(t, c, target, nil, words), "re: "+words)
			ask(t, c, target, "without one")
		}
		if round == 0 {
			before = openFiles(t, relay)
		}
	}
	wantNoMoreFiles(t, relay, before)

	// Descriptors for a client that does not read are bounded in the relay, and
	// stop no other client.
	lazy := ask(t, clients[0], target, "hello")
	for range 50 {
		check(t, sendFiles(t, target, lazy, "unread", slices.Repeat([]*os.File{openNull(t)}, sock.MaxRights)...))
	}
	passPipe(t, target, clients[1], passPipe(t, clients[1], target, nil, "another client"), "answered")
	if n := openFiles(t, relay); n > before+2048 {
		t.Errorf("%d descriptors are open in the relay", n)
	}

	// Without the flag they do not pass, and the relay keeps none.
	plain := forward(t, d, "datagram:p", "datagram:s", "--drain-timeout", "0s")
	c := dialDatagrams(t, d+"/c2", d+"/p")
	r, w, err := os.Pipe()
	check(t, err)
	defer func() { _ = r.Close() }()
	if err = sendFiles(t, c, nil, "refused", w); !errors.Is(err, unix.EPERM) { // Linux 6.16
		check(t, err)
		plain.Err.Await(t, 1, "dropped a message: message carries file descriptors")
	}
	check(t, w.Close())
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the relay keeps the descriptor: %v", err)
	}
	ask(t, c, target, "served")
}

// lingering returns a TCP socket whose last close waits for an hour: with
// SO_LINGER and bytes that the other side does not read.
func lingering(t testing.TB) *os.File {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer func() { check(t, l.Close()) }()
	conn, err := net.Dial("tcp", l.Addr().String())
	check(t, err)
	defer func() { check(t, conn.Close()) }()
	peer, err := l.Accept()
	check(t, err)
	t.Cleanup(func() { _ = peer.Close() })
	fill(t, conn.(connection))
	f, err := conn.(*net.TCPConn).File()
	check(t, err)
	check(t, unix.SetsockoptLinger(int(f.Fd()), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 3600}))
	return f
}

// refusingTarget starts a target whose kernel refuses descriptors.
func refusingTarget(t testing.TB, d, address string) {
	t.Helper()
	if !sock.CanRefuseRights() {
		testkit.Missing(t, "SO_PASSRIGHTS", "Linux 6.16")
	}
	start(t, d, "server", "--listen", address).Err.Await(t, 1, "waiting for a ")
}

// F53 too: descriptors that wait behind closes that hang are bounded, whatever
// the number of connections that bring them.
func TestF53DescriptorsThatWaitToBeClosedAreBounded(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"stream", "seqpacket"} {
		d := dir(t)
		refusingTarget(t, d, kind+":s")
		relay := forward(t, d, kind+":r", kind+":s", "--pass-files", "--drain-timeout", "0s")
		goOn := relay.PauseAlone(t)
		for range 4 { // as many as the relay closes at a time for one user
			lingers := lingering(t)
			check(t, errors.Join(sendFiles(t, dialAt(t, d, kind+":r"), nil, "x", lingers), lingers.Close()))
		}
		goOn()
		relay.Err.Await(t, 4, "disconnected a client")
		for range 20 {
			check(t, sendFiles(t, dialAt(t, d, kind+":r"), nil, "x", slices.Repeat([]*os.File{openNull(t)}, sock.MaxRights)...))
		}
		relay.Err.Await(t, 24, "connection from")
		wantHealthy(t, d, kind+":r")
		if n := openFiles(t, relay); n > 6*sock.MaxRights {
			t.Errorf("%s: %d descriptors are open", kind, n)
		}
		relay.Terminate(t)
	}
}

// F53 of the fault matrix, the relay's part: no close of a descriptor that a
// client has sent stops the others, wherever the relay closes it.
func TestF53NoCloseOfASentDescriptorStopsTheRelay(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"stream", "seqpacket"} {
		for name, args := range map[string][]string{
			"received and not passed on":             {"s", "--pass-files"},
			"received without --pass-files":          {"s"},
			"left in the queue":                      {"none", "--pass-files"},
			"left in the queue without --pass-files": {"none"},
		} {
			t.Run(kind+", "+name, func(t *testing.T) {
				d := dir(t)
				if args[0] == "s" {
					refusingTarget(t, d, kind+":s")
				}
				// A socket that a parent process made does not refuse descriptors.
				l, err := net.ListenUnix(networks[kind], &net.UnixAddr{Name: d + "/r", Net: networks[kind]})
				check(t, err)
				f, err := l.File()
				check(t, err)
				relay := testkit.Prepare(t, d, append([]string{"sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"`,
					testkit.Program("uds"), "forward", "--listen", kind + ":r", "--connect", kind + ":" + args[0]}, args[1:]...)...)
				relay.Cmd.ExtraFiles = []*os.File{f}
				relay.Start(t)
				relay.Err.Await(t, 1, "waiting for a connection")
				l.SetUnlinkOnClose(false)
				check(t, errors.Join(f.Close(), l.Close()))

				goOn := relay.PauseAlone(t) // so that the relay is the last to close
				conn, lingers := dialAt(t, d, kind+":r"), lingering(t)
				check(t, errors.Join(sendFiles(t, conn, nil, "x", lingers), lingers.Close()))
				goOn()
				relay.Err.Await(t, 1, "disconnected a client")
				wantHealthy(t, d, kind+":r")
				_, _ = io.Copy(io.Discard, conn)
				if status := relay.Terminate(t); status != 0 {
					t.Errorf("exit status %d:\n%s", status, &relay.Err)
				}
			})
		}
	}
}

// Descriptors in flight count for the relay's user. One client whose target does
// not receive them must not take all of those from the others.
func TestF61DescriptorsInFlightLeaveRoomForOthers(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t, "for a relay and a client of other users: the kernel does not limit root")
	const mostFiles, relayUser, clientUser = 3000, 30011, 30012
	d := dir(t)
	check(t, os.Chmod(d, 0o777))
	stop := make(chan bool)
	serveAt(t, d, "stream:s", func(conn connection) {
		awaitReadable(t, conn)
		first := make([]byte, 1)
		if _, _, err := unix.Recvfrom(fdOf(t, conn), first, unix.MSG_PEEK); err == nil && first[0] == 'x' {
			<-stop
		} else if words, f, _ := receiveFile(t, conn); f != nil {
			check(t, f.Close())
			_, _ = io.WriteString(conn, words)
		}
	})
	check(t, os.Chmod(d+"/s", 0o777))
	// The limits of open files and of descriptors in flight are the same.
	relay := testkit.Prepare(t, d, "sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$0" "$@"`, mostFiles), testkit.Program("uds"),
		"forward", "--listen", "stream:r", "--connect", "stream:s", "--pass-files", "--mode", "0666")
	relay.Cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: relayUser, Gid: relayUser}}
	relay.Start(t)
	relay.Err.Await(t, 1, "waiting for a connection")

	// Connections that end while theirs are in flight.
	null := openNull(t)
	many := slices.Repeat([]*os.File{null}, sock.MaxRights)
	for range mostFiles/len(many) + 1 {
		conn := dialAs(t, clientUser, d+"/r")
		check(t, errors.Join(sendFiles(t, conn, nil, "x", many...), conn.Close()))
	}

	another := func() {
		t.Helper()
		conn := dialAt(t, d, "stream:r")
		check(t, sendFiles(t, conn, nil, "R", null))
		if got, err := io.ReadAll(conn); err != nil || string(got) != "R" {
			t.Errorf("another client got %q, %v", got, err)
		}
	}
	hostile := dialAs(t, clientUser, d+"/r")
	defer func() { _ = hostile.Close() }()
	rights := unix.UnixRights(slices.Repeat([]int{int(null.Fd())}, len(many))...)
	for sent, before := 0, -1; sent != before; another() { // until the relay takes no more
		before = sent
		for unix.Sendmsg(fdOf(t, hostile), []byte("x"), rights, nil, unix.MSG_DONTWAIT) == nil && sent < 2*mostFiles {
			sent += len(many)
		}
	}
	clients := testkit.Count(5, 100)
	for range clients {
		another()
	}
	close(stop)
	relay.Terminate(t)
	if text := relay.Err.String(); regexp.MustCompile("disconnected.* uid=0").MatchString(text) {
		t.Errorf("the log has\n%s", text)
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F61", Count: clients,
		Done:    "clients that pass a descriptor on, while another user's client sends descriptors without an end to a target that does not receive them; the relay is not root",
		Outcome: "all were passed on and answered; the other client waits, with a quarter of those that the kernel allows the relay's user",
	})
}

// dialAs connects as another user, which SO_PEERCRED then shows.
func dialAs(t testing.TB, user int, path string) connection {
	t.Helper()
	var conn net.Conn
	var dialling errgroup.Group
	dialling.Go(func() (err error) {
		runtime.LockOSThread() // the thread ends with the goroutine
		same := ^uintptr(0)
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, same, uintptr(user), same); errno != 0 {
			return errno
		}
		conn, err = net.Dial("unix", path)
		return err
	})
	check(t, dialling.Wait())
	return conn.(connection)
}
