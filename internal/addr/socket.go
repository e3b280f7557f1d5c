package addr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock"
)

// A Socket is a server's socket with its address as the command line writes it.
type Socket struct {
	Addr Addr
	Bound
}

// Bound is what a server needs of a socket: a [sock.Socket], or a TCP socket,
// which has no files, and is not shared with other processes.
type Bound interface {
	FD() int
	Unlink()
	Is(*unix.Stat_t) bool
	Lost() bool
	Shared() bool
	Refuse() error
	Close() error
}

// Listen makes a socket at a, see [sock.ListenConfig.Listen]. For a TCP socket
// only the backlog counts.
func Listen(c sock.ListenConfig, a Addr) (*Socket, error) {
	if a.Type.Unix() {
		s, err := c.Listen(a.Sock())
		if err != nil {
			return nil, err
		}
		return &Socket{a, s}, nil
	}
	fd, err := listenTCP(a.Path, c.Backlog)
	if err != nil {
		return nil, fmt.Errorf("listen %s: %w", a, err)
	}
	s := tcp(fd)
	return &Socket{a, &s}, nil
}

// Handover makes sockets that are handed over together, see
// [sock.ListenConfig.Handover]; all addrs are paths.
func Handover(c sock.ListenConfig, addrs ...Addr) (sockets []*Socket, h *sock.Handover, err error) {
	var paths []sock.Addr
	for _, a := range addrs {
		paths = append(paths, a.Sock())
	}
	if h, err = c.Handover(context.Background(), paths...); err != nil {
		return nil, nil, err
	}
	for i, s := range h.Sockets {
		sockets = append(sockets, &Socket{addrs[i], s})
	}
	return sockets, h, nil
}

// RefuseRights returns a Control for [sock.ListenConfig] that has the kernel
// refuse descriptors, see [sock.RefuseRights], unless the address is one of files
// among addrs. A bound socket comes from another process and keeps its setting:
// descriptors may wait in it already.
func RefuseRights(addrs ...Addr) func(sock.Addr, int) error {
	return func(a sock.Addr, fd int) error {
		sa, _ := unix.Getsockname(fd)
		name, ok := sa.(*unix.SockaddrUnix)
		unnamed := ok && (name.Name == "" || name.Name == "@") // how package unix shows it
		if unnamed && !slices.Contains(addrs, Addr{Files, a.Path}) {
			sock.RefuseRights(fd)
		}
		return nil
	}
}

// Unix returns the socket of package sock; nil if this is a TCP socket.
func (s *Socket) Unix() *sock.Socket {
	own, _ := s.Bound.(*sock.Socket)
	return own
}

// Renew is [sock.Socket.Renew], for a socket that is Lost.
func (s *Socket) Renew() (*Socket, error) {
	renewed, err := s.Unix().Renew()
	if err != nil {
		return nil, err
	}
	return &Socket{s.Addr, renewed}, nil
}

// A tcp is the descriptor of a TCP socket, -1 once closed.
type tcp int

func (s *tcp) FD() int              { return int(*s) }
func (s *tcp) Unlink()              {}
func (s *tcp) Is(*unix.Stat_t) bool { return false }
func (s *tcp) Lost() bool           { return false }
func (s *tcp) Shared() bool         { return false }
func (s *tcp) Refuse() error        { return nil }

func (s *tcp) Close() error {
	if *s < 0 {
		return nil
	}
	err := unix.Close(int(*s))
	*s = -1
	return os.NewSyscallError("close", err)
}

// listenTCP makes package net look up the address, and takes over its socket.
func listenTCP(hostPort string, backlog int) (fd int, err error) {
	var c net.ListenConfig
	c.SetMultipathTCP(false) // Multipath TCP connections do not inherit the listener's options
	l, err := c.Listen(context.Background(), "tcp", hostPort)
	if err != nil {
		return -1, err
	}
	defer func() { _ = l.Close() }()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		return -1, err
	}
	ctrlErr := raw.Control(func(theirs uintptr) {
		if fd, err = unix.FcntlInt(theirs, unix.F_DUPFD_CLOEXEC, 0); err == nil {
			sock.InlineUrgent(fd)
			keepAlive(fd)
			err = unix.Listen(fd, cmp.Or(backlog, unix.SOMAXCONN)) // again: package net has no setting for the backlog
		}
	})
	return fd, errors.Join(ctrlErr, err)
}

// keepAlive makes the kernel ask the other side of an idle TCP connection
// whether it is still there, tcp(7), with the times that package net sets for the
// connections that it dials. Connections inherit them from the listening socket.
func keepAlive(fd int) {
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	for option, value := range map[int]int{unix.TCP_KEEPIDLE: 15, unix.TCP_KEEPINTVL: 15, unix.TCP_KEEPCNT: 9} { // seconds, seconds, probes
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, option, value)
	}
}

// Dial connects to a, see [sock.Dial] and its errors. For a TCP socket c does not
// count.
func Dial(ctx context.Context, a Addr, c sock.DialConfig) (*sock.Conn, error) {
	if a.Type.Unix() {
		set := c.Control
		c.Control = func(fd int) error {
			if a.Type == Stream {
				sock.InlineUrgent(fd)
			}
			if set != nil {
				return set(fd)
			}
			return nil
		}
		return sock.Dial(ctx, a.Sock(), c)
	}
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { sock.InlineUrgent(int(fd)) })
	}}
	conn, err := dialer.DialContext(ctx, string(a.Type), a.Path)
	if err != nil {
		return nil, fmt.Errorf("connect %s: %w", a, err)
	}
	return sock.NewConn(conn, sock.Type(a.Type)), nil
}
