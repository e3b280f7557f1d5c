package main_test

import (
	"fmt"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
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
			for _, typ := range []string{"unix", "unixpacket"} {
				fd, resume := whileStopped(t, server, typ, d)
				wantErr(t, handOver(t, fd, nested(t)), expect)
				wantErr(t, handOver(t, fd, lingering(t)), expect)
				resume()
			}
		},
		"in a datagram": func(t *testing.T, _ *process, d string, expect error) {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			check(t, err)
			check(t, unix.Connect(fd, &unix.SockaddrUnix{Name: d + "/d"}))
			for range 8 { // more than are closed at a time
				wantErr(t, handOver(t, fd, nested(t)), expect)
			}
			check(t, unix.Close(fd))
		},
		"by rejected clients": func(t *testing.T, server *process, d string, expect error) {
			var held []net.Conn
			for range 6 {
				held = append(held, connect(t, "unix", d+"/s"))
				check(t, echoed(held[len(held)-1], "hello"))
			}
			fd, resume := whileStopped(t, server, "unixpacket", d)
			wantErr(t, handOver(t, fd, lingering(t)), expect)
			resume()
			server.Err.Await(t, 1, "connection limit per user (6) reached")
			closeAll(t, held)
		},
	}
	for kernel, serve := range map[string]func(t *testing.T, d string, args ...string) *process{
		"new kernel": func(t *testing.T, d string, args ...string) *process {
			return serveAll(t, d, args...)
		},
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
}

// whileStopped connects while the server is stopped, so that it finds all at
// once. resume closes the connection once the server has ended it.
func whileStopped(t *testing.T, server *process, network, d string) (fd int, resume func()) {
	t.Helper()
	path, typ := d+"/s", unix.SOCK_STREAM
	if network == "unixpacket" {
		path, typ = d+"/q", unix.SOCK_SEQPACKET
	}
	goOn := pause(t, server)
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
		t.Fatal(fmt.Errorf("got %v, want %v", err, want))
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
