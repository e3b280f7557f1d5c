package uds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// ListenConfig says how to listen. Its zero value works.
type ListenConfig struct {
	// Mode is the socket file's permission bits; who may write may connect,
	// unix(7), "Pathname socket ownership and permissions". [DefaultMode]
	// leaves it to the umask.
	Mode fs.FileMode
	// Backlog is how many connections may wait to be accepted, listen(2);
	// 0 means as many as the system allows.
	Backlog int
	// SendBuffer is SO_SNDBUF in bytes as the kernel counts them, socket(7); a
	// message may be 32 bytes less. 0 leaves the system's. The connections
	// that a seqpacket socket accepts do not inherit it, see [SetSendBuffer].
	SendBuffer int
}

// A Socket is a bound socket with the files that it owns: the socket file and
// its lock. Sockets of the types that connect are listening.
type Socket struct {
	FD   int // non-blocking, close-on-exec; -1 once closed
	Addr Addr

	config ListenConfig
	file   *file
	lock   *lock
	shared bool // other processes have the socket too, and its files are theirs
}

func newSocket(a Addr) *Socket { return &Socket{FD: -1, Addr: a} }

// Listen makes a socket at a: lock, look, remove what is stale, bind, set the
// mode, listen. The messages of a datagram socket come with credentials, see
// [Receiver.ReceiveCred]. The error names the address and the cure; it is an
// [ErrNotSocket] where something else is at the path and an [ErrInUse] where a
// server is.
func (c ListenConfig) Listen(a Addr) (*Socket, error) {
	s := newSocket(a)
	s.config = c
	if err := c.listen(s); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("listen %s: %w", a, err)
	}
	return s, nil
}

func (c ListenConfig) listen(s *Socket) (err error) {
	if !s.Addr.Type.Unix() {
		s.FD, err = listenInternet(s.Addr, c.Backlog)
		return err
	}
	if err := checkPath(s.Addr.Path); err != nil {
		return err
	}
	if s.FD, err = socket(s.Addr.Type); err != nil {
		return err
	}
	if err := c.prepare(s); err != nil {
		return err
	}
	if s.Addr.Abstract() {
		err = unix.Bind(s.FD, &unix.SockaddrUnix{Name: s.Addr.Path})
		if err == unix.EADDRINUSE {
			return fmt.Errorf("%w: a server has the abstract name %s: stop it first or choose another", ErrInUse, s.Addr.Path)
		}
		if err != nil {
			return os.NewSyscallError("bind", err)
		}
	} else {
		if s.lock == nil { // or it comes from the socket that this one replaces
			if s.lock, err = lockPath(s.Addr.Path); err != nil {
				return err
			}
		}
		if err := removeStale(s.Addr.Path); err != nil {
			return err
		}
		if s.file, err = bindFile(s.FD, s.Addr.Path, c.Mode); err != nil {
			return err
		}
	}
	return c.start(s)
}

// prepare sets what has to be set before anybody can send: the credentials of
// what waits already would be nobody's.
func (c ListenConfig) prepare(s *Socket) error {
	if s.Addr.Type == Datagram {
		if err := PassCred(s.FD); err != nil {
			return err
		}
	}
	if c.SendBuffer > 0 {
		return SetSendBuffer(s.FD, c.SendBuffer)
	}
	return nil
}

func (c ListenConfig) start(s *Socket) error {
	if !s.Addr.Type.Connects() {
		return nil
	}
	err := unix.Listen(s.FD, backlogOrMax(c.Backlog))
	if err == unix.EINVAL {
		return fmt.Errorf("listen: %w (EINVAL): the socket is a connection already: pass the listening one, Accept=no in a systemd unit", err)
	}
	return os.NewSyscallError("listen", err)
}

// adopt makes a socket that another process made one of this configuration.
// Listening again makes this process the one that clients see as the server,
// see [PeerCred].
func (c ListenConfig) adopt(s *Socket) error {
	if c.Mode != DefaultMode && s.file != nil {
		if err := s.file.chmod(c.Mode); err != nil {
			return err
		}
	}
	if err := c.prepare(s); err != nil {
		return err
	}
	return c.start(s)
}

// Inherit makes a Socket of a descriptor that the parent process passed on, by
// systemd's protocol for example, sd_listen_fds(3). Type and address are the
// socket's own. Its file belongs to the parent: closing does not remove it.
// Inherit takes fd over, also where it fails.
func (c ListenConfig) Inherit(fd int) (*Socket, error) {
	s := newSocket(Addr{})
	s.FD, s.shared = fd, true
	unix.CloseOnExec(fd)
	err := s.identify()
	if err == nil {
		err = os.NewSyscallError("fcntl", unix.SetNonblock(fd, true))
	}
	if err == nil {
		DropAncillary(fd)
		err = c.adopt(s)
	}
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// DropAncillary turns off what the parent may have asked for to come with each
// message, PassCredentials= in a systemd unit for example, and nobody receives
// here: the kernel could not deliver it, and would report that just as it
// reports descriptors that nobody receives. Connections have such options from
// the listening socket that they were made at. Credentials of datagrams are
// received; what came while they were off would be nobody's.
func DropAncillary(fd int) {
	if sotype, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || sotype != unix.SOCK_DGRAM {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 0)
	}
	for _, option := range []int{unix.SO_PASSSEC, unix.SO_PASSPIDFD, unix.SO_TIMESTAMP, unix.SO_TIMESTAMPNS} {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 0) // not every kernel knows all of them
	}
}

// identify finds the address of a socket that somebody else made.
func (s *Socket) identify() error {
	sa, err := unix.Getsockname(s.FD)
	if err != nil {
		return fmt.Errorf("it is no socket: %w", err)
	}
	sotype, err := unix.GetsockoptInt(s.FD, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return os.NewSyscallError("getsockopt SO_TYPE", err)
	}
	if _, ok := sa.(*unix.SockaddrUnix); !ok {
		return errors.New("it is no Unix socket: pass one, ListenStream=/path in a systemd unit")
	}
	for _, t := range types {
		if t.sotype() == sotype {
			s.Addr = Addr{t, nameOf(sa)}
		}
	}
	if s.Addr.Path == "" {
		return errors.New("it is a socket without an address: pass one that is bound")
	}
	return nil
}

func backlogOrMax(backlog int) int {
	if backlog == 0 {
		return unix.SOMAXCONN
	}
	return backlog
}

// listenInternet lets package net find the address, and takes its socket.
func listenInternet(a Addr, backlog int) (fd int, err error) {
	var l interface {
		syscall.Conn
		io.Closer
	}
	if a.Type == TCP {
		var n net.Listener
		var c net.ListenConfig
		c.SetMultipathTCP(false) // whose connections do not have the listener's options
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
			InlineUrgent(fd)
			err = unix.Listen(fd, backlogOrMax(backlog)) // again: package net does not ask how many
		}
	})
	return fd, errors.Join(ctrlErr, err)
}

// Unlink removes the socket file, if it is still the one that this socket
// made, and gives up its lock. Who has connected stays connected.
func (s *Socket) Unlink() {
	if s.shared { // they belong to another process
		s.lock.release()
	} else {
		s.file.remove()
		s.lock.unlock()
	}
	s.file, s.lock = nil, nil
}

// Is tells whether a file is that of this socket.
func (s *Socket) Is(st *unix.Stat_t) bool { return s.file != nil && s.file.is(st) }

// Lost tells whether nobody can connect any more, because the socket file is
// not the one that this socket made: somebody has removed or replaced it.
func (s *Socket) Lost() bool { return s.file != nil && !s.file.ours() }

// Renew makes a new socket for one whose file is [Socket.Lost], in its place.
// Who has connected to s, or sends to it, is not affected; s has no files any
// more. The error is an [ErrInUse] or [ErrNotSocket] where something else is at
// the path now, which is left alone; after any other Renew can be called again.
func (s *Socket) Renew() (*Socket, error) {
	n := newSocket(s.Addr)
	n.config = s.config
	if s.lock != nil && s.lock.isAt(s.lock.name) {
		n.lock = s.lock
	}
	if err := n.config.listen(n); err != nil {
		if n.lock == s.lock {
			n.lock = nil
		}
		_ = n.Close()
		return nil, fmt.Errorf("listen again on %s: %w", s.Addr, err)
	}
	if n.lock != s.lock {
		s.lock.release()
	}
	s.file, s.lock = nil, nil
	return n, nil
}

// Shared tells whether another process serves the socket too, or will: who has
// connected and was not accepted will be by it.
func (s *Socket) Shared() bool { return s.shared }

// Refuse turns further clients away, while those that have connected already
// can still be accepted: accept(2) gives them and then EAGAIN. So nobody who
// was let in is lost.
// (Internet sockets know no such half-way, and shared ones are not ours to end;
// nothing is done.)
func (s *Socket) Refuse() error {
	if s.shared || !s.Addr.Type.Unix() {
		return nil
	}
	return os.NewSyscallError("shutdown", unix.Shutdown(s.FD, unix.SHUT_RD))
}

// Close unlinks and closes the socket.
func (s *Socket) Close() error {
	s.Unlink()
	if s.FD < 0 {
		return nil
	}
	err := unix.Close(s.FD)
	s.FD = -1
	return os.NewSyscallError("close", err)
}

// closeFD closes a descriptor that there may be, and forgets it.
func closeFD(fd *int) {
	if *fd >= 0 {
		_ = unix.Close(*fd)
		*fd = -1
	}
}

// Listener gives the socket, one of a type that connects, to package net. It
// takes the socket over: closing the listener closes the socket.
func (s *Socket) Listener() (net.Listener, error) {
	fd, err := unix.FcntlInt(uintptr(s.FD), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(fd), s.Addr.String())
	defer func() { _ = f.Close() }()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	return &listener{l, s}, nil
}

// A listener closes the files that package net does not know about.
type listener struct {
	net.Listener
	socket *Socket
}

func (l *listener) Close() error {
	return errors.Join(l.Listener.Close(), l.socket.Close())
}
