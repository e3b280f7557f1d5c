package main_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"runtime"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

// Descriptors in flight count for the relay's user. One client whose target does
// not receive them must not take all of those from the others.
func TestF61DescriptorsInFlightLeaveRoomForOthers(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t, "for a relay and a client of other users: the kernel does not limit root")
	const openFiles, relayUser, clientUser = 3000, 30011, 30012
	d := dir(t)
	check(t, os.Chmod(d, 0o777))
	null, err := os.Open(os.DevNull)
	check(t, err)
	defer func() { _ = null.Close() }()
	stop := make(chan bool)
	serveAt(t, d, "stream:s", func(conn halfCloser) {
		raw, err := conn.(*net.UnixConn).SyscallConn()
		check(t, err)
		first := make([]byte, 1)
		check(t, raw.Read(func(fd uintptr) bool {
			_, _, err := unix.Recvfrom(int(fd), first, unix.MSG_PEEK)
			return err != unix.EAGAIN
		}))
		if first[0] == 'x' {
			<-stop
			return
		}
		words, f, err := receiveFile(conn)
		if err == nil && f != nil {
			_ = f.Close()
			_, _ = io.WriteString(conn, words)
		}
	})
	check(t, os.Chmod(d+"/s", 0o777))
	// The limits of open files and of descriptors in flight are the same.
	relay := testkit.Prepare(t, d, "sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$0" "$@"`, openFiles), testkit.Program("client"),
		"forward", "--listen", "stream:r", "--connect", "stream:s", "--pass-files", "--mode", "0666")
	relay.Cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: relayUser, Gid: relayUser}}
	relay.Start(t)
	relay.Err.Await(t, 1, "waiting for a connection")

	// Connections that end while theirs are in flight.
	rights := unix.UnixRights(slices.Repeat([]int{int(null.Fd())}, 253)...)
	for range openFiles/253 + 1 {
		conn, err := dialAs(clientUser, d+"/r")
		check(t, err)
		_, _, err = conn.(*net.UnixConn).WriteMsgUnix([]byte("x"), rights, nil)
		check(t, err)
		check(t, conn.Close())
	}

	// As many as its user may send, in a thread of that user.
	hostile, err := dialAs(clientUser, d+"/r")
	check(t, err)
	defer func() { _ = hostile.Close() }()
	raw, err := hostile.(*net.UnixConn).SyscallConn()
	check(t, err)
	sent, quiet := 0, 0
	testkit.Await(t, func() error { // until the relay takes no more, for a while
		var err error
		check(t, raw.Control(func(fd uintptr) {
			_, err = unix.SendmsgN(int(fd), []byte("x"), rights, nil, unix.MSG_DONTWAIT)
		}))
		if err == nil && sent < 2*openFiles {
			sent += 253
			quiet = 0
			return fmt.Errorf("%d were sent", sent)
		}
		if quiet++; quiet < 3 {
			return err
		}
		return nil
	})

	clients := testkit.Count(5, 100)
	for range clients {
		conn := dialAt(t, d, "stream:r")
		sendFile(t, conn, "R", null)
		if got, err := io.ReadAll(conn); err != nil || string(got) != "R" {
			t.Errorf("another client got %q, %v", got, err)
		}
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
func dialAs(user int, path string) (conn net.Conn, err error) {
	done := make(chan bool)
	go func() {
		defer close(done)
		runtime.LockOSThread() // the thread ends with the goroutine
		same := ^uintptr(0)
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, same, uintptr(user), same); errno != 0 {
			err = errno
			return
		}
		conn, err = net.Dial("unix", path)
	}()
	<-done
	return conn, err
}
