package main_test

import (
	"fmt"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

// lingering returns a TCP socket whose last close waits for an hour, or until
// its peer ends: with SO_LINGER and bytes that the peer does not read.
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
	if err != nil { // its close would wait here
		check(t, unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
		go func() { _ = unix.Close(fd) }()
		return err
	}
	return unix.Close(fd)
}

// unreading returns a connection of a client that has sent until the server
// stopped reading, because the client does not read. It can still send a bit.
func unreading(t *testing.T, typ int, path string) (fd int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	check(t, unix.Connect(fd, &unix.SockaddrUnix{Name: path}))
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
	check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20))
	return fd
}

// F53 of the fault matrix, the server's part.
func TestF53NoCloseOfASentDescriptorStopsTheServer(t *testing.T) {
	attacks := map[string]func(t *testing.T, server *process, d string, expect error){
		"queued by a seqpacket client that does not read": func(t *testing.T, _ *process, d string, expect error) {
			fd := unreading(t, unix.SOCK_SEQPACKET, d+"/q")
			wantErr(t, handOver(t, fd, lingering(t)), expect)
			check(t, unix.Close(fd))
		},
		"queued by a stream client that does not read": func(t *testing.T, _ *process, d string, expect error) {
			fd := unreading(t, unix.SOCK_STREAM, d+"/s")
			wantErr(t, handOver(t, fd, lingering(t)), expect)
			check(t, unix.Close(fd))
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
				return activate(t, d, []*os.File{
					boundFile(t, unix.SOCK_STREAM, d+"/s"), boundFile(t, unix.SOCK_DGRAM, d+"/d"), boundFile(t, unix.SOCK_SEQPACKET, d+"/q"),
				}, args...)
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
					healthCheckAll(t, d)
					conn := connect(t, "unix", d+"/s")
					check(t, echoed(conn, "hello"))
					check(t, conn.Close())
					if status := server.Terminate(t); status != 0 {
						t.Errorf("exit status %d:\n%s", status, &server.Err)
					}
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
	server := activate(t, d, []*os.File{
		boundFile(t, unix.SOCK_STREAM, d+"/s"), boundFile(t, unix.SOCK_DGRAM, d+"/d"), boundFile(t, unix.SOCK_SEQPACKET, d+"/q"),
	})
	before := descriptors(t, server)
	t.Run("hanging", func(t *testing.T) {
		null, err := os.Open(os.DevNull)
		check(t, err)
		defer func() { check(t, null.Close()) }()
		send := func(fd int) {
			t.Helper()
			hangs := nested(t)
			fds := []int{hangs}
			for len(fds) < 253 { // SCM_MAX_FD
				fds = append(fds, int(null.Fd()))
			}
			check(t, unix.Sendmsg(fd, []byte("take these"), unix.UnixRights(fds...), nil, 0))
			check(t, unix.Close(hangs))
		}
		goOn := server.Pause(t)
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		check(t, err)
		defer func() { check(t, unix.Close(fd)) }()
		check(t, unix.Connect(fd, &unix.SockaddrUnix{Name: d + "/d"}))
		for range 6 {
			send(fd)
		}
		goOn()
		server.Err.Await(t, 4, "dropped a message: message carries file descriptors")
		// Not while it is stopped: SIGSTOP would end the waits.
		record := seqpacket(t, d+"/q")
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
	healthCheckAll(t, d)
	testkit.Await(t, func() error {
		if n := descriptors(t, server); n > before {
			return fmt.Errorf("%d descriptors are open, %d were", n, before)
		}
		return nil
	})
	if status := server.Terminate(t); status != 0 {
		t.Errorf("exit status %d:\n%s", status, &server.Err)
	}
}

// whileStopped connects while the server is stopped, so that it finds all that
// is sent at once, and the sender's descriptors closed. resume lets it continue,
// and closes the connection.
func whileStopped(t *testing.T, server *process, typ int, path string) (fd int, resume func()) {
	t.Helper()
	goOn := server.Pause(t)
	fd, err := unix.Socket(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	check(t, unix.Connect(fd, &unix.SockaddrUnix{Name: path}))
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
