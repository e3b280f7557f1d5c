package main_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

// lingering returns a TCP socket whose last close waits for an hour: with
// SO_LINGER and bytes that the other side does not read.
func lingering(t *testing.T) *os.File {
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
	f, err := conn.(*net.TCPConn).File()
	check(t, err)
	for err == nil {
		_, err = unix.SendmsgN(int(f.Fd()), make([]byte, 1<<16), nil, nil, unix.MSG_DONTWAIT)
	}
	check(t, unix.SetsockoptLinger(int(f.Fd()), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 3600}))
	return f
}

// refusingTarget accepts connections whose kernel refuses descriptors.
func refusingTarget(t *testing.T, network, path string) {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { sock.RefuseRights(int(fd)) })
	}}
	l, err := config.Listen(context.Background(), network, path)
	check(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer func() { _ = conn.Close() }()
		}
	}()
}

// F53 too: descriptors that wait behind closes that hang are bounded, whatever
// the number of connections that bring them.
func TestF53DescriptorsThatWaitToBeClosedAreBounded(t *testing.T) {
	t.Parallel()
	if !sock.CanRefuseRights() {
		testkit.Missing(t, "SO_PASSRIGHTS", "Linux 6.16")
	}
	for _, kind := range []string{"stream", "seqpacket"} {
		d := dir(t)
		refusingTarget(t, networks[kind], d+"/s")
		relay := forward(t, d, kind+":r", kind+":s", "--pass-files", "--drain-timeout", "0s")
		send := func(f *os.File, copies int) {
			conn := dialAt(t, d, kind+":r")
			fds := slices.Repeat([]int{int(f.Fd())}, copies)
			_, _, err := conn.(*net.UnixConn).WriteMsgUnix([]byte("x"), unix.UnixRights(fds...), nil)
			check(t, err)
		}
		goOn := relay.Pause(t)
		for range 4 { // as many as the relay closes at a time for one user
			lingers := lingering(t)
			send(lingers, 1)
			check(t, lingers.Close())
		}
		goOn()
		relay.Err.Await(t, 4, "disconnected a client")
		null, err := os.Open(os.DevNull)
		check(t, err)
		for range 20 {
			send(null, sock.MaxRights)
		}
		check(t, null.Close())
		relay.Err.Await(t, 24, "connection from")
		if status, _, stderr := run(t, d, "", "healthcheck", "--listen", kind+":r"); status != 0 {
			t.Errorf("the health check failed: %s", stderr)
		}
		open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", relay.Pid()))
		check(t, err)
		if n := len(open); n > 6*sock.MaxRights {
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
		for _, tt := range []struct {
			name   string
			target bool // it exists, and does not take descriptors
			args   []string
		}{
			{"received and not passed on", true, []string{"--pass-files"}},
			{"received without --pass-files", true, nil},
			{"left in the queue", false, []string{"--pass-files"}},
			{"left in the queue without --pass-files", false, nil},
		} {
			t.Run(kind+", "+tt.name, func(t *testing.T) {
				if tt.target && !sock.CanRefuseRights() {
					testkit.Missing(t, "SO_PASSRIGHTS", "Linux 6.16")
				}
				d := dir(t)
				if tt.target {
					refusingTarget(t, networks[kind], d+"/s")
				}
				// A socket that a parent process made does not refuse descriptors.
				l, err := net.ListenUnix(networks[kind], &net.UnixAddr{Name: d + "/r", Net: networks[kind]})
				check(t, err)
				f, err := l.File()
				check(t, err)
				relay := testkit.Prepare(t, d, append([]string{"sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"`,
					testkit.Program("client"), "forward", "--listen", kind + ":r", "--connect", kind + ":s"}, tt.args...)...)
				relay.Cmd.ExtraFiles = []*os.File{f}
				relay.Start(t)
				check(t, f.Close())
				relay.Err.Await(t, 1, "waiting for a connection")
				l.SetUnlinkOnClose(false)
				check(t, l.Close())

				goOn := relay.Pause(t) // so that nothing is closed before the sender has closed its own
				conn := dialAt(t, d, kind+":r")
				lingers := lingering(t)
				_, _, err = conn.(*net.UnixConn).WriteMsgUnix([]byte("x"), unix.UnixRights(int(lingers.Fd())), nil)
				check(t, err)
				check(t, lingers.Close())
				goOn()
				relay.Err.Await(t, 1, "disconnected a client")
				if status, _, stderr := run(t, d, "", "healthcheck", "--listen", kind+":r"); status != 0 {
					t.Errorf("the health check failed: %s", stderr)
				}
				_, _ = io.Copy(io.Discard, conn)
				if status := relay.Terminate(t); status != 0 {
					t.Errorf("exit status %d:\n%s", status, &relay.Err)
				}
			})
		}
	}
}
