package addr_test

import (
	"net"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/uds/sock"
)

func TestSenderOverUDPIsItsHostAndPort(t *testing.T) {
	t.Parallel()
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	check(t, err)
	defer func() { check(t, server.Close()) }()
	conn := dial(t, addr.Addr{Type: addr.UDP, Path: server.LocalAddr().String()})
	check(t, conn.SetDeadline(time.Now().Add(patience)))
	check(t, conn.Send([]byte("hello")))
	raw, err := server.SyscallConn()
	check(t, err)
	r := sock.NewReceiver(100)
	check(t, raw.Read(func(fd uintptr) bool {
		var message []byte
		if message, err = r.Receive(int(fd)); err != unix.EAGAIN && string(message) == "hello" {
			err = sock.ReplyTo(int(fd), []byte("hello yourself"), r.Peek())
		}
		return err != unix.EAGAIN
	}))
	check(t, err)
	if got, want := r.Sender().String(), conn.LocalAddr().String(); got != want {
		t.Errorf("the sender is %s, not %s", got, want)
	}
	if got, err := conn.Receive(sock.NewReceiver(100)); err != nil || string(got) != "hello yourself" {
		t.Errorf("received %q, %v", got, err)
	}
}

func TestOversizeDatagramOverUDP(t *testing.T) {
	t.Parallel()
	conn := dial(t, addr.Addr{Type: addr.UDP, Path: "127.0.0.1:9"})
	wantError(t, conn.Send(make([]byte, 65_508)), unix.EMSGSIZE, "65508 bytes, the socket sends at most 65507; send smaller ones")
}

func TestListenAndDialInternetAddresses(t *testing.T) {
	t.Parallel()
	for _, typ := range []addr.Type{addr.TCP, addr.UDP} {
		s := listen(t, sock.ListenConfig{Backlog: 8}, addr.Addr{Type: typ, Path: "127.0.0.1:0"})
		sa, err := unix.Getsockname(s.FD())
		check(t, err)
		a := addr.Addr{Type: typ, Path: "127.0.0.1:" + strconv.Itoa(sa.(*unix.SockaddrInet4).Port)}
		conn, err := addr.Dial(t.Context(), a, sock.DialConfig{Bind: "names are for Unix sockets"})
		check(t, err)
		if addr.TypeOf(conn) != typ {
			t.Errorf("the connection's type is %s", conn.Type())
		}
		check(t, conn.Close())
		_, err = addr.Listen(sock.ListenConfig{}, a)
		wantError(t, err, unix.EADDRINUSE, "listen "+a.String())
		check(t, s.Close())
		if conn, err := addr.Dial(t.Context(), a, sock.DialConfig{}); typ == addr.TCP {
			wantError(t, err, unix.ECONNREFUSED, "connect "+a.String())
		} else {
			check(t, err)
			check(t, conn.Close())
		}
	}
}
