package main_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

// descriptors returns how many descriptors a process has open, proc(5), except
// those of epoll: Go's own poller opens two when the first timer is set.
func descriptors(t *testing.T, p *process) (n int) {
	t.Helper()
	return countOpen(t, p, func(target string) bool { return !strings.HasPrefix(target, "anon_inode:[event") })
}

// openSockets returns how many of them are sockets.
func openSockets(t *testing.T, p *process) (n int) {
	t.Helper()
	return countOpen(t, p, func(target string) bool { return strings.HasPrefix(target, "socket:") })
}

func countOpen(t *testing.T, p *process, counts func(target string) bool) (n int) {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.Pid()))
	check(t, err)
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && counts(target) { // otherwise it was closed meanwhile
			n++
		}
	}
	return n
}

// awaitDescriptors waits until a process has no more descriptors open than before.
func awaitDescriptors(t *testing.T, p *process, before int) {
	t.Helper()
	testkit.Await(t, func() error {
		if n := descriptors(t, p); n > before {
			return fmt.Errorf("%d descriptors are open, %d were", n, before)
		}
		return nil
	})
}

// nulls returns a descriptor, as often as a message can carry it.
func nulls(t *testing.T) []int {
	t.Helper()
	null, err := os.Open(os.DevNull)
	check(t, err)
	t.Cleanup(func() { check(t, null.Close()) })
	return slices.Repeat([]int{int(null.Fd())}, 253) // SCM_MAX_FD
}

// rawClient returns a client that can send anything.
func rawClient(t *testing.T, typ int, path string) (fd int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	check(t, unix.Connect(fd, &unix.SockaddrUnix{Name: path}))
	return fd
}

// soPassRights is SO_PASSRIGHTS, of Linux 6.16, which lets a socket receive
// descriptors.
const soPassRights = 83

func TestF11UnrequestedDescriptorsAreClosed(t *testing.T) {
	rights := unix.UnixRights(nulls(t)...)
	t.Run("each", func(t *testing.T) {
		for _, option := range []string{"without SO_PASSRIGHTS=0", "with SO_PASSRIGHTS=0"} {
			for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET, unix.SOCK_DGRAM} {
				t.Run(fmt.Sprintf("%d %s", typ, option), func(t *testing.T) {
					t.Parallel()
					d := dir(t)
					socket := boundFile(t, typ, d+"/s")
					// A datagram that arrives before the server has begun would get no
					// reply without credentials.
					check(t, unix.SetsockoptInt(int(socket.Fd()), unix.SOL_SOCKET, unix.SO_PASSCRED, 1))
					wantErr := error(nil)
					if option == "with SO_PASSRIGHTS=0" && refusesRights(t) {
						check(t, unix.SetsockoptInt(int(socket.Fd()), unix.SOL_SOCKET, soPassRights, 0))
						wantErr = unix.EPERM
					}
					server := activate(t, d, []*os.File{socket}, "--log-level", "warn")
					name := map[int]string{unix.SOCK_STREAM: "stream", unix.SOCK_SEQPACKET: "seqpacket", unix.SOCK_DGRAM: "datagram"}[typ] + ":./s"
					wantHealthy(t, d, name)
					// Its connection may still be open; then the listening socket
					// is not the only one.
					testkit.Await(t, func() error {
						if n := openSockets(t, server); n != 1 {
							return fmt.Errorf("%d sockets are open, not 1", n)
						}
						return nil
					})
					before := descriptors(t, server)
					for range 1000 {
						fd := rawClient(t, typ, d+"/s")
						err := unix.Sendmsg(fd, []byte("take these"), rights, nil, 0)
						if !errors.Is(err, wantErr) {
							t.Fatalf("send: %v, want %v", err, wantErr)
						}
						if typ != unix.SOCK_DGRAM && err == nil {
							buf := make([]byte, 100)
							if n, err := unix.Read(fd, buf); n > 0 || err != nil && err != unix.ECONNRESET {
								t.Fatalf("received %q, %v", buf[:n], err)
							}
						}
						check(t, unix.Close(fd))
					}
					wantHealthy(t, d, name) // all earlier messages have been received
					awaitDescriptors(t, server, before)
					server.Signal(t, syscall.SIGTERM)
					server.WantStatus(t, 0)
					if wantErr == nil {
						wantWords(t, server.Err.String(), "message carries file descriptors", "cause=descriptors", "refused=1")
					} else if server.Err.String() != "" {
						t.Errorf("the server wrote:\n%s", &server.Err)
					}
				})
			}
		}
	})
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F11", Done: "messages with 253 descriptors each, over each type, without and with SO_PASSRIGHTS=0 on the server's socket", Count: 6000,
		Outcome: "the server's count of descriptors is what it was; without the option senders are disconnected and counted, with it the kernel gives them EPERM",
	})
}

// lingering returns a TCP socket whose last close waits for an hour, or until
// its peer ends: with SO_LINGER and bytes that the peer does not read. The last one
// must not be a child's, see [testkit.NoStarts].
func lingering(t *testing.T) (fd int) {
	t.Helper()
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	defer func() { check(t, unix.Close(listener)) }()
	check(t, unix.SetsockoptInt(listener, unix.SOL_SOCKET, unix.SO_RCVBUF, 4096))
	check(t, unix.Bind(listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	check(t, unix.Listen(listener, 1))
	to, err := unix.Getsockname(listener)
	check(t, err)
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	check(t, unix.Connect(fd, to))
	peer, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	check(t, err)
	t.Cleanup(func() { check(t, unix.Close(peer)) })
	check(t, unix.SetNonblock(fd, true))
	for err == nil {
		_, err = unix.Write(fd, make([]byte, 1<<16))
	}
	check(t, unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 3600}))
	return fd
}

// nested returns a Unix socket in whose queue a lingering one lies. Its last
// close waits too, and no option of its own changes that.
func nested(t *testing.T) (fd int) {
	t.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	check(t, handOver(t, ends[0], lingering(t)))
	check(t, unix.Close(ends[0]))
	return ends[1]
}

// handOver sends one byte with a descriptor, and closes the descriptor. It
// returns the error of sendmsg(2).
func handOver(t *testing.T, to, fd int) error {
	t.Helper()
	err := unix.Sendmsg(to, []byte("x"), unix.UnixRights(fd), nil, unix.MSG_NOSIGNAL)
	if err != nil {
		// Its last close would wait: here, or in a child that another test starts
		// meanwhile, which has a copy until it executes its program.
		files, oob := []int{fd}, make([]byte, unix.CmsgSpace(4))
		if _, n, _, _, err := unix.Recvmsg(fd, make([]byte, 1), oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC); err == nil && n > 0 {
			messages, err := unix.ParseSocketControlMessage(oob[:n])
			check(t, err)
			inner, err := unix.ParseUnixRights(&messages[0])
			check(t, err)
			files = append(files, inner...)
		}
		for _, fd := range files {
			check(t, unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
			check(t, unix.Close(fd))
		}
		return err
	}
	return unix.Close(fd)
}

// queueUnread is a client that sends until the server stops reading, because the
// client does not read, and then a lingering descriptor. It closes that while the
// server is stopped, and so cannot be the last to close it.
func queueUnread(t *testing.T, server *process, typ int, path string, expect error) {
	t.Helper()
	fd := rawClient(t, typ, path)
	check(t, unix.SetNonblock(fd, true))
	for poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}; ; {
		_, err := unix.Write(fd, make([]byte, 50_000))
		if err == unix.EAGAIN {
			if n, err := unix.Poll(poll, 100); n == 0 && err == nil {
				break
			}
		} else {
			check(t, err)
		}
	}
	check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20)) // room for a bit more
	goOn := server.PauseAlone(t)
	wantErr(t, handOver(t, fd, lingering(t)), expect)
	check(t, unix.Close(fd))
	goOn()
}

func TestF53NoCloseOfASentDescriptorStopsTheServer(t *testing.T) {
	attacks := map[string]func(t *testing.T, server *process, d string, expect error){
		"queued by a seqpacket client that does not read": func(t *testing.T, server *process, d string, expect error) {
			queueUnread(t, server, unix.SOCK_SEQPACKET, d+"/q", expect)
		},
		"queued by a stream client that does not read": func(t *testing.T, server *process, d string, expect error) {
			queueUnread(t, server, unix.SOCK_STREAM, d+"/s", expect)
		},
		"a second one behind the first": func(t *testing.T, server *process, d string, expect error) {
			for path, typ := range map[string]int{"/s": unix.SOCK_STREAM, "/q": unix.SOCK_SEQPACKET} {
				fd, resume := whileStopped(t, server, typ, d+path)
				wantErr(t, handOver(t, fd, nested(t)), expect)
				wantErr(t, handOver(t, fd, lingering(t)), expect)
				resume()
			}
		},
		"in datagrams": func(t *testing.T, server *process, d string, expect error) {
			fd, resume := whileStopped(t, server, unix.SOCK_DGRAM, d+"/d")
			for range 8 { // more than are closed at a time
				wantErr(t, handOver(t, fd, nested(t)), expect)
			}
			resume()
		},
		"by rejected clients": func(t *testing.T, server *process, d string, expect error) {
			var held []net.Conn
			for range 6 {
				held = append(held, connect(t, "unix", d+"/s"))
				check(t, echoed(held[len(held)-1], "hello"))
			}
			fd, resume := whileStopped(t, server, unix.SOCK_SEQPACKET, d+"/q")
			wantErr(t, handOver(t, fd, lingering(t)), expect)
			resume()
			server.Err.Await(t, 1, "connection limit per user (6) reached")
			closeAll(t, held)
		},
	}
	t.Run("each", func(t *testing.T) {
		for kernel, serve := range map[string]func(t *testing.T, d string, args ...string) *process{
			"new kernel": serveAll,
			// A socket without SO_PASSRIGHTS=0, as on Linux before 6.16.
			"old kernel": func(t *testing.T, d string, args ...string) *process {
				return serving(t, activate(t, d, boundFiles(t, d), args...))
			},
		} {
			expect := error(nil)
			if kernel == "new kernel" && refusesRights(t) {
				expect = unix.EPERM
			}
			for name, attack := range attacks {
				t.Run(kernel+", "+name, func(t *testing.T) {
					t.Parallel()
					d := dir(t)
					server := serve(t, d, "--max-per-user", "6", "--drain-timeout", "200ms")
					attack(t, server, d, expect)
					wantHealthy(t, d, places...)
					conn := connect(t, "unix", d+"/s")
					check(t, echoed(conn, "hello"))
					check(t, conn.Close())
					server.Signal(t, syscall.SIGTERM)
					server.WantStatus(t, 0)
				})
			}
		}
	})
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F53", Done: "a TCP socket with SO_LINGER of an hour and unsent bytes, or a Unix socket with one in its queue: sent by stream, seqpacket and datagram clients, of whom some do not read and some are rejected; on sockets with and without SO_PASSRIGHTS=0; then SIGTERM", Count: 2 * len(attacks),
		Outcome: "with the option the kernel gives the sender EPERM; without, the server closes them beside its loop; either way others get their echo, and the server ends with exit status 0 within its drain timeout",
	})
}

// On older kernels the server holds descriptors until they are closed. If too
// many hang, it takes no more, and continues with everything else.
func TestF53TooManyHangingDescriptorsStopOnlyThoseWhoSendThem(t *testing.T) {
	t.Parallel()
	d := dir(t)
	server := serving(t, activate(t, d, boundFiles(t, d)))
	wantHealthy(t, d, places...) // everything that it needs is open
	before := descriptors(t, server)
	t.Run("hanging", func(t *testing.T) {
		send := func(fd int) {
			t.Helper()
			defer testkit.NoStarts(t)()
			hangs := nested(t)
			check(t, unix.Sendmsg(fd, []byte("take these"), unix.UnixRights(append([]int{hangs}, nulls(t)[1:]...)...), nil, 0))
			check(t, unix.Close(hangs))
		}
		goOn := server.Pause(t)
		fd := rawClient(t, unix.SOCK_DGRAM, d+"/d")
		defer func() { check(t, unix.Close(fd)) }()
		for range 6 {
			send(fd)
		}
		goOn()
		server.Err.Await(t, 4, "dropped a message: message carries file descriptors")
		// Not while it is stopped: SIGSTOP would end the waits.
		record := rawClient(t, unix.SOCK_SEQPACKET, d+"/q")
		defer func() { check(t, unix.Close(record)) }()
		send(record)
		server.Err.Await(t, 1, "too many others still wait to be closed")
		if n := descriptors(t, server); n > before+5*253 {
			t.Errorf("%d descriptors are open, %d were", n, before)
		}
		for network, path := range map[string]string{"unix": "/s", "unixpacket": "/q"} {
			conn := connect(t, network, d+path)
			check(t, echoed(conn, "hello"))
			check(t, conn.Close())
		}
		server.Err.Await(t, 1, "descriptors wait to be closed")
	})
	wantHealthy(t, d, places...)
	awaitDescriptors(t, server, before)
	server.Signal(t, syscall.SIGTERM)
	server.WantStatus(t, 0)
}

// whileStopped connects while the server is stopped, so that it finds all that
// is sent at once, and the sender's descriptors closed. resume lets it continue,
// and closes the connection.
func whileStopped(t *testing.T, server *process, typ int, path string) (fd int, resume func()) {
	t.Helper()
	goOn := server.PauseAlone(t)
	fd = rawClient(t, typ, path)
	return fd, func() {
		t.Helper()
		goOn()
		check(t, unix.Close(fd))
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if err != want {
		t.Fatalf("got %v, want %v", err, want)
	}
}

// refusesRights reports whether this kernel knows SO_PASSRIGHTS.
func refusesRights(t *testing.T) bool {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	defer func() { check(t, unix.Close(fd)) }()
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, soPassRights, 0) == nil
}

func TestF14DescriptorsLeftInQueuesAreCollected(t *testing.T) {
	t.Parallel()
	d := dir(t)
	server := serve(t, d, "--log-level", "info")
	pipe := make([]int, 2)
	check(t, unix.Pipe2(pipe, unix.O_CLOEXEC))
	defer func() { _ = unix.Close(pipe[0]) }()
	sent := 0
	send := func(fd int, fds ...int) {
		t.Helper()
		err := unix.Sendmsg(fd, []byte("take these"), unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
		if err != unix.EPERM { // with SO_PASSRIGHTS off the kernel rejects them itself
			check(t, err)
		}
		sent += len(fds)
	}
	many := slices.Repeat([]int{pipe[1]}, 253)

	goOn := server.Pause(t)
	for range 20 { // in the queue of a server that does not read
		fd := rawClient(t, unix.SOCK_STREAM, d+"/uds_socket")
		send(fd, many...)
		send(fd, many...)
		check(t, unix.Close(fd))
	}
	goOn()
	for range 1000 { // two sockets, each of which is in the other's queue
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		check(t, err)
		send(fds[0], fds[0], pipe[1])
		send(fds[1], fds[1], pipe[1])
		check(t, errors.Join(unix.Close(fds[0]), unix.Close(fds[1])))
	}

	// The pipe ends when the last copy of its other end is closed.
	check(t, unix.Close(pipe[1]))
	began := time.Now()
	if !testkit.Ready(t, pipe[0], 0) {
		t.Fatal("descriptors stay open")
	}
	took := time.Since(began)
	clientEchoes(t, d)
	server.Stop(t)
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F14", Done: "descriptors left unread in the queue of a stopped server, and in cycles of 2 sockets", Count: sent,
		Outcome: fmt.Sprintf("all closed %.2f s after the last socket", took.Seconds()),
	})
}
