package addr_test

import (
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/uds/sock"
)

func TestListenAndDialInternetAddresses(t *testing.T) {
	t.Parallel()
	s := listen(t, sock.ListenConfig{Backlog: 8}, addr.Addr{Type: addr.TCP, Path: "127.0.0.1:0"})
	sa, err := unix.Getsockname(s.FD())
	check(t, err)
	a := addr.Addr{Type: addr.TCP, Path: "127.0.0.1:" + strconv.Itoa(sa.(*unix.SockaddrInet4).Port)}
	conn, err := addr.Dial(t.Context(), a, sock.DialConfig{Bind: "names are for Unix sockets"})
	check(t, err)
	if addr.TypeOf(conn) != addr.TCP {
		t.Errorf("the connection's type is %s", conn.Type())
	}
	check(t, conn.Close())
	_, err = addr.Listen(sock.ListenConfig{}, a)
	wantError(t, err, unix.EADDRINUSE, "listen "+a.String())
	check(t, s.Close())
	_, err = addr.Dial(t.Context(), a, sock.DialConfig{})
	wantError(t, err, unix.ECONNREFUSED, "connect "+a.String())
}
