package main_test

import (
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/udsecho/udsecho/internal/testkit"
	"golang.org/x/sys/unix"
)

// boundFile returns a socket in the state in which a parent passes it on:
// bound, and listening if its type can.
func boundFile(t *testing.T, typ int, path string) *os.File {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	check(t, err)
	f := os.NewFile(uintptr(fd), path)
	t.Cleanup(func() { _ = f.Close() })
	check(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
	check(t, unix.Chmod(path, 0o666))
	if typ != unix.SOCK_DGRAM {
		check(t, unix.Listen(fd, 100))
	}
	return f
}

// boundFiles returns one of each type, at places in d.
func boundFiles(t *testing.T, d string) []*os.File {
	t.Helper()
	return []*os.File{boundFile(t, unix.SOCK_STREAM, d+"/s"), boundFile(t, unix.SOCK_SEQPACKET, d+"/q"), boundFile(t, unix.SOCK_DGRAM, d+"/d")}
}

// activate starts a server by systemd's protocol: LISTEN_PID is the process
// id of the shell, which becomes the server.
func activate(t *testing.T, d string, files []*os.File, args ...string) *process {
	t.Helper()
	script := fmt.Sprintf(`LISTEN_PID=$$ LISTEN_FDS=%d exec "$0" "$@"`, len(files))
	p := testkit.Prepare(t, d, append([]string{"sh", "-c", script, testkit.Program("server")}, args...)...)
	p.Cmd.ExtraFiles = files
	p.Start(t)
	return p
}

func TestActivatedServerServesEarlierConnectionsAndLeavesTheFile(t *testing.T) {
	t.Parallel()
	d := dir(t)
	sockets := boundFiles(t, d)
	// Options that a unit sets with PassCredentials=yes must not cause any
	// rejection.
	for _, f := range sockets {
		check(t, unix.SetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_PASSCRED, 1))
		check(t, unix.SetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_TIMESTAMP, 1))
	}
	for range 2 {
		// These clients connect while no server is running.
		me := &net.UnixAddr{Name: d + "/me", Net: "unixgram"}
		sender, err := net.DialUnix("unixgram", me, &net.UnixAddr{Name: d + "/d", Net: "unixgram"})
		check(t, err)
		check(t, sender.SetDeadline(time.Now().Add(patience)))
		early := []net.Conn{connect(t, "unix", d+"/s"), connect(t, "unixpacket", d+"/q"), sender}
		for _, conn := range early {
			_, err := conn.Write([]byte("early"))
			check(t, err)
		}
		server := serving(t, activate(t, d, sockets, "--log-format", "plain", "--listen", "other", "--mode", "0600"))
		if want := fmt.Sprintf("starting up on %[1]s/s\nstarting up on %[1]s/q\nstarting up on %[1]s/d\n", d); !strings.HasPrefix(server.Err.String(), want) {
			t.Errorf("the server wrote:\n%s", &server.Err)
		}
		for _, conn := range early {
			back := make([]byte, 100)
			if n, err := conn.Read(back); err != nil || string(back[:n]) != "early" {
				t.Errorf("%v: received %q, %v", conn.RemoteAddr(), back[:n], err)
			}
			check(t, conn.Close())
		}
		check(t, os.Remove(me.Name))
		for _, a := range places {
			clientEchoes(t, d, "--connect", a)
		}
		server.Signal(t, syscall.SIGTERM)
		server.WantStatus(t, 0)
		wantFiles(t, d, "d", "q", "s")
	}
}

func TestActivationWithOtherDescriptorsFails(t *testing.T) {
	t.Parallel()
	d := dir(t)
	null, err := os.Open(os.DevNull)
	check(t, err)
	unbound, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer func() { check(t, tcp.Close()) }()
	internet, err := tcp.(*net.TCPListener).File()
	check(t, err)
	good := boundFile(t, unix.SOCK_STREAM, d+"/s")
	for _, tt := range []struct {
		file  *os.File
		words string
	}{
		{null, "it is not a socket"},
		{os.NewFile(uintptr(unbound), "unbound"), "it is a socket without an address"},
		{internet, "it is not a Unix socket; pass one, ListenStream=/path"},
	} {
		p := activate(t, d, []*os.File{good, tt.file})
		p.WantStatus(t, 1)
		wantWords(t, p.Err.String(), "server: LISTEN_FD_4, passed on by the parent process: "+tt.words)
		wantFiles(t, d, "s")
		check(t, tt.file.Close())
	}
}
