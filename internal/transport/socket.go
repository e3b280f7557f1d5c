package transport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock"
)

// ListenConfig configures how to listen. Its zero value works.
type ListenConfig struct {
	Mode    fs.FileMode // see [sock.ListenConfig]
	Backlog int         // see [sock.ListenConfig]
	// SendBuffer is SO_SNDBUF of a Unix socket in bytes as the kernel counts
	// them, socket(7); a message may be 32 bytes less. 0 leaves the system's
	// default. The connections that a seqpacket socket accepts do not inherit
	// it, see [sock.SetSendBuffer].
	SendBuffer int
	// RefuseRights has the kernel refuse descriptors at sockets of all types but
	// [Files], see [sock.RefuseRights]. A socket that comes from another process is
	// left as it is.
	RefuseRights bool
}

func (c ListenConfig) options(addrs ...Addr) sock.ListenConfig {
	return sock.ListenConfig{Mode: c.Mode, Backlog: c.Backlog, Control: func(a sock.Addr, fd int) error {
		if c.RefuseRights && !slices.Contains(addrs, Addr{Files, a.Path}) {
			refuseRights(fd)
		}
		return c.setSendBuffer(fd)
	}}
}

// refuseRights is [sock.RefuseRights] for a socket that is not bound yet. A bound one,
// which another process has handed over, keeps its setting: descriptors may wait
// in it already.
func refuseRights(fd int) {
	sa, _ := unix.Getsockname(fd)
	if name, ok := sa.(*unix.SockaddrUnix); ok && (name.Name == "" || name.Name == "@") { // how package unix shows an unnamed socket
		sock.RefuseRights(fd)
	}
}

func (c ListenConfig) setSendBuffer(fd int) error {
	if c.SendBuffer > 0 {
		return sock.SetSendBuffer(fd, c.SendBuffer)
	}
	return nil
}

// A Socket is a server's socket: one of package uds, or a TCP or UDP socket. A
// TCP or UDP socket has no files, is not shared with other processes, and
// cannot be half closed.
type Socket struct {
	Addr Addr
	bound
}

// bound is the set of methods that both kinds have, see [sock.Socket].
type bound interface {
	FD() int
	Unlink()
	Is(*unix.Stat_t) bool
	Lost() bool
	Shared() bool
	Refuse() error
	Close() error
}

// Listen makes a socket at a, see [sock.ListenConfig.Listen].
func (c ListenConfig) Listen(a Addr) (*Socket, error) {
	if a.Type.Unix() {
		s, err := c.options(a).Listen(a.unix())
		if err != nil {
			return nil, err
		}
		return &Socket{a, s}, nil
	}
	fd, err := listenInternet(a, c.Backlog)
	if err != nil {
		return nil, fmt.Errorf("listen %s: %w", a, err)
	}
	s := internet(fd)
	return &Socket{a, &s}, nil
}

// Handover makes sockets that are handed over together, see
// [sock.ListenConfig.Handover]; all addrs are paths.
func (c ListenConfig) Handover(addrs ...Addr) ([]*Socket, *sock.Handover, error) {
	var paths []sock.Addr
	for _, a := range addrs {
		paths = append(paths, a.unix())
	}
	h, err := c.options(addrs...).Handover(context.Background(), paths...)
	if err != nil {
		return nil, nil, err
	}
	var sockets []*Socket
	for i, s := range h.Sockets {
		sockets = append(sockets, &Socket{addrs[i], s})
	}
	return sockets, h, nil
}

// Inherit makes a Socket of a descriptor of the parent process, and takes the
// descriptor over, see [sock.ListenConfig.Inherit]. With files, a seqpacket
// socket becomes one of type files.
func (c ListenConfig) Inherit(fd int, files bool) (*Socket, error) {
	config := c.options()
	config.Control = func(_ sock.Addr, fd int) error {
		sock.DropAncillary(fd)
		return c.setSendBuffer(fd)
	}
	s, err := config.Inherit(fd)
	if err != nil {
		return nil, err
	}
	a := Addr{Type(s.Addr().Type), s.Addr().Path}
	if files && a.Type == Seqpacket {
		a.Type = Files
	}
	return &Socket{a, s}, nil
}

// Unix returns the socket of package uds; nil if this is a TCP or UDP socket.
func (s *Socket) Unix() *sock.Socket {
	own, _ := s.bound.(*sock.Socket)
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

// An internet is the descriptor of a TCP or UDP socket, -1 once closed.
type internet int

func (s *internet) FD() int              { return int(*s) }
func (s *internet) Unlink()              {}
func (s *internet) Is(*unix.Stat_t) bool { return false }
func (s *internet) Lost() bool           { return false }
func (s *internet) Shared() bool         { return false }
func (s *internet) Refuse() error        { return nil }

func (s *internet) Close() error {
	if *s < 0 {
		return nil
	}
	err := unix.Close(int(*s))
	*s = -1
	return os.NewSyscallError("close", err)
}

// listenInternet makes package net look up the address, and takes over its
// socket.
func listenInternet(a Addr, backlog int) (fd int, err error) {
	var l interface {
		syscall.Conn
		io.Closer
	}
	if a.Type == TCP {
		var n net.Listener
		var c net.ListenConfig
		c.SetMultipathTCP(false) // Multipath TCP connections do not inherit the listener's options
		if n, err = c.Listen(context.Background(), "tcp", a.Path); err == nil {
			l = n.(*net.TCPListener)
		}
	} else {
		var n net.PacketConn
		if n, err = net.ListenPacket("udp", a.Path); err == nil {
			l = n.(*net.UDPConn)
		}
	}
	if err != nil {
		return -1, err
	}
	defer func() { _ = l.Close() }()
	raw, err := l.SyscallConn()
	if err != nil {
		return -1, err
	}
	ctrlErr := raw.Control(func(theirs uintptr) {
		if fd, err = unix.FcntlInt(theirs, unix.F_DUPFD_CLOEXEC, 0); err == nil && a.Type == TCP {
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

// DialConfig configures how to connect. Its zero value works.
type DialConfig struct {
	Bind         string // see [sock.DialConfig]
	SendBuffer   int    // as in [ListenConfig]
	RefuseRights bool   // see [sock.RefuseRights]
}

// A Conn is a connection over any transport; for a Unix socket it holds a
// [sock.Conn].
type Conn struct {
	net.Conn
	addr  Addr
	creds bool // PassCred is on
}

// Dial connects to a, see [sock.Dial] and its errors.
func (c DialConfig) Dial(ctx context.Context, a Addr) (*Conn, error) {
	if a.Type.Unix() {
		conn, err := sock.Dial(ctx, a.unix().String(), sock.DialConfig{Bind: c.Bind, Control: func(fd int) error {
			if a.Type == Stream {
				sock.InlineUrgent(fd)
			}
			if c.RefuseRights {
				sock.RefuseRights(fd)
			}
			if c.SendBuffer > 0 {
				return sock.SetSendBuffer(fd, c.SendBuffer)
			}
			return nil
		}})
		if err != nil {
			return nil, err
		}
		return &Conn{Conn: conn, addr: a}, nil
	}
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		if a.Type == UDP {
			return nil
		}
		return raw.Control(func(fd uintptr) { sock.InlineUrgent(int(fd)) })
	}}
	conn, err := dialer.DialContext(ctx, string(a.Type), a.Path)
	if err != nil {
		return nil, fmt.Errorf("connect %s: %w", a, err)
	}
	return &Conn{Conn: conn, addr: a}, nil
}

// GrowSendBuffer makes SO_SNDBUF at least n bytes, as the kernel counts them, or
// as many of them as the system allows, socket(7).
func (c *Conn) GrowSendBuffer(n int) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if limit, err := sock.SendLimit(int(fd)); err == nil && limit+sock.Overhead < n {
			_ = sock.SetSendBuffer(int(fd), n)
		}
	})
}

// Connect dials a stream or seqpacket Unix socket with system calls alone, for
// callers that need only the descriptor and make many connections. It does not
// wait, and its error is a bare errno; [DialConfig.Dial] explains its errors.
// Of c it uses RefuseRights.
func (c DialConfig) Connect(a Addr) (fd int, err error) {
	sotype := unix.SOCK_STREAM
	if a.Type != Stream {
		sotype = unix.SOCK_SEQPACKET
	}
	if fd, err = unix.Socket(unix.AF_UNIX, sotype|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return -1, err
	}
	sock.InlineUrgent(fd)
	if c.RefuseRights {
		sock.RefuseRights(fd)
	}
	if err = unix.Connect(fd, &unix.SockaddrUnix{Name: a.Path}); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// Pair is [sock.Pair].
func Pair() (own *Conn, other *os.File, err error) {
	conn, other, err := sock.Pair()
	if err != nil {
		return nil, nil, err
	}
	return &Conn{Conn: conn, addr: Addr{Type: Stream}}, other, nil
}

// Type returns the type of the socket.
func (c *Conn) Type() Type { return c.addr.Type }

// SendFiles is [sock.Conn.SendFiles].
func (c *Conn) SendFiles(message []byte, fds ...int) error {
	own, ok := c.Conn.(*sock.Conn)
	if !ok {
		return errors.ErrUnsupported
	}
	return own.SendFiles(message, fds...)
}

// PeerCred is [sock.Conn.PeerCred].
func (c *Conn) PeerCred() (*unix.Ucred, error) {
	own, ok := c.Conn.(*sock.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return own.PeerCred()
}

// CloseWrite ends the direction to the server, shutdown(2) with SHUT_WR: the
// server reads end of file, and the client still receives the server's
// answers.
func (c *Conn) CloseWrite() error {
	w, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return w.CloseWrite()
}

// Closed reports [sock.HungUp] of the connection.
func (c *Conn) Closed() bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	closed := false
	err = raw.Control(func(fd uintptr) { closed = sock.HungUp(int(fd)) })
	return closed || err != nil
}

// SyscallConn gives access to the descriptor, [syscall.Conn].
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	s, ok := c.Conn.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return s.SyscallConn()
}

// Detach returns a non-blocking descriptor of the connection. The caller
// closes it. Package net no longer reads or writes the connection. Close still
// removes the client's own socket file.
func (c *Conn) Detach() (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	ctrlErr := raw.Control(func(theirs uintptr) {
		fd, err = unix.FcntlInt(theirs, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err := errors.Join(ctrlErr, os.NewSyscallError("fcntl", err)); err != nil {
		return -1, err
	}
	if own, ok := c.Conn.(*sock.Conn); ok {
		return fd, own.Conn.Close() // Close removes the client's name later
	}
	return fd, c.Close()
}

// Send sends a message over a connection, whole or not at all. A message larger
// than [sock.SendLimit] gets a [SizeError].
func (c *Conn) Send(message []byte) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	waitErr := raw.Write(func(fd uintptr) bool {
		err = sock.ExplainSize(int(fd), len(message), sock.ReplyTo(int(fd), message, ""))
		return err != unix.EAGAIN
	})
	if waitErr != nil {
		return waitErr
	}
	return err
}

// Receive receives the next message of a connection; io.EOF means that it has
// ended.
func (c *Conn) Receive(r *sock.Receiver) (message []byte, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var end bool
	waitErr := raw.Read(func(fd uintptr) bool {
		if c.addr.Type != Seqpacket && c.addr.Type != Files {
			message, err = r.Receive(int(fd))
			return err != unix.EAGAIN
		}
		if !c.creds {
			if err = sock.PassCred(int(fd)); err != nil {
				return true
			}
			c.creds = true
		}
		message, err = r.ReceiveCred(int(fd))
		_, isRecord := r.Cred()
		end = err == nil && !isRecord
		return err != unix.EAGAIN
	})
	switch {
	case waitErr != nil:
		return nil, waitErr
	case end:
		return nil, io.EOF
	}
	return message, err
}
